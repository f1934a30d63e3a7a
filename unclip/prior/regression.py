"""The regression prior (ECLIPSE, Patel et al. 2023, arXiv 2312.04655): one pass of the transformer, no noise, no steps.

Tokens: text states | text embedding | learned query, whose output is the whitened image embedding. It has one answer to a
caption, an average of its images; what a prior that draws is worth shows against it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.diffusion.sampling import Noise
from unclip.nn.transformer import CausalTransformer
from unclip.prior.caption import INIT_STD, CaptionTokens
from unclip.prior.condition import PriorSampling, TextCondition


@dataclass(frozen=True, kw_only=True)
class RegressionPriorConfig:
    """The network of the regression prior.

    Attributes:
        max_text_tokens: longest caption in tokens; longer ones are refused.
    """

    __pydantic_config__ = {"extra": "forbid"}

    width: int = 512
    depth: int = 6
    head_width: int = 64
    max_text_tokens: int = 77

    def __post_init__(self) -> None:
        if self.width % self.head_width:
            raise ValueError(f"width must be a multiple of head_width {self.head_width}, got {self.width}")


class RegressionPrior(nn.Module):
    """Captions -> whitened image embeddings (B, E); raw = whitened * emb_std + emb_mean."""

    emb_mean: Tensor
    emb_std: Tensor

    def __init__(self, config: RegressionPriorConfig, *, emb_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.caption = CaptionTokens(width=config.width, max_text_tokens=config.max_text_tokens, emb_width=emb_width, text_width=text_width)
        self.query = nn.Parameter(torch.randn(config.width) * INIT_STD)
        self.transformer = CausalTransformer(width=config.width, depth=config.depth, head_width=config.head_width)
        self.out = nn.Linear(config.width, emb_width)
        self.register_buffer("emb_mean", torch.zeros(emb_width))
        self.register_buffer("emb_std", torch.ones(emb_width))

    def whiten(self, image_emb: Tensor) -> Tensor:
        """Raw image embeddings (..., E) to zero mean and unit variance a dimension."""
        return (image_emb - self.emb_mean) / self.emb_std

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        return whitened * self.emb_std + self.emb_mean

    def forward(self, condition: TextCondition) -> Tensor:
        prefix = self.transformer.read_prefix(*self.caption(condition, torch.ones_like(condition.text_mask[:, 0])))
        out: Tensor = self.out(self.transformer(self.query.expand(len(condition), 1, -1), prefix)[:, 0])
        return out

    @property
    def noise_width(self) -> int:
        """Nothing is drawn."""
        return 0

    @torch.no_grad()
    def draw(self, condition: TextCondition, *, num_samples: int, sampling: PriorSampling, noise: Noise) -> Tensor:
        """The one answer to each caption, as often as was asked: (B, n, E)."""
        return self.unwhiten(self(condition))[:, None].expand(-1, num_samples, -1)


def load_regression_prior(folder: Path, *, device: str = "cpu") -> RegressionPrior:
    """The EMA weights of a checkpoint, frozen.

    Raises:
        UnclipError: the folder is no checkpoint of a regression prior, or its weights do not fit its config.
    """
    network = checkpoint.read_config(folder, "prior-regression")["network"]
    widths = {name: network.pop(name) for name in ("emb_width", "text_width")}
    model = RegressionPrior(RegressionPriorConfig(**network), **widths)
    checkpoint.load_weights(model, folder / checkpoint.EMA)
    return model.to(device).eval().requires_grad_(False)
