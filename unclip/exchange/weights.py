"""Weights of other software, read without running any of it: shapes first, numbers only once the shapes are right."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unclip.exchange.links import State, shapes_of
from unclip.files import UnclipError

SAFETENSORS = ".safetensors"
TORCH = (".bin", ".ckpt", ".pt", ".pth", ".th")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a file, of which no numbers are read.

    Raises:
        UnclipError: it is missing, broken, or holds more than tensors.
    """
    if path.suffix != SAFETENSORS:
        return shapes_of(read_weights(path))  # mapped, not read
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except FileNotFoundError:
        raise UnclipError(f"expected weights in {path}, but there is no such file") from None
    except SafetensorError as error:
        raise UnclipError(f"{path} is not a whole safetensors file ({error})") from None


def read_weights(path: Path) -> State:
    """The tensors of a file: safetensors, or a torch file that holds tensors alone.

    Raises:
        UnclipError: see `read_shapes`.
    """
    if path.suffix == SAFETENSORS:
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UnclipError(f"expected weights in {path}, but there is no such file") from None
        except SafetensorError as error:
            raise UnclipError(f"{path} is not a whole safetensors file ({error})") from None
    content = read_torch(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UnclipError(f"expected names and tensors in {path}, or a state_dict of them, got {type(state).__name__}")
    return {str(name): _plain(value, f"{path}: {name}") for name, value in state.items()}


def read_torch(path: Path) -> Any:
    """What a torch file holds; nothing but tensors and plain containers is let in, so that it can't run code.

    Raises:
        UnclipError: it is missing, broken, or holds anything else.
    """
    if not path.is_file():
        raise UnclipError(f"expected weights in {path}, but there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError:
        raise UnclipError(f"{path} holds more than tensors, and loading that could run code; expected tensors alone, save them as safetensors") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise UnclipError(f"{path} is not a whole torch file: {' '.join(str(error).split())[:200]}") from None


def _plain(value: Tensor, name: str) -> Tensor:
    """The tensor, which must not claim to be larger than what is stored of it."""
    if value.is_sparse or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UnclipError(f"{name} claims {tuple(value.shape)} numbers, but fewer are stored")
    return value


def as_float(state: Mapping[str, Tensor]) -> State:
    """In float32, which holds every number of the half precisions too."""
    return {name: value.to(torch.float32) for name, value in state.items()}


def find_weights(folder: Path, stem: str) -> Path:
    """The one file of weights in a folder whose name begins so; safetensors before torch's own format.

    Raises:
        UnclipError: there is none, or several.
    """
    for suffixes in ((SAFETENSORS,), TORCH):
        found = sorted(path for path in folder.glob(f"{stem}*") if path.suffix in suffixes)
        if len(found) > 1:
            raise UnclipError(f"expected one file {stem}*{suffixes[0]} in {folder}, got {', '.join(path.name for path in found)}; leave one there")
        if found:
            return found[0]
    raise UnclipError(f"expected weights {stem}*{SAFETENSORS} in {folder} (or {', '.join(TORCH)}), but there are none")
