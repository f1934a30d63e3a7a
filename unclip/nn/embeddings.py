"""Sinusoidal embedding of the diffusion step, and the small network behind it."""

import math

import torch
from torch import Tensor, nn

MAX_PERIOD = 10_000.0  # Vaswani et al. 2017, section 3.5


def sinusoidal(t: Tensor, width: int) -> Tensor:
    """Cosines then sines of t at geometric frequencies: (B,) -> (B, width) float32; width must be even."""
    if width % 2:
        raise ValueError(f"width must be even, got {width}")
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(width // 2, device=t.device, dtype=torch.float32) / (width // 2))
    angles = t.to(torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class StepEmbedding(nn.Module):
    """t (B,) -> (B, out_width): sinusoids, linear, SiLU, linear."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(width, out_width), nn.SiLU(), nn.Linear(out_width, out_width))

    def forward(self, t: Tensor) -> Tensor:
        out: Tensor = self.layers(sinusoidal(t, self.width))
        return out
