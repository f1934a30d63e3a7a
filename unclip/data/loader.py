"""Training batches: pictures of the shards joined with the embedding store by key, shuffled, exact to resume.

The order is a function of (seed, epoch), so batch n is the same whoever asks for it and whenever, and each sample comes
once an epoch; captions of like length may be put in the same batch, which saves padding. The pictures of the split are
held in memory as bytes: 3 KB each at 32 pixels, 12 KB at 64.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unclip.data import shards
from unclip.data.manifest import read_part
from unclip.data.store import Pairs, Ragged, iter_batches, read_pairs
from unclip.files import UnclipError
from unclip.progress import progress

BUCKETED_BATCHES = 16  # batches that are sorted by length together: enough to save most of the padding, few enough to stay random


@dataclass(frozen=True)
class Joined:
    """Training rows in memory.

    Attributes:
        pictures: (n, H, H, 3) uint8.
        pairs: the same rows of the store.
        rejected: how many rows were left out, by reason.
    """

    pictures: np.ndarray
    pairs: Pairs
    rejected: Mapping[str, int]


def join_shards(shards_folder: Path, store: Path, *, image_size: int, split: str, text_tokens: bool) -> Joined:
    """Decodes the pictures of one split and joins them with the store's rows by key.

    A picture without an embedding, or an embedding without a picture, is left out and counted; nothing shifts.

    Raises:
        UnclipError: nothing is left.
    """
    pairs = read_pairs(store, split=split, text_tokens=text_tokens)
    row_of = {key: row for row, key in enumerate(pairs.keys)}
    embedded = _all_keys(store)
    pictures = np.zeros((len(pairs), image_size, image_size, 3), np.uint8)
    found = np.zeros(len(pairs), bool)
    unembedded = 0
    paths = sorted(shards_folder.glob("*.tar"))
    with progress("pictures", sum(_kept(path) for path in paths), unit="picture") as bar:
        for path in paths:
            for sample in shards.read_shard(path):
                row = row_of.get(sample.key)
                if row is not None:
                    pictures[row] = shards.decode(sample.image, image_size)
                    found[row] = True
                elif sample.key not in embedded:
                    unembedded += 1
                bar.advance()
    rows = np.flatnonzero(found)
    if len(rows) == 0:
        raise UnclipError(f"no picture in {shards_folder} has its key in {store} with the split {split!r}; run `unclip embed` on these shards")
    states = pairs.text_tokens.take(rows) if pairs.text_tokens is not None else None
    kept = Pairs(pairs.keys[rows], pairs.captions[rows], pairs.image_emb[rows], pairs.text_emb[rows], states)
    rejected = {"embedding missing": unembedded, "image missing": len(pairs) - len(rows)}
    return Joined(pictures[rows], kept, {reason: count for reason, count in rejected.items() if count})


def _kept(path: Path) -> int:
    part = read_part(path.parent, path.stem)
    if part is None:
        raise UnclipError(f"{path} has no record beside it, so it is not known to be whole; run `unclip download` again")
    return part.kept


def _all_keys(store: Path) -> set[str]:
    """Those of other splits, and of rows that `select` dropped, too."""
    return {str(key) for batch in iter_batches(store, ["key"], selected=False) for key in batch["key"]}


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


def batches_of(num_rows: int, batch_size: int, *, seed: int, start: int, lengths: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Endless batches of row numbers, from batch number `start` on; rows of like length together where `lengths` (n,) are given."""
    order = EpochOrder(num_rows, seed, batch_size=batch_size, lengths=lengths)
    step = start
    while True:
        yield order[step * batch_size : (step + 1) * batch_size]
        step += 1


def padded_states(states: Ragged) -> tuple[Tensor, Tensor]:
    """Text states of differing lengths -> (B, L, S) float32 and their mask (B, L), padded to the longest."""
    columns = np.arange(states.lengths.max())
    mask = columns < states.lengths[:, None]  # (B, L)
    real = torch.from_numpy(mask)
    out = torch.zeros(*mask.shape, states.flat.shape[1])
    out[real] = torch.from_numpy(states.flat[(states.starts[:, None] + columns)[mask]]).float()
    return out, real


def as_floats(vectors: np.ndarray) -> Tensor:
    """Float16 rows of the store -> float32."""
    return torch.from_numpy(vectors.astype(np.float32))


def as_pixels(pictures: np.ndarray) -> Tensor:
    """(B, H, H, 3) uint8 -> (B, 3, H, H) float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def as_pictures(pixels: Tensor) -> np.ndarray:
    """(B, 3, H, H) in [-1, 1] -> (B, H, H, 3) uint8; the inverse of `as_pixels`."""
    scaled = pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())
