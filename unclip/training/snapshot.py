"""The state of a training run on disk: written by the leader, gone on with by any number of processes."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip import checkpoint
from unclip.files import UnclipError, replacing, write_json
from unclip.training.draws import step_seed
from unclip.training.ema import Ema
from unclip.training.metrics import METRICS, Row
from unclip.training.processes import is_leader, process_number
from unclip.training.shards import cut_state, load_optimizer, whole_optimizer, whole_state

KEPT_CHECKPOINTS = 2
BAD_BATCH = "bad-batch"


@dataclass(frozen=True)
class Trained:
    """What a step changes."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    ema: Ema

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            UnclipError: it does not fit the model.
        """
        self._load_weights(folder / checkpoint.MODEL)
        for number, decay in enumerate(self.ema.states):
            state = checkpoint.read_tensors(folder / _ema_file(number, decay))
            self.ema.load(decay, cut_state(state, self.ema.states[decay]))
        for optimizer, state in zip(self.optimizers, checkpoint.read_optimizer(folder)["optimizers"], strict=True):
            load_optimizer(optimizer, state)

    def begin_with(self, folder: Path) -> None:
        """Takes the averaged weights of another run's checkpoint, for the model and every average of it.

        Raises:
            UnclipError: they do not fit the model.
        """
        self._load_weights(folder / checkpoint.EMA)
        for decay in self.ema.states:
            self.ema.load(decay, self.model.state_dict())

    def _load_weights(self, path: Path) -> None:
        whole, own = checkpoint.read_tensors(path), self.model.state_dict()
        if {name: value.shape for name, value in whole.items()} != {name: value.shape for name, value in own.items()}:
            raise UnclipError(f"{path} does not fit the model that its config describes; remove its folder and train again")
        self.model.load_state_dict(cut_state(whole, own))

    def write(self, run: Path, step: int, *, config: Mapping[str, Any], samples: int, metrics: Path) -> None:
        """Writes the checkpoint of a step and removes old ones. All processes must call it; the leader writes."""
        model = whole_state(self.model.state_dict())
        averages = [(_ema_file(number, decay), whole_state(state)) for number, (decay, state) in enumerate(self.ema.states.items())]
        optimizers = [whole_optimizer(optimizer) for optimizer in self.optimizers]
        if not is_leader():
            return
        checkpoint.write_checkpoint(
            checkpoint.step_folder(run, step),
            config=config,
            model=model,
            ema=averages[0][1],
            other_emas=dict(averages[1:]),
            optimizer={"optimizers": optimizers},
            state={"step": step, "samples": samples},
            extra=metrics,
        )
        checkpoint.keep_checkpoints(run, KEPT_CHECKPOINTS)


def _ema_file(number: int, decay: float) -> str:
    return checkpoint.EMA if number == 0 else checkpoint.other_ema(decay)


def resume(run: Path, trained: Trained) -> tuple[int, list[Row]]:
    """Goes on from the newest checkpoint of a run, if there is one: the steps done, and the metrics so far."""
    steps = checkpoint.steps_of(run)
    if not steps:
        return 0, []
    folder = checkpoint.step_folder(run, steps[-1])
    trained.load(folder)
    return steps[-1], pq.read_table(folder / METRICS).to_pylist()


def whence(run: Path, path: str) -> Path:
    """The checkpoint that `warm_start` of the run in a folder names; of another run's folder the newest.

    Raises:
        UnclipError: there is none.
    """
    named = Path(os.path.normpath(run / path)) if path.startswith("..") else Path(path)
    steps = checkpoint.steps_of(named)
    folder = checkpoint.step_folder(named, steps[-1]) if steps else named
    if not (folder / checkpoint.CONFIG).is_file():
        raise UnclipError(f"warm_start must name a checkpoint or the folder of a run, but {named} is neither")
    return folder


def warm_start(folder: Path, trained: Trained, *, kind: str, network: Mapping[str, Any]) -> None:
    """Begins with the weights of a checkpoint.

    Raises:
        UnclipError: it is of another kind or network.
    """
    theirs = checkpoint.read_config(folder, kind)["network"]
    ours = dict(network)
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if differing:
        shown = "; ".join(f"{name} is {theirs.get(name)!r} there, {ours.get(name)!r} here" for name in differing)
        raise UnclipError(f"warm_start needs the weights of the same network, but in {folder} {shown}")
    trained.begin_with(folder)


def write_bad_batch(run: Path, batch: Any, *, seed: int, step: int, loss: float, gradient_norm: float) -> Path:
    """Keeps this process's piece of the batch whose loss is not finite, and beside it what else the step was made of; `step` counts from 0."""
    path = run / f"{BAD_BATCH}{'' if is_leader() else f'-{process_number()}'}.safetensors"
    tensors = {"batch": torch.as_tensor(batch)} if isinstance(batch, (Tensor, np.ndarray)) else batch.tensors()
    with replacing(path) as aside:
        save_file({name: value.contiguous() for name, value in tensors.items()}, aside)
    numbers = {name: value if math.isfinite(value) else str(value) for name, value in {"loss": loss, "gradient_norm": gradient_norm}.items()}
    write_json(path.with_suffix(".json"), {"step": step + 1, "seed": seed, "draws_seed": step_seed(seed, step), **numbers})
    return path
