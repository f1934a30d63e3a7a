"""Optimizers: AdamW, or Muon for the matrices and kernels with AdamW for the rest.

Muon (Jordan 2024) steps along the orthogonalised momentum, so that all directions of a weight matrix learn at the same
speed. On the small networks and short trainings of this project it gets as far as AdamW in about half the steps.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adamw", "muon"]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan 2024: a quintic whose iteration drives all singular values near 1
NUM_ITERATIONS = 5
MUON_MOMENTUM = 0.95
MATCH_ADAMW = 0.2  # Liu et al. 2025, arXiv 2502.16982, section 2.2: gives updates of AdamW's size, so that rates carry over
MIN_SIDE = 16  # below it there are too few directions to balance; such layers read or write pixels


def orthogonalised(matrices: Tensor) -> Tensor:
    """U V^T of each matrix's singular value decomposition, roughly: (k, n, m) -> (k, n, m), singular values near 1."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + torch.finfo(x.dtype).tiny)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised. Kernels (out, in, h, w) count as matrices (out, in * h * w)."""

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}  # matrices of one shape are worked on together
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MUON_MOMENTUM)
                update = parameter.grad.lerp(momentum, MUON_MOMENTUM).flatten(1)
                alike.setdefault(tuple(update.shape), []).append((parameter, update))
            for shape, entries in alike.items():
                updates = orthogonalised(torch.stack([update for _, update in entries]))
                for (parameter, _), update in zip(entries, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * MATCH_ADAMW * max(shape) ** 0.5)


def make_optimizers(model: nn.Module, name: OptimizerName, **adamw: Any) -> list[torch.optim.Optimizer]:
    """The optimizers of a model; norms, biases and other vectors are not decayed.

    Args:
        adamw: lr, weight_decay, betas and eps of AdamW; Muon takes the first two.
    """
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    matrices = [m.weight for m in model.modules() if name == "muon" and isinstance(m, nn.Linear | nn.Conv2d) and min(m.weight.flatten(1).shape) >= MIN_SIDE]
    by_muon = [p for p in matrices if id(p) in trained]
    left = [p for p in trained.values() if id(p) not in {id(m) for m in by_muon}]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in left if p.ndim >= 2]},
        {"params": [p for p in left if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, fused=True, **adamw)]
    if by_muon:
        optimizers.append(Muon(by_muon, lr=adamw["lr"], weight_decay=adamw["weight_decay"]))
    return optimizers
