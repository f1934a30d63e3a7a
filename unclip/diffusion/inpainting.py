"""Drawing only a part of a picture: the rest is put in, noised, at every step (RePaint, Lugmayr et al. 2022, arXiv 2201.09865)."""

import torch
from torch import Tensor

from unclip.diffusion.process import add_noise, at
from unclip.diffusion.sampling import Denoiser, Noise, ddim_step
from unclip.diffusion.schedule import Schedule


@torch.no_grad()
def inpaint_ddim(
    denoiser: Denoiser, schedule: Schedule, x_T: Tensor, known: Tensor, keep: Tensor, noise: Noise, *, eta: float = 1.0, num_resamples: int = 1
) -> Tensor:
    """Draws x0 (B, ...) that is `known` (B, ...) wherever `keep` (B, ...) is True, there bit for bit.

    At each step what is kept comes from q(x_t | known), the rest from the sampler (their algorithm 1). The two then know
    little of each other; resampling noises the step's result again and repeats the step, so that they come to agree.

    Args:
        noise: called for the known part and for what is added, each time anew.
        eta: 1 is RePaint's ancestral sampling, less has less noise of the sampler's own.
        num_resamples: how often each step is taken; 1 is without resampling (their U).
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    x = x_T
    for step in reversed(range(len(schedule))):
        i = torch.full((len(x),), step, device=x.device)
        for repeat in range(num_resamples):
            if repeat:  # q(x_t | x_{t-1}), line 9
                x = at((1 - schedule.betas).sqrt(), i, x) * x + at(schedule.betas.sqrt(), i, x) * noise()
            x = torch.where(keep, add_noise(schedule, known, i, noise()), x)
            x0 = denoiser(x, i).x0
            x = x0 if step == 0 else ddim_step(schedule, x0, x, i, noise, eta=eta)
    return torch.where(keep, known, x)
