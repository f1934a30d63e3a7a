"""Training pictures: read from the shards as they are wanted, joined by key with the embedding store, cropped and flipped.

What is held for a picture is where it lies, about 30 bytes; its embeddings stay in the mapped training cache. A batch is
a function of the rows and epochs that it is asked for, so it is the same whichever process reads it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from unclip.data.cache import only_builder, open_pairs
from unclip.data.loader import WHOLE, Piece, padded_states, turns_of
from unclip.data.manifest import runtime
from unclip.data.shard_index import FOLDER, PictureReader, Places, open_index
from unclip.data.shards import Window, decode
from unclip.data.store import Ragged, iter_part, part_paths
from unclip.data.stream import read_ahead
from unclip.files import UnclipError
from unclip.progress import progress

CHANCES = 1_720_201  # a stream of random numbers of its own, beside that of the order, which begins with the seed


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How training pictures are read.

    Attributes:
        flip: mirror every other picture, left and right exchanged.
        unflipped: words that say which side is which, in the language of the captions; a picture whose caption has a word
            that begins with one of them is never mirrored.
        num_workers: processes that decode ahead of the model; 0 decodes in the training process.
        reading: the embeddings from the mapped cache, or straight from the Parquet store into memory.
    """

    __pydantic_config__ = {"extra": "forbid"}

    flip: bool = False
    unflipped: tuple[str, ...] = ("left", "right")
    num_workers: int = runtime(0)
    reading: Literal["cache", "store"] = runtime("cache")

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")
        if not all(word.strip() == word and word for word in self.unflipped):
            raise ValueError(f"unflipped must hold words without spaces around them, got {list(self.unflipped)}")


@dataclass(frozen=True)
class PictureBatch:
    """Pictures with what CLIP says of them and their captions. Vectors are float16 as stored, float32 after `to`.

    Attributes:
        rows: (B,) int64, their numbers among the training pictures.
        pictures: (B, H, H, 3) uint8.
        image_emb, text_emb: (B, E), raw.
        text_tokens, text_mask: (B, L, S) and (B, L) True = real token, as long as the longest caption; None where
            they were not asked for.
    """

    rows: Tensor
    pictures: Tensor
    image_emb: Tensor
    text_emb: Tensor
    text_tokens: Tensor | None
    text_mask: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Self:
        """Some of the rows, captions cut to their longest."""
        mask = None if self.text_mask is None else self.text_mask[part]
        length = 0 if mask is None else int(mask.sum(dim=1).max())
        tokens = None if self.text_tokens is None else self.text_tokens[part, :length]
        rest = (self.rows[part], self.pictures[part], self.image_emb[part], self.text_emb[part])
        return type(self)(*rest, tokens, None if mask is None else mask[:, :length])

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def pin_memory(self) -> Self:
        """The same in memory that a GPU copies from without waiting."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})

    def to(self, device: torch.device) -> Self:
        """The same on a device, vectors as float32. From pinned memory nobody waits for the copy."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self.tensors().items()}
        return replace(self, **{name: value.float() if value.is_floating_point() else value for name, value in moved.items()})


@dataclass(frozen=True)
class Pictures:
    """The training pictures of one split, on disk.

    Attributes:
        places: where the n pictures lie.
        store_rows: (n,) the row of each among the split's rows of the store.
        may_flip: (n,) bool.
        image_emb, text_emb, text_tokens: of the split's rows, mapped; text_tokens is None where they were not asked for.
        rejected: how many rows and pictures were left out, by reason.
        image_size, window_side: the picture is scaled to the first, and of that a window of the second is taken.
        seed: of the order, the windows and the flips.
    """

    places: Places
    store_rows: np.ndarray
    may_flip: np.ndarray
    image_emb: np.ndarray
    text_emb: np.ndarray
    text_tokens: Ragged | None
    rejected: Mapping[str, int]
    image_size: int
    window_side: int
    seed: int

    def __len__(self) -> int:
        return len(self.places)

    def batches(self, batch_size: int, *, start: int, piece: Piece = WHOLE, num_workers: int = 0, pin: bool = False) -> Iterator[PictureBatch]:
        """Endless batches, or one piece of each, from batch number `start` on; each picture comes once an epoch.

        Args:
            num_workers: processes that read ahead; the batches are the same whatever their number.
            pin: whether the batches are to lie in pinned memory.

        Raises:
            UnclipError: a picture can't be read, or a worker died. It comes with the batch that it concerns.
        """
        turns = turns_of(len(self), batch_size, seed=self.seed, start=start, piece=piece)
        return read_ahead(turns, lambda: _Reading(self), num_workers=num_workers, pin=pin)


