"""Forward process, posterior, learned variance, and the three ways to say the same prediction: x0, eps and v."""

from typing import Literal

import torch
from torch import Tensor

from unclip.diffusion.schedule import Schedule

Prediction = Literal["x0", "eps", "v"]


def at(values: Tensor, i: Tensor, x: Tensor) -> Tensor:
    """values[i] in x's dtype, shaped to broadcast over x: (T,), (B,), (B, ...) -> (B, 1, ...)."""
    return values.to(x.device)[i].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def add_noise(schedule: Schedule, x0: Tensor, i: Tensor, eps: Tensor) -> Tensor:
    """q(x_t | x0): alpha_t * x0 + sigma_t * eps (Ho et al. 2020, eq. 4). x0, eps (B, ...); i (B,)."""
    return at(schedule.alpha, i, x0) * x0 + at(schedule.sigma, i, x0) * eps


def target(schedule: Schedule, prediction: Prediction, x0: Tensor, i: Tensor, eps: Tensor) -> Tensor:
    """What the network should say: x0, eps, or v = alpha_t * eps - sigma_t * x0 (Salimans & Ho 2022, section 4)."""
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return eps
    return at(schedule.alpha, i, x0) * eps - at(schedule.sigma, i, x0) * x0


def split_output(output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
    """The mean half of a network's output, shaped like x_t, and its variance half: None where the variance is not learned.

    Raises:
        ValueError: the output has neither as many channels as x_t nor twice as many.
    """
    if output.shape[1] == x_t.shape[1]:
        return output, None
    if output.shape[1] != 2 * x_t.shape[1]:
        raise ValueError(f"output must have {x_t.shape[1]} channels, or {2 * x_t.shape[1]} with a learned variance, got {output.shape[1]}")
    mean, variance = output.chunk(2, dim=1)
    return mean, variance


def join_output(mean: Tensor, variance: Tensor | None) -> Tensor:
    """The inverse of `split_output`."""
    return mean if variance is None else torch.cat([mean, variance], dim=1)


def to_x0(schedule: Schedule, prediction: Prediction, output: Tensor, x_t: Tensor, i: Tensor) -> Tensor:
    """The clean sample that an output means at x_t."""
    if prediction == "x0":
        return output
    alpha, sigma = at(schedule.alpha, i, x_t), at(schedule.sigma, i, x_t)
    if prediction == "eps":
        return (x_t - sigma * output) / alpha
    return alpha * x_t - sigma * output


def to_eps(schedule: Schedule, x0: Tensor, x_t: Tensor, i: Tensor) -> Tensor:
    """The noise that a clean sample means at x_t."""
    return (x_t - at(schedule.alpha, i, x_t) * x0) / at(schedule.sigma, i, x_t)


def posterior(schedule: Schedule, x0: Tensor, x_t: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and variance (B, 1, ...) of q(x_{t-1} | x_t, x0) (Ho et al. 2020, eq. 6 and 7)."""
    before, now, betas = schedule.alphas_cumprod_prev, schedule.alphas_cumprod, schedule.betas
    of_x0 = at(before.sqrt() * betas / (1 - now), i, x_t)
    of_x_t = at((1 - betas).sqrt() * (1 - before) / (1 - now), i, x_t)
    variance = at(betas * (1 - before) / (1 - now), i, x_t)
    return of_x0 * x0 + of_x_t * x_t, variance


def log_variance(schedule: Schedule, said: Tensor, i: Tensor) -> Tensor:
    """The log-variance (B, ...) that a learned variance means (Nichol & Dhariwal 2021, eq. 15).

    `said` (B, ...) interpolates: 1 is log beta_t, the largest that it can be, -1 the log of the posterior variance, the
    least. Outside of [-1, 1] it goes on in a straight line, as theirs does.
    """
    least, most = (at(bound, i, said) for bound in log_variance_bounds(schedule))
    share = (said + 1) / 2
    return share * most + (1 - share) * least


def log_variance_bounds(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """(T,) float64 each: the log of the posterior variance, and log beta_t.

    The posterior variance of the first step is 0; that of the second stands in for it, as in Ho et al.'s and Nichol &
    Dhariwal's code. Where there is no second step, nothing is drawn with it, and beta_t does.
    """
    before, now, betas = schedule.alphas_cumprod_prev, schedule.alphas_cumprod, schedule.betas
    variance = betas * (1 - before) / (1 - now)
    first = variance[1:2] if len(schedule) > 1 else betas[:1]
    return torch.cat([first, variance[1:]]).log(), betas.log()
