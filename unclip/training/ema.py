"""Exponential moving averages of a model's weights, one of which is what sampling uses."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from unclip.training.shards import own_part


class Ema:
    """Follows a module's floating-point state with several half-lives at once; the decays grow from 0 with the steps done, so that early noise is forgotten.

    Attributes:
        states: an averaged state for each decay, sharded like the module's own.
    """

    def __init__(self, module: nn.Module, decays: Sequence[float]) -> None:
        self.states = {decay: {name: value.detach().clone() for name, value in module.state_dict().items()} for decay in decays}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the weights after `step` (from 1)."""
        current = {name: own_part(value) for name, value in module.state_dict().items()}
        for wanted, state in self.states.items():
            decay = min(wanted, (1 + step) / (10 + step))
            floats: list[tuple[Tensor, Tensor]] = []
            for name, value in current.items():
                if value.is_floating_point():
                    floats.append((own_part(state[name]), value))
                else:
                    state[name].copy_(value)
            torch._foreach_lerp_([mine for mine, _ in floats], [value for _, value in floats], 1 - decay)

    def load(self, decay: float, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state that is laid out like the module's."""
        for name, value in state.items():
            own_part(self.states[decay][name]).copy_(own_part(value))
