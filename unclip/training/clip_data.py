"""What a CLIP is trained on: the training pairs of the shards, preprocessed and tokenised as they are wanted."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from unclip.clip import TowerConfig, make_tokenizer, training_preprocess
from unclip.data.loader import WHOLE, Piece, turns_of
from unclip.data.shard_index import PictureReader, Places, find, indexing, open_index
from unclip.data.shards import kept_rows
from unclip.data.stream import read_ahead
from unclip.files import UnclipError
from unclip.progress import progress

KEPT_BYTES = 256 * 2**20  # of preprocessed pairs that a process keeps: a set that fits is decoded once, of a large one a part


@dataclass(frozen=True)
class PairBatch:
    """Pictures and captions as CLIP takes them.

    Attributes:
        pixels: (B, 3, H, H) preprocessed, in half precision: half as much to hand over.
        token_ids: (B, L) int64.
    """

    pixels: Tensor
    token_ids: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.pixels[part], self.token_ids[part])

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def pin_memory(self) -> Self:
        """The same in memory that a GPU copies from without waiting."""
        return type(self)(self.pixels.pin_memory(), self.token_ids.pin_memory())


@dataclass(frozen=True)
class ClipPairs:
    """The training pairs: where the pictures lie, and their captions (n,)."""

    places: Places
    captions: pa.ChunkedArray
    tower: TowerConfig

    def __len__(self) -> int:
        return len(self.places)

    def batches(self, batch_size: int, *, seed: int, start: int, piece: Piece = WHOLE, num_workers: int = 0, pin: bool = False) -> Iterator[PairBatch]:
        """Endless batches, or one piece of each, from batch number `start` on; as `Pictures.batches`."""
        turns = turns_of(len(self), batch_size, seed=seed, start=start, piece=piece)
        return read_ahead(turns, lambda: _Reading(self), num_workers=num_workers, pin=pin)


class _Reading:
    """Reads batches of pairs in one process; called with (B,) rows and the epoch of each, which changes nothing."""

    def __init__(self, pairs: ClipPairs) -> None:
        self._pairs, self._encoded = pairs, PictureReader(pairs.places)
        self._preprocess, self._tokenize = training_preprocess(pairs.tower), make_tokenizer(pairs.tower)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._room = KEPT_BYTES

    def __call__(self, turn: tuple[np.ndarray, np.ndarray]) -> PairBatch:
        pixels, token_ids = zip(*(self._pair(row) for row in turn[0].tolist()), strict=True)
        return PairBatch(torch.stack(pixels), torch.stack(token_ids))

    def _pair(self, row: int) -> tuple[Tensor, Tensor]:
        if row in self._kept:
            return self._kept[row]
        pair = self._pixels(row), self._tokenize([self._pairs.captions[row].as_py()])[0]
        size = sum(part.nbytes for part in pair)
        if size <= self._room:
            self._kept[row] = pair
            self._room -= size
        return pair

    def _pixels(self, row: int) -> Tensor:
        content = self._encoded(row)
        try:
            return self._preprocess(Image.open(io.BytesIO(content))).half()
        except (OSError, SyntaxError, ValueError) as error:  # as Pillow says that a picture is broken
            raise self._pairs.places.undecodable(row, error) from None


def open_clip_pairs(shards: Path, tower: TowerConfig) -> ClipPairs:
    """The pairs of the training split.

    Raises:
        UnclipError: a shard is not what its record says, or there is no pair.
    """
    chosen: dict[str, pa.Table] = {}
    captions: list[pa.ChunkedArray] = []
    paths = sorted(shards.glob("*.tar"))
    with indexing(shards), progress("shards", len(paths), unit="shard") as bar:
        for path in paths:
            listed = kept_rows(path)
            wanted = listed.filter(pc.equal(listed["split"], "train"))
            index = open_index(shards, path.stem)
            at = find(index, wanted["key"])
            if (at < 0).any():
                raise UnclipError(f"{path} and its .parquet disagree on their keys; run `unclip repair`")
            chosen[path.stem] = index.drop_columns("key").take(at)
            captions.append(wanted["caption"])
            bar.advance()
    places = Places.of(shards, chosen)
    if not len(places):
        raise UnclipError(f"{shards} holds no pair of the split 'train', so there is nothing to train a CLIP on")
    return ClipPairs(places, pa.chunked_array(captions, pa.string()).combine_chunks(), tower)
