"""The diffusion prior (paper, section 2.2): a causal transformer that denoises the whitened CLIP image embedding.

Tokens: text states | text embedding | step | noised image embedding | learned query, whose output is the prediction.
The text comes first and attention is causal, so its keys and values depend neither on t nor on x_t: they are computed
once a caption (`read_text`), and every step and every draw runs three tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.diffusion.guidance import guided
from unclip.diffusion.process import Prediction
from unclip.diffusion.sampling import Noise, make_denoiser, sample
from unclip.diffusion.schedule import Schedule, ScheduleName, make_schedule, respace
from unclip.nn.embeddings import StepEmbedding
from unclip.nn.transformer import CausalTransformer, Prefix
from unclip.prior.condition import PriorSampling, TextCondition

INIT_STD = 0.02
CLAMP = 5.0  # standard deviations of the whitened embedding; Karlo's pipeline clamps there too
NUM_LAST_TOKENS = 3  # step, noised embedding, query


@dataclass(frozen=True, kw_only=True)
class DiffusionPriorConfig:
    """The network of the diffusion prior and what it predicts.

    Attributes:
        max_text_tokens: longest caption in tokens; longer ones are refused.
    """

    __pydantic_config__ = {"extra": "forbid"}

    width: int = 512
    depth: int = 6
    head_width: int = 64
    max_text_tokens: int = 77
    prediction: Prediction = "x0"
    schedule: ScheduleName = "cosine"
    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        if self.width % self.head_width or self.width % 2:
            raise ValueError(f"width must be even and a multiple of head_width {self.head_width}, got {self.width}")


class DiffusionPrior(nn.Module):
    """x_t (B * n, E) and t (B * n,) after a text prefix of B rows -> prediction (B * n, E), in whitened space.

    The buffers whiten: raw = whitened * emb_std + emb_mean, and the same for the text embedding.
    """

    emb_mean: Tensor
    emb_std: Tensor
    text_mean: Tensor
    text_std: Tensor

    def __init__(self, config: DiffusionPriorConfig, *, emb_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_in = nn.Linear(text_width, width)
        self.text_emb_in = nn.Linear(emb_width, width)
        self.step = StepEmbedding(width, width)
        self.noised_in = nn.Linear(emb_width, width)
        self.query = nn.Parameter(torch.randn(width) * INIT_STD)
        self.null_emb = nn.Parameter(torch.randn(width) * INIT_STD)
        self.text_positions = nn.Parameter(torch.randn(config.max_text_tokens, width) * INIT_STD)
        self.last_positions = nn.Parameter(torch.randn(1 + NUM_LAST_TOKENS, width) * INIT_STD)
        self.transformer = CausalTransformer(width=width, depth=config.depth, head_width=config.head_width)
        self.out = nn.Linear(width, emb_width)
        for name in ("emb_mean", "text_mean"):
            self.register_buffer(name, torch.zeros(emb_width))
        for name in ("emb_std", "text_std"):
            self.register_buffer(name, torch.ones(emb_width))

    def whiten(self, image_emb: Tensor) -> Tensor:
        """Raw image embeddings (..., E) to zero mean and unit variance a dimension."""
        return (image_emb - self.emb_mean) / self.emb_std

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        return whitened * self.emb_std + self.emb_mean

    def read_text(self, condition: TextCondition, keep: Tensor) -> Prefix:
        """The text prefix of B captions. Where `keep` (B,) is False nothing of the caption is visible, and a learned token stands for its embedding."""
        length = condition.text_tokens.shape[1]
        if length > self.config.max_text_tokens:
            raise ValueError(f"captions may have {self.config.max_text_tokens} tokens (prior max_text_tokens), got {length}")
        states = self.text_in(condition.text_tokens) + self.text_positions[:length]
        text_emb = self.text_emb_in((condition.text_emb - self.text_mean) / self.text_std)
        text_emb = torch.where(keep[:, None], text_emb, self.null_emb) + self.last_positions[0]
        mask = condition.text_mask & keep[:, None]
        mask = torch.cat([mask, torch.ones_like(keep)[:, None]], dim=1)
        return self.transformer.read_prefix(torch.cat([states, text_emb[:, None]], dim=1), mask)

    def forward(self, x_t: Tensor, t: Tensor, prefix: Prefix) -> Tensor:
        tokens = torch.stack([self.step(t), self.noised_in(x_t), self.query.expand(len(x_t), -1)], dim=1) + self.last_positions[1:]
        out: Tensor = self.out(self.transformer(tokens, prefix)[:, -1])
        return out

    def schedule(self) -> Schedule:
        """The schedule it is trained with."""
        return make_schedule(self.config.schedule, self.config.num_train_steps)

    @property
    def noise_width(self) -> int:
        """E: a draw starts as noise of the embedding's width."""
        return self.noised_in.in_features

    @torch.no_grad()
    def draw(self, condition: TextCondition, *, num_samples: int, sampling: PriorSampling, noise: Noise) -> Tensor:
        """(B, n, E) raw image embeddings; see `Prior.draw`."""
        everyone = torch.ones(len(condition), dtype=torch.bool, device=condition.text_emb.device)
        prefix = self.read_text(condition, everyone).repeat(num_samples)
        empty = self.read_text(condition, ~everyone).repeat(num_samples) if sampling.guidance_scale != 1.0 else prefix
        network = guided(lambda x, t: self(x, t, prefix), lambda x, t: self(x, t, empty), sampling.guidance_scale)
        schedule = respace(self.schedule(), sampling.num_steps)
        denoiser = make_denoiser(network, schedule, self.config.prediction, clamp=CLAMP)
        whitened = sample(sampling.sampler, denoiser, schedule, noise(), noise, eta=sampling.eta)
        return self.unwhiten(whitened).reshape(len(condition), num_samples, -1)


def load_diffusion_prior(folder: Path, *, device: str = "cpu") -> DiffusionPrior:
    """The EMA weights of a checkpoint, frozen.

    Raises:
        UnclipError: the folder is no checkpoint of a prior, or its weights do not fit its config.
    """
    network = checkpoint.read_config(folder, "prior-diffusion")["network"]
    widths = {name: network.pop(name) for name in ("emb_width", "text_width")}
    model = DiffusionPrior(DiffusionPriorConfig(**network), **widths)
    checkpoint.load_weights(model, folder / checkpoint.EMA)
    return model.to(device).eval().requires_grad_(False)
