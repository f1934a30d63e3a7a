"""Forward process, posterior, and the three ways to say the same prediction: x0, eps and v."""

from typing import Literal

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
