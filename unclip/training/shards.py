"""Weights that are cut over processes (FSDP2): gathered for a checkpoint, and cut again from one."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(model: nn.Module, device: torch.device, num_processes: int) -> None:
    """Cuts a model's parameters over all processes; they are put together for each forward and backward pass."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh(device.type, (num_processes,)))


def _is_cut(value: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(value, "device_mesh")  # without its class, which takes longer to import than most commands need


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor: all of one that is not cut."""
    return value.to_local() if _is_cut(value) else value


def whole(value: Tensor) -> Tensor:
    """A tensor put together from all processes, each of which must ask for it."""
    return value.full_tensor() if _is_cut(value) else value


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, cut as `like` is."""
    if not _is_cut(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's state put together from all processes."""
    return {name: whole(value) for name, value in state.items()}


def cut_state(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole state of the same names, cut as `like` is."""
    return {name: cut_like(value, like[name]) for name, value in state.items()}


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer put together from all processes: the same content whatever their number."""
    return _mapped(optimizer.state_dict(), lambda value, number: whole(value))


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Goes on from the state of `whole_optimizer`, with as many processes as there now are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def cut(value: Tensor, number: int) -> Tensor:
        parameter = parameters[number]
        return cut_like(value, parameter) if value.shape == parameter.shape else value

    optimizer.load_state_dict(_mapped(state, cut))


def _mapped(content: Mapping[str, Any], change: Callable[[Tensor, int], Tensor]) -> dict[str, Any]:
    """An optimizer's state dict with each tensor of parameter `number` changed."""
    changed = {
        number: {name: change(value, number) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for number, entry in content["state"].items()
    }
    return {**content, "state": changed}
