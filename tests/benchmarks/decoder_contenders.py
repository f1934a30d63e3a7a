"""The decoders that are compared, each behind the same two calls. Only the child process that measures one imports its library.

All have the same number of parameters, see the same pictures, embeddings and captions, predict eps of a float32 network, and
are stepped by the same optimizer. "unclip" is diffusers' network layer by layer, Karlo's in small; DALLE2-pytorch's is its own.
"unclip, patches" is that network again behind squares of 2 x 2 pixels: as many parameters, a quarter of the pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks.contenders import count_calls

E = 512  # width of embeddings and of text states
CHANNELS, MULT, DEPTH, HEAD_WIDTH, CONTEXT_WIDTH = 64, (1, 2, 3), 2, 32, 256
MAX_TEXT, IMAGE_TOKENS = 16, 4
NUM_TRAIN_STEPS = 1000
DROP_IMAGE, DROP_TEXT = 0.1, 0.5  # the paper's


@dataclass(frozen=True)
class Batch:
    """pictures (B, 3, H, H) in [-1, 1], image_emb and text_emb (B, E), text_tokens (B, L, E) with zeros behind each, lengths (B,)."""

    pictures: Tensor
    image_emb: Tensor
    text_emb: Tensor
    text_tokens: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        return torch.arange(MAX_TEXT) < self.lengths[:, None]


def make_batch(num: int, size: int, *, seed: int = 0) -> Batch:
    """Random pictures and captions of 8 to 16 tokens, the longest in each batch 16."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, MAX_TEXT + 1, (num,), generator=generator)
    lengths[0] = MAX_TEXT
    pictures = torch.rand(num, 3, size, size, generator=generator) * 2 - 1
    image_emb, text_emb = (torch.randn(num, E, generator=generator) for _ in range(2))
    states = torch.randn(num, MAX_TEXT, E, generator=generator) * (torch.arange(MAX_TEXT) < lengths[:, None])[..., None]
    return Batch(pictures, image_emb, text_emb, states, lengths)


@dataclass(frozen=True)
class Contender:
    """One decoder, ready to run.

    Attributes:
        network: what is trained.
        loss: of a batch.
        draw: pictures (B, 3, H, H) with this many network calls by DDIM, without guidance.
        network_calls: how often the U-Net has run so far.
    """

    network: nn.Module
    loss: Callable[[Batch], Tensor]
    draw: Callable[[Batch, int], Tensor]
    network_calls: Callable[[], int]
    version: str


