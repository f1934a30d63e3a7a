"""Noise schedules in float64, and their respacing to fewer sampling steps (Nichol & Dhariwal 2021, arXiv 2102.09672)."""

from collections.abc import Sequence
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
    return respace_sections(schedule, (num_sample_steps,))


def respace_sections(schedule: Schedule, steps: Sequence[int]) -> Schedule:
    """Keeps steps[n] evenly spaced steps of the nth of as many equal sections, those of least noise first.

    The first and last of each section are among them; of a section that keeps one, its last. So (27,) is `respace`, and
    (10, 10, 3, 2, 2) the schedule of GLIDE's upsampler, which is thought to be the paper's 27 steps. (GLIDE takes 997 in
    the place of 999, where its network, which predicts eps, sees next to no signal; that is left out here.)

    Raises:
        ValueError: a section keeps none, or more than it has.
    """
    ends = np.linspace(0, len(schedule), len(steps) + 1).round().astype(np.int64)
    kept: list[int] = []
    for num, begin, end in zip(steps, ends[:-1], ends[1:], strict=True):
        if not 1 <= num <= end - begin:
            raise ValueError(f"each section of {len(schedule)} steps keeps at least 1, and at most the {end - begin} that it has, got {num}")
        last = int(end) - 1
        kept += [last] if num == 1 else np.linspace(begin, last, num).round().astype(np.int64).tolist()
    chosen = torch.tensor(kept)
    return Schedule(schedule.alphas_cumprod[chosen], schedule.timesteps[chosen])
