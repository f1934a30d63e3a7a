"""From a network to samples: the denoiser, ancestral sampling with fixed or analytic variance, DDIM and DPM-Solver++."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unclip.diffusion.guidance import Network
from unclip.diffusion.process import Prediction, at, log_variance, posterior, split_output, to_eps, to_x0
from unclip.diffusion.schedule import Schedule

SamplerName = Literal["ddpm", "analytic", "ddim", "dpm++"]


class Denoised(NamedTuple):
    """What a denoiser says of x_t: x0 (B, ...), and where it is learned the log of the variance of x_{t-1}, (B, ...)."""

    x0: Tensor
    log_variance: Tensor | None = None


Denoiser = Callable[[Tensor, Tensor], Denoised]  # (x_t, i)
Noise = Callable[[], Tensor]  # a fresh draw of standard normal noise, shaped like the sample


def read_output(schedule: Schedule, prediction: Prediction, output: Tensor, x_t: Tensor, i: Tensor, *, clamp: float | None = None) -> Denoised:
    """What a network's output at x_t, with or without a learned variance, means; x0 is kept in [-clamp, clamp]."""
    mean, said = split_output(output, x_t)
    x0 = to_x0(schedule, prediction, mean, x_t, i)
    variance = None if said is None else log_variance(schedule, said, i)
    return Denoised(x0 if clamp is None else x0.clamp(-clamp, clamp), variance)


def make_denoiser(network: Network, schedule: Schedule, prediction: Prediction, *, clamp: float | None = None) -> Denoiser:
    """Turns a network into a denoiser, where i (B,) indexes the (respaced) schedule; x0 is kept in [-clamp, clamp]."""

    def denoiser(x_t: Tensor, i: Tensor) -> Denoised:
        output = network(x_t, schedule.timesteps.to(i.device)[i])
        return read_output(schedule, prediction, output, x_t, i, clamp=clamp)

    return denoiser


@torch.no_grad()
def sample_ddpm(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, noise: Noise, *, eps_square: Tensor | None = None) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): from x_T (B, ...) to x0.

    The variance is the learned one, where the denoiser says it. Else it is that of q(x_{t-1} | x_t, x0), as if the
    denoiser were never wrong; with `eps_square`, the mean square of the predicted noise at each step of the training
    schedule, that of q(x_{t-1} | x_t).
    """
    x = x_T
    unsure = None if eps_square is None else analytic_variance(schedule, eps_square)
    for step in reversed(range(len(schedule))):
        i = torch.full((len(x),), step, device=x.device)
        denoised = denoiser(x, i)
        mean, variance = posterior(schedule, denoised.x0, x, i)
        if unsure is not None:
            variance = variance + at(unsure, i, x)
        elif denoised.log_variance is not None:
            variance = denoised.log_variance.exp()
        x = mean + variance.sqrt() * noise() if step else mean
    return x


def analytic_variance(schedule: Schedule, eps_square: Tensor) -> Tensor:
    """(T,) what the denoiser's doubt adds to the variance of a step (Analytic-DPM, Bao et al. 2022, arXiv 2201.06503, theorem 1).

    The variance of x0 given x_t is sigma_t^2 / alpha_t^2 * (1 - E||eps_hat||^2 / d). It can't be negative, nor larger
    than that of the data (their theorem 2), which is 1 where data are whitened.
    """
    now, before, betas = schedule.alphas_cumprod, schedule.alphas_cumprod_prev, schedule.betas
    mean_square = eps_square.cpu().to(torch.float64)[schedule.timesteps]
    of_x0 = ((1 - now) / now * (1 - mean_square)).clamp(0.0, 1.0)
    return before * (betas / (1 - now)).square() * of_x0


@torch.no_grad()
def sample_ddim(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta 0 is deterministic, eta 1 has the ancestral variance."""
    x = x_T
    for step in reversed(range(len(schedule))):
        i = torch.full((len(x),), step, device=x.device)
        x0 = denoiser(x, i).x0
        if step == 0:
            return x0
        x = ddim_step(schedule, x0, x, i, noise, eta=eta)
    raise AssertionError("a schedule has at least one step")


def ddim_step(schedule: Schedule, x0: Tensor, x_t: Tensor, i: Tensor, noise: Noise, *, eta: float) -> Tensor:
    """x at i - 1 from x_t at i > 0 and the clean sample x0 that is seen there (Song et al. 2021, eq. 12 and 16)."""
    before = schedule.alphas_cumprod_prev
    variance = eta**2 * schedule.betas * (1 - before) / (1 - schedule.alphas_cumprod)
    x = at(before.sqrt(), i, x_t) * x0 + at((1 - before - variance).sqrt(), i, x_t) * to_eps(schedule, x0, x_t, i)
    return x + at(variance.sqrt(), i, x_t) * noise() if eta > 0 else x


@torch.no_grad()
def sample_dpm(denoiser: Denoiser, schedule: Schedule, x_T: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): deterministic, second order in half the log-SNR.

    The first step is of first order, having nothing before it, and so is the step to the least noise, which is several
    times wider in log-SNR than the one before, too far to extrapolate over. The last takes x0 itself.
    """
    # in float64, and of alpha only the one stepped to: at the first step of the cosine schedule it is 5e-5
    lambdas, alpha, sigma = (values.tolist() for values in (schedule.logsnr / 2, schedule.alpha, schedule.sigma))
    x, x0_before = x_T, x_T
    last = len(schedule) - 1
    for step in range(last, 0, -1):
        x0 = denoiser(x, torch.full((len(x),), step, device=x.device)).x0
        h = lambdas[step - 1] - lambdas[step]
        data = x0
        if 1 < step < last:
            r = (lambdas[step] - lambdas[step + 1]) / h
            data = torch.lerp(x0_before, x0, 1 + 1 / (2 * r))
        x = sigma[step - 1] / sigma[step] * x - alpha[step - 1] * math.expm1(-h) * data
        x0_before = x0
    return denoiser(x, torch.zeros(len(x), dtype=torch.long, device=x.device)).x0


def sample(
    name: SamplerName, denoiser: Denoiser, schedule: Schedule, x_T: Tensor, noise: Noise, *, eta: float = 0.0, eps_square: Tensor | None = None
) -> Tensor:
    """Samples with the sampler of that name; `eta` is DDIM's alone, `eps_square` only the analytic one reads."""
    if eta != 0.0 and name != "ddim":
        raise ValueError(f"eta is a setting of the ddim sampler; expected 0.0 with {name!r}, got {eta}")
    if name == "ddim":
        return sample_ddim(denoiser, schedule, x_T, noise, eta=eta)
    if name == "dpm++":
        return sample_dpm(denoiser, schedule, x_T)
    if name == "ddpm":
        return sample_ddpm(denoiser, schedule, x_T, noise)
    if eps_square is None:
        raise ValueError("the analytic sampler needs eps_square, which is measured after training; expected (num_train_steps,) of it, got None")
    return sample_ddpm(denoiser, schedule, x_T, noise, eps_square=eps_square)
