"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) as a wrapper around the network."""

from collections.abc import Callable

import torch
from torch import Tensor

from unclip.diffusion.process import join_output, split_output

Network = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> output


def guided(conditional: Network, unconditional: Network, guidance_scale: float) -> Network:
    """The network that says unconditional + guidance_scale * (conditional - unconditional); 1.0 is no guidance.

    Where the variance is learned, guidance acts on the mean half alone, and the variance stays the conditional one.
    """
    if guidance_scale == 1.0:
        return conditional

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        to, variance = split_output(conditional(x_t, t), x_t)
        away, _ = split_output(unconditional(x_t, t), x_t)
        return join_output(torch.lerp(away, to, guidance_scale), variance)

    return network


def guided_by_two(both: Network, first: Network, neither: Network, scales: tuple[float, float]) -> Network:
    """Guidance by two conditions with a scale each: neither + a * (first - neither) + b * (both - first).

    The second condition is judged by what it adds to the first (as in InstructPix2Pix, arXiv 2211.09800, section 3.2),
    so that its scale does not strengthen what the first says already. Scales of 1 are the network `both` itself, equal
    ones `guided` towards both from neither, and b = 0 `guided` by the first condition alone: a network that cancels out
    is not called. A learned variance is that of all conditions that count.
    """
    a, b = scales
    if b == 0.0:
        return guided(first, neither, a)
    if a == b:
        return guided(both, neither, a)
    if a == 1.0:
        return guided(both, first, b)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        all_of_it, variance = split_output(both(x_t, t), x_t)
        part, _ = split_output(first(x_t, t), x_t)
        none, _ = split_output(neither(x_t, t), x_t)
        return join_output(none + a * (part - none) + b * (all_of_it - part), variance)

    return network
