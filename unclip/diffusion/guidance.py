"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) as a wrapper around the network."""

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> output


def guided(conditional: Network, unconditional: Network, guidance_scale: float) -> Network:
    """The network that says unconditional + guidance_scale * (conditional - unconditional); 1.0 is no guidance."""
    if guidance_scale == 1.0:
        return conditional

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(unconditional(x_t, t), conditional(x_t, t), guidance_scale)

    return network
