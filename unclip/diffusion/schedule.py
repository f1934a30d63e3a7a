"""Noise schedules in float64, and their respacing to fewer sampling steps (Nichol & Dhariwal 2021, arXiv 2102.09672)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

ScheduleName = Literal["cosine", "linear"]
MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2
COSINE_OFFSET = 0.008  # Nichol & Dhariwal 2021, eq. 17
LINEAR_BETAS = (1e-4, 0.02)  # Ho et al. 2020, for a thousand steps


@dataclass(frozen=True)
class Schedule:
    """x_t = alpha_t * x0 + sigma_t * eps over a sequence of steps.

    Attributes:
        alphas_cumprod: (T,) float64, alpha_t squared, falling.
        timesteps: (T,) int64, the step that the network is told for each index; 0 is the least noise.
    """

    alphas_cumprod: torch.Tensor
    timesteps: torch.Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def alphas_cumprod_prev(self) -> torch.Tensor:
        """(T,) alphas_cumprod of the step before, 1 before the first."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @property
    def betas(self) -> torch.Tensor:
        """(T,) beta_t = 1 - alphas_cumprod_t / alphas_cumprod_{t-1}."""
        return 1.0 - self.alphas_cumprod / self.alphas_cumprod_prev

    @property
    def alpha(self) -> torch.Tensor:
        """(T,) alpha_t, the share of the clean sample."""
        return self.alphas_cumprod.sqrt()

    @property
    def sigma(self) -> torch.Tensor:
        """(T,) sigma_t, the share of the noise."""
        return (1.0 - self.alphas_cumprod).sqrt()

    @property
    def logsnr(self) -> torch.Tensor:
        """(T,) log(alpha_t^2 / sigma_t^2)."""
        return torch.log(self.alphas_cumprod) - torch.log1p(-self.alphas_cumprod)


def make_schedule(name: ScheduleName, num_train_steps: int) -> Schedule:
    """The schedule that a model is trained with: cosine (eq. 17 of Nichol & Dhariwal) or linear (Ho et al. 2020)."""
    if num_train_steps < 2:
        raise ValueError(f"num_train_steps must be at least 2, got {num_train_steps}")
    if name == "cosine":
        t = np.arange(num_train_steps + 1, dtype=np.float64) / num_train_steps
        alpha_bar = np.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)
    elif name == "linear":
        scale = 1000 / num_train_steps
        betas = np.linspace(scale * LINEAR_BETAS[0], scale * LINEAR_BETAS[1], num_train_steps, dtype=np.float64)
    else:
        raise ValueError(f"schedule must be 'cosine' or 'linear', got {name!r}")
    return Schedule(torch.from_numpy(np.cumprod(1 - betas)), torch.arange(num_train_steps))


def respace(schedule: Schedule, num_sample_steps: int) -> Schedule:
    """Keeps `num_sample_steps` evenly spaced steps, first and last among them; the network is told the original ones.

    The betas follow from the kept alphas_cumprod (Nichol & Dhariwal 2021, section 4).
    """
    if not 1 <= num_sample_steps <= len(schedule):
        raise ValueError(f"num_sample_steps must be in [1, {len(schedule)}], got {num_sample_steps}")
    last = len(schedule) - 1
    kept = [last] if num_sample_steps == 1 else np.linspace(0, last, num_sample_steps).round().astype(np.int64).tolist()
    chosen = torch.tensor(kept)
    return Schedule(schedule.alphas_cumprod[chosen], schedule.timesteps[chosen])
