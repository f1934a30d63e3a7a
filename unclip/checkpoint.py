"""Checkpoint folders: `config.json`, `model.safetensors`, `ema.safetensors`, `optimizer.pt`, `state.json`. Whole or absent.

Weights load strictly and without pickle (`optimizer.pt` with `weights_only`), so that a checkpoint from a stranger can't
run code.
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unclip.files import UnclipError, read_json, remove, replacing, sha256_file, write_json

MODEL, EMA, OPTIMIZER, CONFIG, STATE = "model.safetensors", "ema.safetensors", "optimizer.pt", "config.json", "state.json"
_STEP = re.compile(r"step-(\d{8})")


def step_folder(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / f"step-{step:08d}"


def steps_of(run: Path) -> list[int]:
    """The steps that a run has checkpoints of, rising."""
    found = (_STEP.fullmatch(path.name) for path in run.glob("step-*"))
    return sorted(int(match.group(1)) for match in found if match)


def write_checkpoint(
    folder: Path,
    *,
    config: Mapping[str, Any],
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    extra: Path | None = None,
) -> None:
    """Writes a checkpoint aside and renames it. `extra` is a file that is put beside the weights under its own name."""
    with replacing(folder) as aside:
        aside.mkdir()
        save_file({name: value.detach().cpu().contiguous() for name, value in model.items()}, aside / MODEL)
        save_file({name: value.detach().cpu().contiguous() for name, value in ema.items()}, aside / EMA)
        torch.save(optimizer, aside / OPTIMIZER)
        if extra is not None:
            shutil.copyfile(extra, aside / extra.name)
        write_json(aside / STATE, dict(state))
        write_json(aside / CONFIG, dict(config))


def keep_checkpoints(run: Path, num: int) -> None:
    """Removes all but the `num` newest checkpoints of a run."""
    for step in steps_of(run)[:-num]:
        remove(step_folder(run, step))


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """The `config.json` of a checkpoint of this kind ("prior", "decoder", ...).

    Raises:
        UnclipError: it is missing or of another kind.
    """
    config: dict[str, Any] = read_json(folder / CONFIG)
    if config.get("kind") != kind:
        raise UnclipError(f"{folder} holds a checkpoint of kind {config.get('kind')!r}, expected {kind!r}")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UnclipError: it is missing or cut short.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UnclipError(f"expected weights in {path}, but there is no such file") from None
    except SafetensorError as error:
        raise UnclipError(f"{path} is not a whole safetensors file ({error}); remove its folder and train again") from None


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads weights strictly.

    Raises:
        UnclipError: names or shapes differ from the module's.
    """
    try:
        module.load_state_dict(read_tensors(path), strict=True)
    except RuntimeError as error:
        raise UnclipError(f"{path} does not fit the model that its config describes: {' '.join(str(error).split())[:400]}") from None


def read_optimizer(folder: Path) -> dict[str, Any]:
    """The optimizer state of a checkpoint, tensors only."""
    state: dict[str, Any] = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    return state


def digest(folder: Path) -> str:
    """Stands for the weights that are used for sampling: the hash of the EMA file."""
    return sha256_file(folder / EMA)[:16]


def as_json(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON content."""
    return dataclasses.asdict(config)
