"""What every prior is given and how it is asked, and how the best of several candidates is chosen."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from unclip.diffusion.sampling import Noise, SamplerName

PriorKind = Literal["diffusion", "autoregressive", "regression", "linear"]
PRIOR_KINDS: tuple[PriorKind, ...] = get_args(PriorKind)


@dataclass(frozen=True)
class TextCondition:
    """A batch of captions as CLIP sees them, raw.

    Attributes:
        text_emb: (B, E), not normalised.
        text_tokens, text_mask: (B, L, S) states after the final norm and (B, L) True = real token.
    """

    text_emb: Tensor
    text_tokens: Tensor
    text_mask: Tensor

    def __len__(self) -> int:
        return len(self.text_emb)


@dataclass(frozen=True, kw_only=True)
class PriorSampling:
    """How a prior is sampled. Linear and regression priors say the same whatever stands here.

    Attributes:
        guidance_scale: of the diffusion and the autoregressive prior; 1.0 is none (the paper's finding).
        num_steps, sampler, eta: of the diffusion prior; eta is the ddim sampler's alone. "ddpm" and "analytic" are
            ancestral, with fixed variance and with that which was measured after training (the paper's).
        temperature, top_p: of the autoregressive prior; top_p keeps the likeliest codes that hold this much probability.
    """

    __pydantic_config__ = {"extra": "forbid"}

    guidance_scale: float = 1.0
    num_steps: int = 64
    sampler: SamplerName = "ddpm"
    eta: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.eta != 0.0 and self.sampler != "ddim":
            raise ValueError(f"eta is a setting of the ddim sampler; expected 0.0 with {self.sampler!r}, got {self.eta}")
        if self.temperature <= 0.0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


class Prior(Protocol):
    """From captions to raw CLIP image embeddings."""

    @property
    def noise_width(self) -> int:
        """Numbers in one row of the noise that a draw takes; 0 where nothing is drawn."""
        ...

    def draw(self, condition: TextCondition, *, num_samples: int, sampling: PriorSampling, noise: Noise) -> Tensor:
        """(B, num_samples, E). `noise` gives standard normal (B * num_samples, noise_width) at each call, a caption's rows together."""
        ...


def similarities(candidates: Tensor, text_emb: Tensor) -> Tensor:
    """Cosine of each candidate with its caption: (B, n, E), (B, E) -> (B, n)."""
    return F.cosine_similarity(candidates, text_emb[:, None, :], dim=-1)


def best_of(candidates: Tensor, text_emb: Tensor) -> Tensor:
    """The candidate most similar to the text embedding (paper, section 2.2): (B, n, E) -> (B, E)."""
    chosen = similarities(candidates, text_emb).argmax(dim=1)
    return candidates[torch.arange(len(candidates), device=candidates.device), chosen]
