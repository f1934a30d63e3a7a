"""Muon against the singular value decomposition, and which parameters go to which optimizer."""

import pytest
import torch
from torch import nn

from unclip.training.optim import Muon, make_optimizers, orthogonalised

ADAMW = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16)])
def test_orthogonalising_keeps_the_directions_and_levels_their_lengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(torch.stack([matrix, 3 * matrix]))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)  # whatever its length, and whatever stands beside it
    found = found[0]
    lengths = (u.T @ found @ vh.T).diagonal()
    assert lengths.min() > 0.6
    assert lengths.max() < 1.3
    torch.testing.assert_close(found, u @ torch.diag(lengths) @ vh, atol=1e-3, rtol=1e-3)


def test_a_step_is_the_orthogonalised_nesterov_momentum() -> None:
    weight = nn.Parameter(torch.randn(16, 2, 3, 3, generator=torch.Generator().manual_seed(1)))
    before, optimizer = weight.detach().clone(), Muon([weight], lr=0.01, weight_decay=0.5)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    optimizer.step()
    update = orthogonalised((weight.grad * 0.05 + 0.95 * weight.grad * 0.05).flatten(1)[None])[0].reshape(weight.shape)
    torch.testing.assert_close(weight.detach(), before * (1 - 0.01 * 0.5) - 0.01 * 0.2 * 18**0.5 * update, atol=1e-5, rtol=1e-4)


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), nn.Conv2d(3, 16, 3), nn.Conv2d(16, 3, 3), nn.LayerNorm(32))
    adamw, muon = make_optimizers(model, "muon", **ADAMW)
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(32, 16), (16, 3, 3, 3)]
    assert [tuple(p.shape) for p in adamw.param_groups[0]["params"]] == [(50, 16), (3, 16, 3, 3)]
    assert adamw.param_groups[1]["weight_decay"] == 0.0
    assert sum(len(g["params"]) for o in (adamw, muon) for g in o.param_groups) == len(list(model.parameters()))
    assert len(make_optimizers(model, "adamw", **ADAMW)) == 1


def test_a_frozen_model_part_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].requires_grad_(False)
    adamw, muon = make_optimizers(model, "muon", **ADAMW)
    assert len(muon.param_groups[0]["params"]) == 1
    assert sum(len(group["params"]) for group in adamw.param_groups) == 1
