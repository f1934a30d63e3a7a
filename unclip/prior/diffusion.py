"""The diffusion prior (paper, section 2.2): a causal transformer that denoises the whitened CLIP image embedding.

Tokens: text states | text embedding | step | noised image embedding | learned query, whose output is the prediction.
The text comes first and attention is causal, so its keys and values depend neither on t nor on x_t: they are computed
once a caption (`read_text`), and every step and every draw runs three tokens (`predict`).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.diffusion.guidance import Network, guided
from unclip.diffusion.process import Prediction, to_x0
from unclip.diffusion.sampling import Denoised, Noise, make_denoiser, sample
from unclip.diffusion.schedule import Schedule, ScheduleName, make_schedule, respace
from unclip.files import UnclipError
from unclip.nn.embeddings import StepEmbedding
from unclip.nn.transformer import CausalTransformer, Prefix
from unclip.prior.caption import INIT_STD, CaptionTokens
from unclip.prior.condition import PriorSampling, TextCondition

NUM_LAST_TOKENS = 3  # step, noised embedding, query


@dataclass(frozen=True, kw_only=True)
class DiffusionPriorConfig:
    """The network of the diffusion prior and what it predicts.

    Attributes:
        max_text_tokens: longest caption in tokens; longer ones are refused.
        num_null_text: learned tokens that stand in for a hidden caption; with 0 nothing is visible in its place. Models that
            know "" as the hidden caption, such as Karlo's, have the two of "".
        self_condition: whether the network is also given its last estimate of x0 (Chen et al. 2022, arXiv 2208.04202).
        clamp: an estimate of x0 is kept within so many standard deviations (Karlo's pipeline: 5).
    """

    __pydantic_config__ = {"extra": "forbid"}

    width: int = 512
    depth: int = 6
    head_width: int = 64
    max_text_tokens: int = 77
    num_null_text: int = 0
    prediction: Prediction = "x0"
    schedule: ScheduleName = "cosine"
    num_train_steps: int = 1000
    self_condition: bool = False
    clamp: float = 5.0

    def __post_init__(self) -> None:
        if self.width % self.head_width or self.width % 2:
            raise ValueError(f"width must be even and a multiple of head_width {self.head_width}, got {self.width}")
        if not 0 <= self.num_null_text <= self.max_text_tokens:
            raise ValueError(f"num_null_text must be in [0, {self.max_text_tokens}] (max_text_tokens), got {self.num_null_text}")
        if self.clamp <= 0.0:
            raise ValueError(f"clamp must be positive, got {self.clamp}")


class DiffusionPrior(nn.Module):
    """k noised embeddings of each of B captions -> predictions, in whitened space.

    The buffers whiten: raw = whitened * emb_std + emb_mean. `eps_square`
    (num_train_steps,) is the mean square of the noise that the trained network predicts at each step, for the analytic
    sampler; zeros until it has been measured.
    """

    emb_mean: Tensor
    emb_std: Tensor
    eps_square: Tensor

    def __init__(self, config: DiffusionPriorConfig, *, emb_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.caption = CaptionTokens(
            width=width, max_text_tokens=config.max_text_tokens, emb_width=emb_width, text_width=text_width, num_null_text=config.num_null_text
        )
        self.step = StepEmbedding(width, width)
        self.noised_in = nn.Linear(2 * emb_width if config.self_condition else emb_width, width)
        self.query = nn.Parameter(torch.randn(width) * INIT_STD)
        self.positions = nn.Parameter(torch.randn(NUM_LAST_TOKENS, width) * INIT_STD)
        self.transformer = CausalTransformer(width=width, depth=config.depth, head_width=config.head_width)
        self.out = nn.Linear(width, emb_width)
        self.register_buffer("emb_mean", torch.zeros(emb_width))
        self.register_buffer("emb_std", torch.ones(emb_width))
        self.register_buffer("eps_square", torch.zeros(config.num_train_steps))

    def whiten(self, image_emb: Tensor) -> Tensor:
        """Raw image embeddings (..., E) to zero mean and unit variance a dimension."""
        return (image_emb - self.emb_mean) / self.emb_std

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        return whitened * self.emb_std + self.emb_mean

    def read_text(self, condition: TextCondition, keep: Tensor) -> Prefix:
        """The text prefix of B captions; where `keep` (B,) is False nothing of the caption is visible."""
        return self.transformer.read_prefix(*self.caption(condition, keep))

    def read_nothing(self) -> Prefix:
        """The prefix of a hidden caption in one row; all hidden captions have the same."""
        return self.transformer.read_prefix(*self.caption.hidden())

    def predict(self, x_t: Tensor, t: Tensor, prefix: Prefix, last_x0: Tensor) -> Tensor:
        """x_t (B, k, E) at steps t (B, k) after the prefix of their captions -> prediction (B, k, E).

        `last_x0` (B, k, E) is the estimate of the step before, zeros where there is none; read with self-conditioning only.
        """
        given = torch.cat([x_t, last_x0], dim=2) if self.config.self_condition else x_t
        step = self.step(t.flatten()).view(*t.shape, -1)
        tokens = torch.stack([step, self.noised_in(given), self.query.expand_as(step)], dim=2) + self.positions
        out: Tensor = self.out(self.transformer(tokens.flatten(1, 2), prefix, num_draws=t.shape[1], last_only=True))  # (B, k * 3, D) -> (B, k, E)
        return out

    def forward(self, condition: TextCondition, keep: Tensor, x_t: Tensor, t: Tensor, estimated: Tensor | None = None) -> Tensor:
        """Training: x_t (B, k, E) at steps t (B, k) -> prediction (B, k, E); the k draws share their caption's prefix.

        `estimated` (B, k) is for self-conditioning: the draws that it marks are given an estimate of x0 from a first
        pass without gradient (Chen et al. 2022, algorithm 1), the others zeros.
        """
        prefix = self.read_text(condition, keep)
        last_x0 = torch.zeros_like(x_t)
        if estimated is not None:
            with torch.no_grad():
                x0 = self.x0_of(self.predict(x_t, t, prefix, last_x0), x_t, t)
            last_x0 = torch.where(estimated[..., None], x0, last_x0)
        return self.predict(x_t, t, prefix, last_x0)

    def x0_of(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clamped x0 (B, k, E) that predictions at steps t (B, k) mean."""
        x0 = to_x0(self.schedule(), self.config.prediction, output.flatten(0, 1), x_t.flatten(0, 1), t.flatten())
        return x0.clamp(-self.config.clamp, self.config.clamp).view_as(x_t)

    def schedule(self) -> Schedule:
        """The schedule it is trained with."""
        return make_schedule(self.config.schedule, self.config.num_train_steps)

    @property
    def noise_width(self) -> int:
        """E: a draw starts as noise of the embedding's width."""
        return self.out.out_features

    @torch.no_grad()
    def draw(self, condition: TextCondition, *, num_samples: int, sampling: PriorSampling, noise: Noise) -> Tensor:
        """(B, n, E) raw image embeddings; see `Prior.draw`.

        Raises:
            UnclipError: the analytic sampler is asked for before `eps_square` has been measured.
        """
        if sampling.sampler == "analytic" and not self.eps_square.any():
            raise UnclipError(
                "the analytic sampler needs what is measured at the end of a training, and this prior holds none; use sampler ddpm, ddim or dpm++"
            )
        num = len(condition)
        prefix = self.read_text(condition, torch.ones(num, dtype=torch.bool, device=condition.text_emb.device))
        empty = self.read_nothing().expand(num)
        x_T = noise()
        last_x0 = torch.zeros_like(x_T)

        def after(text: Prefix) -> Network:
            def network(x_t: Tensor, t: Tensor) -> Tensor:
                rows = [part.view(num, num_samples, *part.shape[1:]) for part in (x_t, t, last_x0)]
                return self.predict(rows[0], rows[1], text, rows[2]).flatten(0, 1)

            return network

        schedule = respace(self.schedule(), sampling.num_steps)
        network = guided(after(prefix), after(empty), sampling.guidance_scale)
        plain = make_denoiser(network, schedule, self.config.prediction, clamp=self.config.clamp)

        def denoiser(x_t: Tensor, i: Tensor) -> Denoised:
            nonlocal last_x0
            denoised = plain(x_t, i)
            last_x0 = denoised.x0
            return denoised

        whitened = sample(sampling.sampler, denoiser, schedule, x_T, noise, eta=sampling.eta, eps_square=self.eps_square)
        return self.unwhiten(whitened).reshape(num, num_samples, -1)


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
