"""Checkpoint folders: `config.json`, `model.safetensors`, `ema.safetensors`, `optimizer.pt`, `state.json`. Whole or absent.

Sampling uses `ema.safetensors`, the average by the first of `ema_decays`; those by further decays stand beside it as
`ema-DECAY.safetensors`, and one of them is sampled with by giving it the first one's name in a copy of the folder.

Weights load strictly and without pickle (`optimizer.pt` with `weights_only`), so that a checkpoint from a stranger can't
run code.
"""

import dataclasses
import json
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


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def other_ema(decay: float) -> str:
    """The file of an average that sampling does not use."""
    return f"ema-{decay}.safetensors"


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
    other_emas: Mapping[str, Mapping[str, Tensor]] | None = None,
    extra: Path | None = None,
) -> None:
    """Writes a checkpoint aside and renames it.

    Args:
        other_emas: averages that sampling does not use, by the names of their files.
        extra: a file that is put beside the weights under its own name.
    """
    with replacing(folder) as aside:
        aside.mkdir()
        for file, weights in {MODEL: model, EMA: ema, **(other_emas or {})}.items():
            save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, aside / file)
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
    """A config dataclass as JSON content, as `read_config` gives it back."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return content
