"""The order of training, shuffled and exact to resume, and arrays as the tensors that models take.

The order is a function of (seed, epoch), so batch n is the same whoever asks for it and whenever, and each sample comes
once an epoch; captions of like length may be put in the same batch, which saves padding.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unclip.data.store import Ragged

BUCKETED_BATCHES = 16  # batches that are sorted by length together: enough to save most of the padding, few enough to stay random


class Piece(NamedTuple):
    """One of equal pieces that every batch is cut into: its number, and how many there are."""

    number: int = 0
    of: int = 1


WHOLE = Piece()


class EpochOrder:
    """The endless sequence of row numbers: every epoch all rows once, in an order drawn from (seed, epoch).

    With `lengths` (n,), rows of like length stand in the same batch of `batch_size`, so that little is padded.
    """

    def __init__(self, num_rows: int, seed: int, *, batch_size: int = 1, lengths: np.ndarray | None = None) -> None:
        self._num_rows = num_rows
        self._epoch = lru_cache(maxsize=2)(lambda epoch: _epoch_order(num_rows, seed, epoch, batch_size, lengths))

    def __getitem__(self, positions: slice) -> np.ndarray:
        """The rows at positions [start, stop) of the sequence, which may cross epochs."""
        epochs = range(positions.start // self._num_rows, (positions.stop - 1) // self._num_rows + 1)
        begins = [epoch * self._num_rows for epoch in epochs]
        return np.concatenate([self._epoch(epoch)[max(0, positions.start - at) : positions.stop - at] for epoch, at in zip(epochs, begins, strict=True)])


def _epoch_order(num_rows: int, seed: int, epoch: int, batch_size: int, lengths: np.ndarray | None) -> np.ndarray:
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(num_rows)
    if lengths is None:
        return order
    # A batch that began in the epoch before ends here first; it and the last one, which ends in the next, stay as drawn.
    begin = -epoch * num_rows % batch_size
    num_whole = max(0, num_rows - begin) // batch_size
    for batch in range(0, num_whole, BUCKETED_BATCHES):
        num = min(BUCKETED_BATCHES, num_whole - batch)
        window = order[begin + batch * batch_size : begin + (batch + num) * batch_size]
        by_length = window[np.argsort(lengths[window], kind="stable")].reshape(num, batch_size)
        window[:] = by_length[generator.permutation(num)].reshape(-1)
    return order


def batches_of(num_rows: int, batch_size: int, *, seed: int, start: int, lengths: np.ndarray | None = None, piece: Piece = WHOLE) -> Iterator[np.ndarray]:
    """Endless batches of row numbers, or one piece of each, from batch number `start` on; rows of like length together where `lengths` (n,) are given."""
    return (rows for rows, _ in turns_of(num_rows, batch_size, seed=seed, start=start, lengths=lengths, piece=piece))


def turns_of(
    num_rows: int, batch_size: int, *, seed: int, start: int, lengths: np.ndarray | None = None, piece: Piece = WHOLE
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same, with the epoch that each row's turn is in: pairs of (B,) arrays."""
    order = EpochOrder(num_rows, seed, batch_size=batch_size, lengths=lengths)
    size = batch_size // piece.of
    step = start
    while True:
        first = step * batch_size + piece.number * size
        yield order[first : first + size], np.arange(first, first + size) // num_rows
        step += 1


def padded_states(states: Ragged, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Text states of differing lengths -> (B, L, S) and their mask (B, L), padded with zeros to the longest."""
    columns = np.arange(states.lengths.max())
    mask = columns < states.lengths[:, None]  # (B, L)
    real = torch.from_numpy(mask)
    out = torch.zeros(*mask.shape, states.flat.shape[1], dtype=dtype)
    out[real] = torch.from_numpy(states.flat[(states.starts[:, None] + columns)[mask]]).to(dtype)
    return out, real


def as_floats(vectors: np.ndarray) -> Tensor:
    """Float16 rows of the store -> float32."""
    return torch.from_numpy(vectors.astype(np.float32))


def as_pixels(pictures: np.ndarray | Tensor) -> Tensor:
    """(B, H, H, 3) uint8 -> (B, 3, H, H) float32 in [-1, 1], on the same device."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def as_pictures(pixels: Tensor) -> np.ndarray:
    """(B, 3, H, H) in [-1, 1] -> (B, H, H, 3) uint8; the inverse of `as_pixels`."""
    scaled = pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())
