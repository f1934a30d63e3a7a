"""The exponential moving average of a model's weights, which is what sampling uses."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Follows a module's floating-point state. The rate grows from 0 with the steps done, so that early noise is forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the weights after `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        floats: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        for name, value in module.state_dict().items():
            (floats if value.is_floating_point() else others).append((self.state[name], value))
        torch._foreach_lerp_([mine for mine, _ in floats], [value for _, value in floats], 1 - decay)
        for mine, value in others:
            mine.copy_(value)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        for name, value in state.items():
            self.state[name].copy_(value)