class _Reading:
    """Reads batches of pictures in one process; called with (B,) rows and the epoch of each."""

    def __init__(self, pictures: Pictures) -> None:
        self._of, self._encoded = pictures, PictureReader(pictures.places)

    def __call__(self, turn: tuple[np.ndarray, np.ndarray]) -> PictureBatch:
        of, (rows, epochs) = self._of, turn
        pictures = np.stack([self._picture(int(row), int(epoch)) for row, epoch in zip(rows, epochs, strict=True)])
        at = of.store_rows[rows]
        tokens, mask = padded_states(of.text_tokens.take(at), torch.float16) if of.text_tokens is not None else (None, None)
        vectors = (torch.from_numpy(of.image_emb[at]), torch.from_numpy(of.text_emb[at]))
        return PictureBatch(torch.from_numpy(rows), torch.from_numpy(pictures), *vectors, tokens, mask)

    def _picture(self, row: int, epoch: int) -> np.ndarray:
        of = self._of
        window, flips = chances(of.seed, epoch, row, image_size=of.image_size, window_side=of.window_side, may_flip=bool(of.may_flip[row]))
        try:
            picture = decode(self._encoded(row), of.image_size, window)
        except (OSError, SyntaxError, ValueError) as error:  # as Pillow says that a picture is broken
            raise UnclipError(f"{of.places.tar(row)}: the picture {of.places.key(row)} can't be decoded ({str(error)[:200]}); run `unclip verify`") from None
        return picture[:, ::-1] if flips else picture


def chances(seed: int, epoch: int, row: int, *, image_size: int, window_side: int, may_flip: bool) -> tuple[Window, bool]:
    """The window of a picture in an epoch, and whether it is mirrored: functions of (seed, epoch, row)."""
    if window_side == image_size and not may_flip:
        return Window(0, 0, image_size), False
    generator = np.random.default_rng([CHANCES, seed, epoch, row])
    left, top = generator.integers(0, image_size - window_side + 1, 2).tolist()
    return Window(left, top, window_side), may_flip and bool(generator.integers(2))


def open_pictures(
    shards: Path, store: Path, config: PictureConfig, *, split: str, image_size: int, text_tokens: bool, seed: int, crop: float = 1.0
) -> Pictures:
    """The pictures of one split, joined with the store's rows by key.

    A picture without an embedding, or an embedding without a picture, is left out and counted; nothing shifts.

    Args:
        crop: the side of the window that is trained on, as a share of `image_size`.

    Raises:
        UnclipError: a shard is not what its record says, or nothing is left.
    """
    window_side = round(image_size * crop)
    if not 0 < window_side <= image_size:
        raise UnclipError(f"crop must leave at least one pixel of {image_size} and at most all, got {crop}")
    pairs = open_pairs(store, split=split, text_tokens=text_tokens, reading=config.reading)
    places, store_rows, rejected = _join(shards, store, split)
    if len(places) == 0:
        raise UnclipError(f"no picture in {shards} has its key in {store} with the split {split!r}; run `unclip embed` on these shards")
    may_flip = flippable(pairs.captions[store_rows], config.unflipped) if config.flip else np.zeros(len(places), bool)
    return Pictures(
        places, store_rows, may_flip, pairs.image_emb, pairs.text_emb, pairs.text_tokens, rejected,
        image_size=image_size, window_side=window_side, seed=seed,
    )  # fmt: skip


def flippable(captions: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """(n,) bool: whether a caption is free of words that begin with one of these, case aside.

    Only Latin letters before it make a word another one ("bright" has no "right" in it): not all scripts put spaces
    between words.
    """
    sides = re.compile(rf"(?<![A-Za-zÀ-ɏ])(?:{'|'.join(map(re.escape, words))})", re.IGNORECASE) if words else None
    return np.array([sides is None or sides.search(caption) is None for caption in captions], bool)


def _join(shards: Path, store: Path, split: str) -> tuple[Places, np.ndarray, dict[str, int]]:
    """Where the pictures of a split's rows lie, the rows that have one, and how many on either side were left out for which reason."""
    parts = {path.stem: path for path in part_paths(store)}
    names = sorted(parts.keys() | {path.stem for path in shards.glob("*.tar")})
    found: list[list[np.ndarray]] = []
    row, unembedded, missing = 0, 0, 0
    with only_builder(shards / FOLDER), progress("shards", len(names), unit="shard") as bar:
        for number, name in enumerate(names):
            index = open_index(shards, name) if (shards / f"{name}.tar").exists() else None
            held, splits = _keys(parts[name]) if name in parts else (np.zeros(0, object), np.zeros(0, object))
            wanted = held[splits == split]
            if index is None:
                missing += len(wanted)
            else:
                at = pc.index_in(pa.array(wanted, pa.string()), value_set=index["key"]).fill_null(-1).to_numpy(zero_copy_only=False)
                has = np.flatnonzero(at >= 0)
                missing += len(wanted) - len(has)
                unembedded += len(index) - int(pc.sum(pc.is_in(index["key"], value_set=pa.array(held, pa.string()))).as_py() or 0)
                columns = [index[column].to_numpy()[at[has]] for column in ("offset", "size", "checksum")]
                found.append([np.full(len(has), number, np.int32), *columns, row + has])
            row += len(wanted)
            bar.advance()
    joined = [np.concatenate(column) for column in zip(*found, strict=True)] if found else [np.zeros(0, np.int64)] * 5
    rejected = {"embedding missing": unembedded, "image missing": missing}
    places = Places(shards, tuple(names), *joined[:4])
    return places, joined[4], {reason: count for reason, count in rejected.items() if count}


def _keys(part: Path) -> tuple[np.ndarray, np.ndarray]:
    batches = list(iter_part(part, ["key", "split"]))
    return np.concatenate([batch["key"] for batch in batches]), np.concatenate([batch["split"] for batch in batches])
