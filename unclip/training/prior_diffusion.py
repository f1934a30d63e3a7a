"""The diffusion prior of the prior stage: trained on cached embeddings, then measured for the analytic sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip import checkpoint
from unclip.data.manifest import runtime
from unclip.data.store import emb_width, text_width
from unclip.diffusion.loss import steps_at
from unclip.diffusion.process import add_noise, target, to_eps
from unclip.diffusion.schedule import respace
from unclip.files import replacing
from unclip.prior.condition import TextCondition
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig, load_diffusion_prior
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.loop import train
from unclip.training.metrics import loss_by_step
from unclip.training.prior_data import PriorData, read_prior_data, set_whitening
from unclip.training.processes import is_leader

ESTIMATED_SHARE = 0.5  # Chen et al. 2022, algorithm 1
MEASURED_ROWS, MEASURED_LEVELS = 512, 64  # 64 levels are the steps of the paper's sampler
ROWS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class DiffusionPriorTraining:
    """The diffusion prior and how it is trained.

    Attributes:
        drop_prob: how often the caption is hidden, for guidance (paper, section 2.2).
        draws: noise draws that share one caption's prefix in a step; the caption's part of the work is done once for all.
            4 learns fastest by the clock (tests/benchmarks/results/prior_draws.png).
        reading: from the mapped cache, or straight from the Parquet store into memory.
    """

    __pydantic_config__ = {"extra": "forbid"}

    network: DiffusionPriorConfig = field(default_factory=DiffusionPriorConfig)
    drop_prob: float = 0.1
    draws: int = 4
    reading: Literal["cache", "store"] = runtime("cache")
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=256, weight_decay=0.06, betas=(0.9, 0.96), adam_eps=1e-6))

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, got {self.draws}")
        if not 0.0 <= self.drop_prob < 1.0:
            raise ValueError(f"drop_prob must be in [0, 1), got {self.drop_prob}")


def train_diffusion_prior(store: Path, run: Path, config: DiffusionPriorTraining) -> Path:
    """Trains on the training split of the store; returns the folder of the last checkpoint.

    Raises:
        UnclipError: the store has no text states, or captions longer than the network takes.
    """
    data = read_prior_data(store, reading=config.reading, max_text_tokens=config.network.max_text_tokens, setting="prior.network.max_text_tokens")
    torch.manual_seed(config.training.seed)
    model = DiffusionPrior(config.network, emb_width=emb_width(store), text_width=text_width(store))
    set_whitening(store, image=model, text=model.caption)

    def loss_fn(prepared: nn.Module, rows: np.ndarray, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(prepared.parameters()).device
        return diffusion_loss(prepared, model, data.condition(rows, device), data.image_emb(rows, device), draws, config)

    network = checkpoint.as_json(config.network) | {"emb_width": emb_width(store), "text_width": text_width(store)}
    folder = train(run, model=model, kind="prior-diffusion", network=network, loss_fn=loss_fn, batches=data.batches(config.training), config=config.training)
    if is_leader():
        rows = np.random.default_rng(config.training.seed).permutation(len(data))[:MEASURED_ROWS]
        add_eps_square(folder, data, rows, seed=config.training.seed, device=model.emb_mean.device)
    return folder


def diffusion_loss(
    prepared: nn.Module, model: DiffusionPrior, condition: TextCondition, image_emb: Tensor, draws: Draws, config: DiffusionPriorTraining
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The loss of a batch (paper, section 2.2, for x0), and that of early and late steps apart.

    Args:
        prepared: the model as it is wrapped for training; called once.
        image_emb: (B, E), raw.
    """
    schedule, device = model.schedule(), image_emb.device
    shape = (len(image_emb), config.draws)
    keep = draws.keep(len(image_emb), config.drop_prob)
    x0 = model.whiten(image_emb).repeat_interleave(config.draws, 0)  # (B * k, E)
    i = steps_at(schedule, draws.uniform(len(x0)), "uniform")
    eps = draws.normal(*x0.shape).to(device)
    estimated = (draws.uniform(*shape) < ESTIMATED_SHARE).to(device) if config.network.self_condition else None
    x_t, t = add_noise(schedule, x0, i, eps), schedule.timesteps[i].to(device)
    output = prepared(condition, keep.to(device), x_t.view(*shape, -1), t.view(shape), estimated).flatten(0, 1)
    errors = (output - target(schedule, config.network.prediction, x0, i, eps)).square().mean(dim=1)
    return errors.mean(), loss_by_step(errors, i, len(schedule))


def add_eps_square(folder: Path, data: PriorData, rows: np.ndarray, *, seed: int, device: torch.device) -> None:
    """Measures a checkpoint's EMA weights for the analytic sampler and puts the result into their file.

    Doing it again leaves the same file, so a kill before or after costs nothing.
    """
    weights = checkpoint.read_tensors(folder / checkpoint.EMA)
    weights["eps_square"] = measure_eps_square(load_diffusion_prior(folder, device=str(device)), data, rows, seed=seed)
    with replacing(folder / checkpoint.EMA) as aside:
        save_file(weights, aside)


@torch.no_grad()
def measure_eps_square(model: DiffusionPrior, data: PriorData, rows: np.ndarray, *, seed: int) -> Tensor:
    """(num_train_steps,) float32: E||eps_hat||^2 / E on training rows, at evenly spaced steps and interpolated between.

    The square of the noise that was put in, whose expectation is 1, is a control variate: where all is noise the two
    nearly cancel, and their small difference is what the variance is made of.
    """
    schedule, device = model.schedule(), model.emb_mean.device
    levels = respace(schedule, min(MEASURED_LEVELS, len(schedule))).timesteps
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(2, len(levels), dtype=torch.float64)
    for chunk in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
        whitened = model.whiten(data.image_emb(chunk, device))
        shape = (len(chunk), len(levels), whitened.shape[1])
        eps = torch.randn(shape, generator=generator).to(device).flatten(0, 1)
        i = levels.expand(shape[:2]).flatten()
        x_t = add_noise(schedule, whitened.repeat_interleave(len(levels), 0), i, eps).view(shape)
        t = i.to(device).view(shape[:2])
        everywhere = torch.ones_like(t, dtype=torch.bool)
        output = model(data.condition(chunk, device), everywhere[:, 0], x_t, t, everywhere if model.config.self_condition else None)
        eps_hat = to_eps(schedule, model.x0_of(output, x_t, t).flatten(0, 1), x_t.flatten(0, 1), i)
        total += torch.stack([eps_hat, eps]).double().square().mean(dim=2).view(2, *shape[:2]).sum(dim=1).cpu()
    plain, off = total[0] / len(rows), total[1] / len(rows) - 1.0
    best = (plain - off).clamp(0.0, 1.0).square()  # eps_hat holds E||eps_hat||^2 / E of eps, so this share of its square goes along with eps^2
    measured = plain - best * off
    return torch.from_numpy(np.interp(np.arange(len(schedule)), levels.numpy(), measured.numpy()).astype(np.float32))
