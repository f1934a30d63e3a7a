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

from unclip.data.cache import open_vectors
from unclip.data.loader import WHOLE, Piece, padded_states, turns_of
from unclip.data.manifest import runtime
from unclip.data.shard_index import INDEX, PictureReader, Places, find, indexing, open_index
from unclip.data.shards import Window, curated_rows, decode
from unclip.data.store import Vectors, iter_part, part_paths
from unclip.data.stream import read_ahead
from unclip.files import UnclipError
from unclip.progress import progress

TEXTS = pa.schema([pa.field("key", pa.string()), pa.field("split", pa.string()), pa.field("caption", pa.string())])
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
        if not all(word and word.strip() == word for word in self.unflipped):
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
class Joined:
    """The n pictures that have a row in the store.

    Attributes:
        places: where they lie.
        store_rows: (n,) the row of each among the split's rows of the store.
        may_flip: (n,) bool.
        rejected: how many rows and pictures were left out, by reason.
    """

    places: Places
    store_rows: np.ndarray
    may_flip: np.ndarray
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Pictures:
    """The training pictures of one split, on disk.

    Attributes:
        joined: which they are.
        vectors: of all the split's rows of the store.
        image_size, window_side: the picture is scaled to the first, and of that a window of the second is taken.
        seed: of the order, the windows and the flips.
    """

    joined: Joined
    vectors: Vectors
    image_size: int
    window_side: int
    seed: int

    def __len__(self) -> int:
        return len(self.joined.places)

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

    def reading(self) -> "_Reading":
        """What reads a batch of (rows, epoch of each) in one process, for those who make something else of it."""
        return _Reading(self)


class _Reading:
    """Reads batches of pictures in one process; called with (B,) rows and the epoch of each."""

    def __init__(self, pictures: Pictures) -> None:
        self._of, self._encoded = pictures, PictureReader(pictures.joined.places)

    def __call__(self, turn: tuple[np.ndarray, np.ndarray]) -> PictureBatch:
        (rows, epochs), vectors = turn, self._of.vectors
        pictures = np.stack([self._picture(int(row), int(epoch)) for row, epoch in zip(rows, epochs, strict=True)])
        at = self._of.joined.store_rows[rows]
        tokens, mask = padded_states(vectors.text_tokens.take(at), torch.float16) if vectors.text_tokens is not None else (None, None)
        embs = (torch.from_numpy(vectors.image_emb[at]), torch.from_numpy(vectors.text_emb[at]))
        return PictureBatch(torch.from_numpy(rows), torch.from_numpy(pictures), *embs, tokens, mask)

    def _picture(self, row: int, epoch: int) -> np.ndarray:
        of = self._of
        window, flips = chances(of.seed, epoch, row, image_size=of.image_size, window_side=of.window_side, may_flip=bool(of.joined.may_flip[row]))
        content = self._encoded(row)
        try:
            picture = decode(content, of.image_size, window)
        except (OSError, SyntaxError, ValueError) as error:  # as Pillow says that a picture is broken
            raise of.joined.places.undecodable(row, error) from None
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
    vectors = open_vectors(store, split=split, text_tokens=text_tokens, reading=config.reading)
    joined = _join(shards, store, split, config)
    if len(joined.places) == 0:
        raise UnclipError(f"no picture in {shards} has its key in {store} with the split {split!r}; run `unclip embed` on these shards")
    return Pictures(joined, vectors, image_size=image_size, window_side=window_side, seed=seed)


def flippable(captions: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """(n,) bool: whether a caption is free of words that begin with one of these, case aside.

    Only Latin letters before it make a word another one ("bright" has no "right" in it): not all scripts put spaces
    between words.
    """
    sides = re.compile(rf"(?<![A-Za-zÀ-ɏ])(?:{'|'.join(map(re.escape, words))})", re.IGNORECASE) if words else None
    return np.array([sides is None or sides.search(caption) is None for caption in captions], bool)


def _texts(part: Path, *, captions: bool) -> pa.Table:
    names = TEXTS.names if captions else TEXTS.names[:2]
    batches = list(iter_part(part, names))
    columns = [np.concatenate([np.zeros(0, object), *(batch[name] for batch in batches)]) for name in names]
    return pa.table([pa.array(column, pa.string()) for column in columns], names=names)


def _unembedded(tar: Path, part: Path | None, index: pa.Table) -> int:
    """How many pictures of a shard should have a row in the store, and have none: those that `curate` dropped should not."""
    verdicts = curated_rows(tar) if tar.exists() else None
    wanted = index["key"] if verdicts is None else verdicts.filter(pc.equal(verdicts["status"], "kept"))["key"]
    batches = [] if part is None else [batch["key"] for batch in iter_part(part, ["key"], selected=False)]
    held = np.concatenate([np.zeros(0, object), *batches])
    return int(pc.sum(pc.invert(pc.is_in(wanted.combine_chunks(), value_set=pa.array(held, pa.string())))).as_py() or 0)


def _join(shards: Path, store: Path, split: str, config: PictureConfig) -> Joined:
    """Part by part: the keys of one are in memory at a time."""
    parts = {path.stem: path for path in part_paths(store)}
    names = sorted(parts.keys() | {path.stem for path in shards.glob("*.tar")})
    chosen: dict[str, pa.Table] = {}
    store_rows, may_flip = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    begin, unembedded, missing = 0, 0, 0
    with indexing(shards), progress("shards", len(names), unit="shard") as bar:
        for name in names:
            index = open_index(shards, name) if (shards / f"{name}.tar").exists() else INDEX.empty_table()
            held = _texts(parts[name], captions=config.flip) if name in parts else TEXTS.empty_table()
            wanted = held.filter(pc.equal(held["split"], split))
            at = find(index, wanted["key"])
            has = np.flatnonzero(at >= 0)
            unembedded += _unembedded(shards / f"{name}.tar", parts.get(name), index)
            missing += len(wanted) - len(has)
            chosen[name] = index.drop_columns("key").take(at[has])
            store_rows.append(begin + has)
            may_flip.append(flippable(wanted["caption"].take(has).to_pylist(), config.unflipped) if config.flip else np.zeros(len(has), bool))
            begin += len(wanted)
            bar.advance()
    rejected = {reason: count for reason, count in {"embedding missing": unembedded, "image missing": missing}.items() if count}
    return Joined(Places.of(shards, chosen), np.concatenate(store_rows), np.concatenate(may_flip), rejected)
