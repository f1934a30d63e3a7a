"""The priors that are compared, each behind the same three calls. Only the child process that measures one imports its library.

All have the same depth, width and number of parameters, are given the same captions, and predict x0 of a 512-wide
embedding with a float32 network. The peers take 77 text tokens whatever the caption: they pad and mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor, nn
from torch.nn import functional as F

E = 512  # width of embeddings, of text states and of the networks: DALLE2-pytorch has no projections, so all are one
DEPTH, HEAD_WIDTH, MAX_TEXT = 6, 64, 77
NUM_TRAIN_STEPS = 1000
LAST_TOKENS = 4  # text embedding, step, noised embedding, query


@dataclass(frozen=True)
class Captions:
    """A batch: text_emb (B, E), text_tokens (B, L, E), lengths (B,), image_emb (B, E)."""

    text_emb: Tensor
    text_tokens: Tensor
    lengths: Tensor
    image_emb: Tensor

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.text_tokens.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def padded(self) -> "Captions":
        """To 77 tokens, zeros behind each caption."""
        return Captions(self.text_emb, F.pad(self.text_tokens, (0, 0, 0, MAX_TEXT - self.text_tokens.shape[1])), self.lengths, self.image_emb)

    def to(self, device: str) -> "Captions":
        return Captions(self.text_emb.to(device), self.text_tokens.to(device), self.lengths.to(device), self.image_emb.to(device))


def make_captions(num: int, texts: str, *, seed: int, width: int = E) -> Captions:
    """Random captions: "full" has 77 tokens each, "realistic" 8 to 20, cut to the longest of the batch."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((num,), MAX_TEXT) if texts == "full" else torch.randint(8, 21, (num,), generator=generator)
    states = F.normalize(torch.randn(num, int(lengths.max()), width, generator=generator), dim=-1)
    text_emb, image_emb = (F.normalize(torch.randn(num, width, generator=generator), dim=-1) for _ in range(2))
    captions = Captions(text_emb, states, lengths, image_emb)
    return Captions(text_emb, states * captions.mask[..., None], lengths, image_emb)


@dataclass(frozen=True)
class Contender:
    """One prior, ready to run.

    Attributes:
        network: what is trained.
        blocks: its transformer, whose matrices are counted for the arithmetic.
        loss: of a batch, with this many noise draws a caption.
        draw: embeddings (B * num_samples, E) with this many network calls.
        network_calls: how often the network has run so far.
        trims: captions are cut to the longest of the batch, and only the last three tokens run in a step of sampling.
    """

    network: nn.Module
    blocks: nn.Module
    loss: Callable[[Captions, int], Tensor]
    draw: Callable[[Captions, int, int], Tensor]
    network_calls: Callable[[], int]
    trims: bool
    version: str


def ours(*, width: int = E, depth: int = DEPTH, emb: int = E) -> Contender:
    from unclip.diffusion.process import add_noise
    from unclip.prior.condition import PriorSampling, TextCondition
    from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig

    config = DiffusionPriorConfig(width=width, depth=depth, head_width=HEAD_WIDTH, max_text_tokens=MAX_TEXT, num_train_steps=NUM_TRAIN_STEPS)
    model = DiffusionPrior(config, emb_width=emb, text_width=emb)
    schedule = model.schedule()
    calls = count_calls(model.transformer, "forward")

    def condition(captions: Captions) -> TextCondition:
        return TextCondition(captions.text_emb, captions.text_tokens, captions.mask)

    def loss(captions: Captions, draws: int) -> Tensor:
        device, num = captions.text_emb.device, len(captions.text_emb)
        keep = torch.rand(num, device=device) >= 0.1
        x0 = model.whiten(captions.image_emb).repeat_interleave(draws, 0)
        i = torch.randint(NUM_TRAIN_STEPS, (len(x0),))
        x_t, t = add_noise(schedule, x0, i, torch.randn_like(x0)), schedule.timesteps[i].to(device)
        return F.mse_loss(model(condition(captions), keep, x_t.view(num, draws, -1), t.view(num, draws)).flatten(0, 1), x0)

    def draw(captions: Captions, num_samples: int, num_calls: int) -> Tensor:
        sampling = PriorSampling(num_steps=num_calls)
        shape = (len(captions.text_emb) * num_samples, model.noise_width)
        return model.draw(condition(captions), num_samples=num_samples, sampling=sampling, noise=lambda: torch.randn(shape)).flatten(0, 1)

    return Contender(model, model.transformer, loss, draw, calls, trims=True, version=metadata.version("unclip"))


