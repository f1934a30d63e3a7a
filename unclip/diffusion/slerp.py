"""Spherical interpolation, of embeddings and of noise (paper, section 3.2; Shoemake 1985)."""

import torch
from torch import Tensor

NEARLY_PARALLEL = 1e-6  # sine of the angle below which the arc is its chord, to float32's last digit
NEARLY_OPPOSITE = 1e-3  # and above pi minus which no arc is shorter than another


def slerp(start: Tensor, end: Tensor, theta: float) -> Tensor:
    """Goes the share `theta` of the way from `start` to `end`, each row along its own arc.

    The direction turns evenly, and the length changes evenly from that of the one to that of the other. 0.0 gives
    `start` and 1.0 gives `end`, bit for bit.

    Args:
        start, end: (B, ...), the rows taken as vectors; none of them zero.
        theta: in [0, 1].

    Raises:
        ValueError: theta is outside, a row is zero, or two rows point in opposite directions.
    """
    if not 0.0 <= theta <= 1.0:
        raise ValueError(f"theta must be in [0, 1], got {theta}")
    if theta in (0.0, 1.0):
        return (end if theta else start).clone()
    a, b = start.flatten(1).double(), end.flatten(1).double()
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    if not (norm_a > 0).all() or not (norm_b > 0).all():
        raise ValueError("expected rows with a direction, got a row of zeros")
    a, b = a / norm_a, b / norm_b
    # the angle from both sum and difference: an arc cosine loses half the digits near 0 and pi
    omega = 2 * torch.atan2((a - b).norm(dim=1, keepdim=True), (a + b).norm(dim=1, keepdim=True))
    if (omega > torch.pi - NEARLY_OPPOSITE).any():
        raise ValueError("start and end point in opposite directions, so that no way between them is the shortest")
    sine = omega.sin()
    arc = (((1 - theta) * omega).sin() * a + (theta * omega).sin() * b) / sine.clamp_min(NEARLY_PARALLEL)
    direction = torch.where(sine > NEARLY_PARALLEL, arc, torch.lerp(a, b, theta))
    return (direction * torch.lerp(norm_a, norm_b, theta)).reshape(start.shape).to(start.dtype)
