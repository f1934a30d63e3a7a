"""The autoregressive prior (paper, section 2.2): a causal transformer that says the codes of an image embedding one by one.

Tokens: text states | text embedding | start | dot product | codes, by decreasing variance. The token after the start is
the quantised dot product of image and text embedding, so that it can be drawn from the upper half of its distribution.
The paper prepends it as given and does not say which distribution is meant; here the network learns it as one more code,
so that the half is that of this caption, and not of all captions together.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.diffusion.sampling import Noise
from unclip.nn.transformer import CausalTransformer
from unclip.prior.caption import INIT_STD, CaptionTokens
from unclip.prior.codes import EmbeddingCodes
from unclip.prior.condition import PriorSampling, TextCondition

UPPER_HALF = 0.5  # the share of the dot product's distribution that is left out below; 0.5 was the best of the paper's sweep
ALMOST_ONE = 1.0 - 1e-12  # the normal CDF of a far number rounds to 1, where no bucket lies


@dataclass(frozen=True, kw_only=True)
class AutoregressivePriorConfig:
    """The network of the autoregressive prior and how embeddings become codes.

    Attributes:
        max_text_tokens: longest caption in tokens; longer ones are refused.
        num_buckets: values of a code.
        num_dot_buckets: values of the dot product's token.
        explained: share of the variance that the components must hold; with this the codes too lose under 1 %, as the paper's components do.
        max_components: if they would have to be more, training is refused.
    """

    __pydantic_config__ = {"extra": "forbid"}

    width: int = 512
    depth: int = 6
    head_width: int = 64
    max_text_tokens: int = 77
    num_buckets: int = 1024
    num_dot_buckets: int = 64
    explained: float = 0.995
    max_components: int = 512

    def __post_init__(self) -> None:
        if self.width % self.head_width:
            raise ValueError(f"width must be a multiple of head_width {self.head_width}, got {self.width}")
        for name in ("num_buckets", "num_dot_buckets"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.max_components < 1:
            raise ValueError(f"max_components must be at least 1, got {self.max_components}")
        if not 0.0 < self.explained <= 1.0:
            raise ValueError(f"explained must be in (0, 1], got {self.explained}")


class CodeLogits(nn.Module):
    """Hidden states (..., D) -> logits (..., num_buckets): a Gaussian over the buckets, and a number a bucket on top that may give it any shape.

    It starts as the standard normal. With the numbers alone each bucket must be learned from the few rows that fall into
    it: after 80 steps of 64 on 8,000 rendered shapes the codes of held-out images had a cross-entropy of 2.04 bits in units
    of a standard deviation (a normal distribution that knows nothing has 2.05), and recall@10 of the best of two draws was
    4 %; with the Gaussian 1.67 bits and 70 %.
    """

    centres: Tensor

    def __init__(self, width: int, centres: Tensor) -> None:
        super().__init__()
        self.gaussian = nn.Linear(width, 2)
        self.free = nn.Linear(width, len(centres))
        self.register_buffer("centres", centres, persistent=False)
        for layer in (self.gaussian, self.free):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        mean, log_std = self.gaussian(h).split(1, dim=-1)
        out: Tensor = self.free(h) - (self.centres - mean).square() * torch.exp(-2 * log_std) / 2
        return out


class AutoregressivePrior(nn.Module):
    """Captions and the tokens said so far -> logits of the next token."""

    def __init__(self, config: AutoregressivePriorConfig, *, emb_width: int, text_width: int, num_components: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.codes = EmbeddingCodes(emb_width, num_components, num_buckets=config.num_buckets, num_dot_buckets=config.num_dot_buckets)
        self.caption = CaptionTokens(width=width, max_text_tokens=config.max_text_tokens, emb_width=emb_width, text_width=text_width)
        self.dot_in = nn.Embedding(config.num_dot_buckets, width)
        self.code_in = nn.Embedding(config.num_buckets, width)
        self.positions = nn.Parameter(torch.randn(1 + num_components, width) * INIT_STD)  # the first is the start token
        self.transformer = CausalTransformer(width=width, depth=config.depth, head_width=config.head_width)
        self.dot_out = nn.Linear(width, config.num_dot_buckets)
        self.code_out = CodeLogits(width, self.codes.centres.clone())
        for table in (self.dot_in, self.code_in):
            nn.init.normal_(table.weight, std=INIT_STD)

    def forward(self, condition: TextCondition, keep: Tensor, dot: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the dot token (B, num_dot_buckets) and of all codes (B, num_components, num_buckets), each given what is before it.

        Args:
            keep: (B,) bool, the caption is visible.
            dot, codes: (B,) and (B, num_components), the true tokens; the last code is not read.
        """
        said = torch.cat([torch.zeros_like(self.dot_in(dot))[:, None], self.dot_in(dot)[:, None], self.code_in(codes[:, :-1])], dim=1)
        out = self.transformer(said + self.positions, self.transformer.read_prefix(*self.caption(condition, keep)))
        return self.dot_out(out[:, 0]), self.code_out(out[:, 1:])

    @property
    def noise_width(self) -> int:
        """A number for the dot token and one for each code."""
        return len(self.positions)

    @torch.no_grad()
    def draw(self, condition: TextCondition, *, num_samples: int, sampling: PriorSampling, noise: Noise) -> Tensor:
        """(B, n, E) raw image embeddings; see `Prior.draw`. Guidance, temperature and top_p concern the codes, not the dot token."""
        everyone = torch.ones(len(condition), dtype=torch.bool, device=condition.text_emb.device)
        u = torch.special.ndtr(noise().double())  # (B * n, 1 + num_components), uniform
        prefixes = [self.transformer.read_prefix(*self.caption(condition, everyone)).repeat(num_samples)]
        if sampling.guidance_scale != 1.0:
            prefixes.append(self.transformer.read_prefix(*self.caption.hidden()).repeat(len(u)))
        said = self.positions.new_zeros(len(u), 1, self.config.width)
        codes: list[Tensor] = []
        for place in range(self.noise_width):
            outs = []
            for i, prefix in enumerate(prefixes):
                out, prefixes[i] = self.transformer.extend(said + self.positions[place], prefix)
                outs.append(out[:, 0])
            if place == 0:
                token = inverse_cdf(self.dot_out(outs[0]).double().softmax(dim=-1), UPPER_HALF + (1 - UPPER_HALF) * u[:, 0])
                said = self.dot_in(token)[:, None]
            else:
                logits = self.code_out(outs[0])
                if len(outs) > 1:
                    logits = torch.lerp(self.code_out(outs[1]), logits, sampling.guidance_scale)
                codes.append(inverse_cdf(probabilities(logits, temperature=sampling.temperature, top_p=sampling.top_p), u[:, place]))
                said = self.code_in(codes[-1])[:, None]
        return self.codes.decode(torch.stack(codes, dim=1)).reshape(len(condition), num_samples, -1)