def ours(size: int, *, patch_size: int = 1, reads_once: bool = True) -> Contender:
    """Without `reads_once`, what depends on the condition alone is computed at every step of a draw."""
    from unclip.decoder import Decoder, DecoderCondition, DecoderConfig
    from unclip.diffusion.process import add_noise
    from unclip.diffusion.sampling import make_denoiser, sample_ddim
    from unclip.diffusion.schedule import make_schedule, respace
    from unclip.nn.unet import UNetConfig

    inner = size // patch_size
    unet = UNetConfig(
        image_size=size, patch_size=patch_size, channels=CHANNELS, channel_mult=MULT, depth=DEPTH, attention_sizes=(inner // 2, inner // 4),
        head_width=HEAD_WIDTH, min_group_width=1,
    )  # fmt: skip
    config = DecoderConfig(
        unet=unet, step_width=4 * CHANNELS, sinusoids="channels", num_image_tokens=IMAGE_TOKENS, context_width=CONTEXT_WIDTH, text_to_step=True,
        prediction="eps", num_train_steps=NUM_TRAIN_STEPS,
    )  # fmt: skip
    decoder = Decoder(config, emb_width=E, text_width=E).to(memory_format=torch.channels_last)
    schedule = make_schedule("cosine", NUM_TRAIN_STEPS)
    calls = count_calls(decoder.unet, "forward")

    def condition(batch: Batch, keep_image: Tensor, keep_text: Tensor) -> DecoderCondition:
        return DecoderCondition(batch.image_emb, batch.text_tokens, batch.mask, keep_image, keep_text, batch.text_emb)

    def loss(batch: Batch) -> Tensor:
        num = len(batch.pictures)
        x0 = batch.pictures.contiguous(memory_format=torch.channels_last)
        i, eps = torch.randint(NUM_TRAIN_STEPS, (num,)), torch.randn_like(x0)
        told = condition(batch, torch.rand(num) >= DROP_IMAGE, torch.rand(num) >= DROP_TEXT)
        return F.mse_loss(decoder(add_noise(schedule, x0, i, eps), schedule.timesteps[i], told), eps)

    @torch.no_grad()
    def draw(batch: Batch, num_calls: int) -> Tensor:
        visible = torch.ones(len(batch.pictures), dtype=torch.bool)
        told = condition(batch, visible, visible)
        read = decoder.read(told)
        steps = respace(schedule, num_calls)

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            return decoder.predict(x_t, t, read if reads_once else decoder.read(told))

        x_T = torch.randn_like(batch.pictures.contiguous(memory_format=torch.channels_last))
        return sample_ddim(make_denoiser(network, steps, "eps", clamp=1.0), steps, x_T, lambda: torch.randn_like(x_T))

    return Contender(decoder, loss, draw, calls, metadata.version("unclip"))


def dalle2_pytorch(size: int) -> Contender:
    """Around its traps: no learned variance (it diverges), context and embedding of different widths, its attention by one flag a level."""
    from dalle2_pytorch import Decoder, Unet

    unet = Unet(
        dim=CHANNELS, dim_mults=MULT, image_embed_dim=E, text_embed_dim=E, cond_dim=200, num_resnet_blocks=DEPTH, self_attn=(False, True, True),
        attn_dim_head=HEAD_WIDTH, attn_heads=8, cond_on_text_encodings=True, cond_on_image_embeds=True, max_text_len=MAX_TEXT,
    )  # fmt: skip
    decoder = Decoder(
        unet=(unet,), image_sizes=(size,), timesteps=NUM_TRAIN_STEPS, sample_timesteps=(2,), beta_schedule=("cosine",), learned_variance=False,
        image_cond_drop_prob=DROP_IMAGE, text_cond_drop_prob=DROP_TEXT, ddim_sampling_eta=0.0,
    )  # fmt: skip
    calls = count_calls(decoder.unets[0], "forward")

    def loss(batch: Batch) -> Tensor:
        return decoder((batch.pictures + 1) / 2, image_embed=batch.image_emb, text_encodings=batch.text_tokens, unet_number=1)

    @torch.no_grad()
    def draw(batch: Batch, num_calls: int) -> Tensor:
        decoder.sample_timesteps = (num_calls,)
        return decoder.sample(image_embed=batch.image_emb, text_encodings=batch.text_tokens, cond_scale=1.0, one_unet_in_gpu_at_time=False)

    return Contender(decoder, loss, draw, calls, metadata.version("dalle2-pytorch"))


def diffusers(size: int) -> Contender:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    text = UnCLIPTextProjModel(clip_extra_context_tokens=IMAGE_TOKENS, clip_embeddings_dim=E, time_embed_dim=4 * CHANNELS, cross_attention_dim=CONTEXT_WIDTH)
    attends = "SimpleCrossAttn"
    unet = UNet2DConditionModel(
        sample_size=size, in_channels=3, out_channels=3, layers_per_block=DEPTH, block_out_channels=tuple(CHANNELS * mult for mult in MULT),
        cross_attention_dim=CONTEXT_WIDTH, attention_head_dim=HEAD_WIDTH, mid_block_type=f"UNetMidBlock2D{attends}", resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", *[f"{attends}DownBlock2D"] * 2), class_embed_type="identity",
        up_block_types=(*[f"{attends}UpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(NUM_TRAIN_STEPS, beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    calls = count_calls(unet, "forward")

    def condition(batch: Batch, image_emb: Tensor, mask: Tensor) -> dict[str, Tensor]:
        context, emb = text(
            image_embeddings=image_emb, prompt_embeds=batch.text_emb, text_encoder_hidden_states=batch.text_tokens, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": context, "class_labels": emb, "attention_mask": F.pad(mask, (IMAGE_TOKENS, 0), value=True)}

    def loss(batch: Batch) -> Tensor:
        num = len(batch.pictures)
        t, eps = torch.randint(NUM_TRAIN_STEPS, (num,)), torch.randn_like(batch.pictures)
        image_emb = torch.where(torch.rand(num, 1) >= DROP_IMAGE, batch.image_emb, text.learned_classifier_free_guidance_embeddings)
        told = condition(batch, image_emb, batch.mask & (torch.rand(num, 1) >= DROP_TEXT))
        return F.mse_loss(unet(scheduler.add_noise(batch.pictures, eps, t), t, **told).sample, eps)

    @torch.no_grad()
    def draw(batch: Batch, num_calls: int) -> Tensor:
        told = condition(batch, batch.image_emb, batch.mask)
        scheduler.set_timesteps(num_calls)
        x = torch.randn_like(batch.pictures)
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, **told).sample, t, x, eta=0.0).prev_sample
        return x

    return Contender(nn.ModuleList([text, unet]), loss, draw, calls, metadata.version("diffusers"))


CONTENDERS: dict[str, Callable[[int], Contender]] = {
    "unclip": ours,
    "unclip, context at every step": lambda size: ours(size, reads_once=False),
    "unclip, patches": lambda size: ours(size, patch_size=2),
    "DALLE2-pytorch": dalle2_pytorch,
    "diffusers": diffusers,
}
