"""What an upsampler is trained on: crops of the training pictures and the small pictures they come with, read ahead in workers."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from unclip.data.degrade import Corruption, low_resolution
from unclip.data.loader import WHOLE, Piece, as_pixels, turns_of
from unclip.data.pictures import PictureBatch, Pictures
from unclip.data.stream import read_ahead

CORRUPTIONS = 2_750_159  # a stream of random numbers of its own, beside those of the order and of the windows


@dataclass(frozen=True)
class CropBatch:
    """Crops and what they are made from.

    Attributes:
        rows: (B,) int64, their numbers among the training pictures.
        crops: (B, S, S, 3) uint8.
        low_res: (B, 3, s, s) float32 in [-1, 1], s being S / scale.
    """

    rows: Tensor
    crops: Tensor
    low_res: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Self:
        """Some of the rows."""
        return replace(self, **{name: value[part] for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def pin_memory(self) -> Self:
        """The same in memory that a GPU copies from without waiting."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})

    def to(self, device: torch.device) -> Self:
        """The same on a device. From pinned memory nobody waits for the copy."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self.tensors().items()})


@dataclass(frozen=True)
class Crops:
    """Crops of pictures on disk, with small pictures that are corrupted with probability `prob`, each in its own way every epoch."""

    pictures: Pictures
    scale: int
    corruption: Corruption
    prob: float

    def batches(self, batch_size: int, *, start: int, piece: Piece = WHOLE, num_workers: int = 0, pin: bool = False) -> Iterator[CropBatch]:
        """Endless batches, or one piece of each, as `Pictures.batches` has them; they depend on neither the workers nor the pieces.

        Raises:
            UnclipError: a picture can't be read, or a worker died. It comes with the batch that it concerns.
        """
        turns = turns_of(len(self.pictures), batch_size, seed=self.pictures.seed, start=start, piece=piece)
        return read_ahead(turns, lambda: _Cropping(self), num_workers=num_workers, pin=pin)


class _Cropping:
    """Reads batches of crops in one process; called with (B,) rows and the epoch of each."""

    def __init__(self, crops: Crops) -> None:
        self._of, self._read = crops, crops.pictures.reading()

    def __call__(self, turn: tuple[np.ndarray, np.ndarray]) -> CropBatch:
        of = self._of
        batch: PictureBatch = self._read(turn)
        generators = [np.random.default_rng([CORRUPTIONS, of.pictures.seed, int(epoch), int(row)]) for row, epoch in zip(*turn, strict=True)]
        return CropBatch(batch.rows, batch.pictures, low_resolution(as_pixels(batch.pictures), of.scale, of.corruption, prob=of.prob, generators=generators))
