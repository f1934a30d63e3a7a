"""DDIM inversion: the noise from which the deterministic sampler draws a given picture (Dhariwal & Nichol 2021, appendix F)."""

import torch
from torch import Tensor

from unclip.diffusion.process import add_noise, to_eps
from unclip.diffusion.sampling import Denoiser
from unclip.diffusion.schedule import Schedule


@torch.no_grad()
def invert_ddim(denoiser: Denoiser, schedule: Schedule, x0: Tensor) -> Tensor:
    """x_T (B, ...) from which `sample_ddim` with eta 0 comes back to x0 (B, ...), the better the more steps there are.

    A step of the sampler goes from i to i - 1 by what the network says at i. Its inverse would need that before x at i is
    known, and takes what it says at i - 1 instead: the two differ by less the closer the steps are. A denoiser that
    clamps x0 has no inverse; give one that doesn't.
    """
    zero = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
    # Clean data stand before the first index, where no noise can be read off them: that which is seen at the first is taken.
    seen = to_eps(schedule, denoiser(x0, zero).x0, x0, zero)
    x = add_noise(schedule, x0, zero, seen)
    for step in range(1, len(schedule)):
        i = torch.full_like(zero, step - 1)
        clean = denoiser(x, i).x0
        x = add_noise(schedule, clean, i + 1, to_eps(schedule, clean, x, i))
    return x