def dalle2_pytorch() -> Contender:
    """Around its traps: it scales the embeddings in place, drops x_t with the text, and runs one call less than it is asked for."""
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

    # SwiGLU has three matrices where the others have two, attention one head of keys and values: 3.4375 makes the parameters equal
    network = DiffusionPriorNetwork(
        dim=E, depth=DEPTH, heads=E // HEAD_WIDTH, dim_head=HEAD_WIDTH, ff_mult=3.4375, num_timesteps=NUM_TRAIN_STEPS, max_text_len=MAX_TEXT
    )
    prior = DiffusionPrior(
        network, image_embed_dim=E, timesteps=NUM_TRAIN_STEPS, text_cond_drop_prob=0.1, image_cond_drop_prob=0.0, condition_on_text_encodings=True
    )
    calls = count_calls(network, "forward")

    def loss(captions: Captions, draws: int) -> Tensor:
        padded = captions.padded()
        return prior(text_embed=padded.text_emb, text_encodings=padded.text_tokens, image_embed=padded.image_emb.clone())

    def draw(captions: Captions, num_samples: int, num_calls: int) -> Tensor:
        padded = captions.padded()
        text = {"text_embed": padded.text_emb.repeat_interleave(num_samples, 0), "text_encodings": padded.text_tokens.repeat_interleave(num_samples, 0)}
        return prior.p_sample_loop((len(text["text_embed"]), E), text_cond=text, timesteps=num_calls + 1, cond_scale=1.0)

    return Contender(network, network.causal_transformer, loss, draw, calls, trims=False, version=metadata.version("dalle2-pytorch"))


def diffusers() -> Contender:
    from diffusers import DDPMScheduler, PriorTransformer, UnCLIPScheduler

    model = PriorTransformer(
        num_attention_heads=E // HEAD_WIDTH, attention_head_dim=HEAD_WIDTH, num_layers=DEPTH, embedding_dim=E, num_embeddings=MAX_TEXT,
        additional_embeddings=LAST_TOKENS,
    )  # fmt: skip
    noising = DDPMScheduler(NUM_TRAIN_STEPS, beta_schedule="squaredcos_cap_v2")
    calls = count_calls(model, "forward")

    def predict(padded: Captions, x_t: Tensor, t: Tensor) -> Tensor:
        return model(x_t, t, proj_embedding=padded.text_emb, encoder_hidden_states=padded.text_tokens, attention_mask=padded.mask).predicted_image_embedding

    def loss(captions: Captions, draws: int) -> Tensor:
        padded = captions.padded()
        t = torch.randint(NUM_TRAIN_STEPS, (len(padded.text_emb),))
        x_t = noising.add_noise(padded.image_emb, torch.randn_like(padded.image_emb), t)
        return F.mse_loss(predict(padded, x_t, t), padded.image_emb)

    @torch.no_grad()
    def draw(captions: Captions, num_samples: int, num_calls: int) -> Tensor:
        padded = Captions(*(getattr(captions.padded(), name).repeat_interleave(num_samples, 0) for name in ("text_emb", "text_tokens", "lengths", "image_emb")))
        scheduler = UnCLIPScheduler(
            num_train_timesteps=NUM_TRAIN_STEPS, variance_type="fixed_small_log", clip_sample=True, clip_sample_range=5.0, prediction_type="sample"
        )
        scheduler.set_timesteps(num_calls)
        x = torch.randn(len(padded.text_emb), E)
        steps = [int(t) for t in scheduler.timesteps]
        for t, before in zip(steps, [*steps[1:], None], strict=True):
            x = scheduler.step(predict(padded, x, torch.full((len(x),), t)), timestep=t, sample=x, prev_timestep=before).prev_sample
        return model.post_process_latents(x)

    return Contender(model, model.transformer_blocks, loss, draw, calls, trims=False, version=metadata.version("diffusers"))


CONTENDERS: dict[str, Callable[[], Contender]] = {"unclip": ours, "DALLE2-pytorch": dalle2_pytorch, "diffusers": diffusers}


def count_calls(module: nn.Module, method: str) -> Callable[[], int]:
    """Counts the calls of a method from now on; hooks would miss those that DALLE2-pytorch makes."""
    real, counted = getattr(module, method), [0]

    def counting(*args: object, **named: object) -> object:
        counted[0] += 1
        return real(*args, **named)

    setattr(module, method, counting)
    return lambda: counted[0]
