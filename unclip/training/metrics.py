"""The numbers of a training run: the loss by noise level, the Parquet that the report reads, and a tracker for the eyes."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from unclip.files import UnclipError, fingerprint, replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.parquet"
NUM_BUCKETS = 4

Row = dict[str, float | int | None]


def loss_by_step(errors: Tensor, i: Tensor, num_steps: int, buckets: int = NUM_BUCKETS) -> dict[str, Tensor]:
    """The loss of early and late diffusion steps apart, for the further numbers of a `LossFn`.

    Args:
        errors: (B,) the loss of each row.
        i: (B,) its step, in [0, num_steps); 0 has the least noise.

    Returns:
        For each bucket of steps [low, high) "loss_t{low}_{high}": (2,) the sum of the errors in it, and their number.
    """
    edges = [num_steps * bucket // buckets for bucket in range(buckets + 1)]
    errors, i = errors.detach(), i.to(errors.device)
    found = {}
    for low, high in pairwise(edges):
        inside = ((i >= low) & (i < high)).to(errors.dtype)
        found[f"loss_t{low}_{high}"] = torch.stack([(errors * inside).sum(), inside.sum()])
    return found


def sum_and_count(value: Tensor) -> Tensor:
    """(2,) for a number of a `LossFn`: one that is a mean over the rows of its chunk counts once."""
    return value.detach() if value.shape == (2,) else torch.stack([value.detach(), torch.ones_like(value)])


class Recorder:
    """Keeps the rows of the metrics Parquet, and shows new ones to the tracker when they are written.

    Raises:
        UnclipError: the tracker is not installed.
    """

    def __init__(self, run: Path, name: Literal["tensorboard", "wandb", "none"], rows: list[Row], *, kind: str, start: int) -> None:
        self._run, self._rows, self._shown = run, rows, len(rows)
        self._tensorboard = _tensorboard(run, start) if name == "tensorboard" else None
        self._wandb = _start_wandb(run, kind) if name == "wandb" else None

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keeps the numbers after a step; one that is not a number (nothing was averaged) is left empty."""
        self._rows.append({"step": step, **{name: None if math.isnan(value) else value for name, value in numbers.items()}})

    def write(self) -> Path:
        """Writes the Parquet and shows what is new."""
        for row in self._rows[self._shown :]:
            numbers = {name: value for name, value in row.items() if value is not None and name != "step"}
            if self._tensorboard is not None:
                for name, value in numbers.items():
                    self._tensorboard.add_scalar(name, value, row["step"])
            if self._wandb is not None:
                self._wandb.log(numbers, step=row["step"])
        self._shown = len(self._rows)
        if self._tensorboard is not None:
            self._tensorboard.flush()
        with replacing(self._run / METRICS) as aside:
            pq.write_table(pa.Table.from_pylist(self._rows), aside)
        return self._run / METRICS

    def close(self) -> None:
        """Ends the tracker."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def require_tracker(name: str) -> None:
    """Raises UnclipError where a tracker that is wanted is not installed."""
    if name == "wandb":
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise UnclipError("tracker 'wandb' needs the package wandb, which is not installed; run `pip install 'unclip[wandb]'`") from None


def _start_wandb(run: Path, kind: str) -> Any:
    import wandb  # imported by those who chose it: it speaks to its server

    where = str(run.absolute())
    return wandb.init(project="unclip", group=kind, name=where, id=fingerprint(where), resume="allow", dir=where)  # a run that goes on is the same run


def _tensorboard(run: Path, start: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # 0.3 s that only a training should wait for

    return SummaryWriter(str(run / "tensorboard"), purge_step=start)