def probabilities(logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Logits (R, V) -> (R, V) float64: sharpened by a temperature under 1, then only the likeliest that together hold `top_p` (Holtzman et al. 2020)."""
    p = (logits.double() / temperature).softmax(dim=-1)
    if top_p == 1.0:
        return p
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(dim=-1) - ranked  # the first is always kept
    kept = torch.zeros_like(p).scatter(-1, order, torch.where(before < top_p, ranked, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    """The value whose share of [0, 1] holds u: (R, V) and (R,) -> (R,) int64."""
    cdf = p.cumsum(dim=-1)
    return torch.searchsorted(cdf, u.clamp(max=ALMOST_ONE)[:, None] * cdf[:, -1:], right=True)[:, 0]


def load_autoregressive_prior(folder: Path, *, device: str = "cpu") -> AutoregressivePrior:
    """The EMA weights of a checkpoint, frozen.

    Raises:
        UnclipError: the folder is no checkpoint of an autoregressive prior, or its weights do not fit its config.
    """
    network = checkpoint.read_config(folder, "prior-autoregressive")["network"]
    widths = {name: network.pop(name) for name in ("emb_width", "text_width", "num_components")}
    model = AutoregressivePrior(AutoregressivePriorConfig(**network), **widths)
    checkpoint.load_weights(model, folder / checkpoint.EMA)
    return model.to(device).eval().requires_grad_(False)
