"""From a network to samples: the denoiser, ancestral sampling (Ho et al. 2020) and DDIM (Song et al. 2021)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unclip.diffusion.guidance import Network
from unclip.diffusion.process import Prediction, at, posterior, to_eps, to_x0
from unclip.diffusion.schedule import Schedule

SamplerName = Literal["ddpm", "ddim"]
Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t, i) -> x0
Noise = Callable[[], Tensor]  # a fresh draw of standard normal noise, shaped like the sample


def make_denoiser(network: Network, schedule: Schedule, prediction: Prediction, *, clamp: float | None = None) -> Denoiser:
    """Turns a network into `(x_t, i) -> x0`, where i (B,) indexes the (respaced) schedule; x0 is kept in [-clamp, clamp]."""

    def denoiser(x_t: Tensor, i: Tensor) -> Tensor:
        output = network(x_t, schedule.timesteps.to(i.device)[i])
        x0 = to_x0(schedule, prediction, output, x_t, i)
        return x0 if clamp is None else x0.clamp(-clamp, clamp)

    return denoiser


@torch.no_grad()
def sample_ddpm(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, noise: Noise) -> Tensor:
    """Ancestral sampling with the posterior variance (Ho et al. 2020, algorithm 2): from x_T (B, ...) to x0."""
    x = x_T
    for step in reversed(range(len(schedule))):
        i = torch.full((len(x),), step, device=x.device)
        mean, variance = posterior(schedule, denoiser(x, i), x, i)
        x = mean + variance.sqrt() * noise() if step else mean
    return x


@torch.no_grad()
def sample_ddim(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta 0 is deterministic, eta 1 has the ancestral variance."""
    x = x_T
    before = schedule.alphas_cumprod_prev
    for step in reversed(range(len(schedule))):
        i = torch.full((len(x),), step, device=x.device)
        x0 = denoiser(x, i)
        if step == 0:
            return x0
        eps = to_eps(schedule, x0, x, i)
        variance = eta**2 * schedule.betas * (1 - before) / (1 - schedule.alphas_cumprod)
        x = at(before.sqrt(), i, x) * x0 + at((1 - before - variance).sqrt(), i, x) * eps
        if eta > 0:
            x = x + at(variance.sqrt(), i, x) * noise()
    raise AssertionError("a schedule has at least one step")


def sample(name: SamplerName, denoiser: Denoiser, schedule: Schedule, x_T: Tensor, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """Samples with the sampler of that name; `eta` is DDIM's alone."""
    if name == "ddim":
        return sample_ddim(denoiser, schedule, x_T, noise, eta=eta)
    if eta != 0.0:
        raise ValueError(f"eta is a setting of the ddim sampler; expected 0.0 with {name!r}, got {eta}")
    return sample_ddpm(denoiser, schedule, x_T, noise)
