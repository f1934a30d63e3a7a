"""The training cache: the vectors of one split of the embedding store as plain arrays that are mapped into memory.

It is made from the Parquet store in one pass, lies under the store's `_cache/SPLIT/` (Arrow and pandas pass over names
that begin so), and may be thrown away at any time: whoever opens it makes it again where it is missing, broken, or made
from another store.
"""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy

from unclip.data.store import (
    Pairs,
    Ragged,
    Vectors,
    emb_width,
    flat_states,
    has_text_tokens,
    iter_batches,
    offsets_of,
    read_pairs,
    require_columns,
    rows_digest,
    text_width,
)
from unclip.files import UnclipError, read_json, remove_leftovers, replacing, write_json

Reading = Literal["cache", "store"]

FOLDER = "_cache"
RECORD = "cache.json"
ROWS = "rows.parquet"
VERSION = 1
BATCH_ROWS = 1024  # held in memory while the cache is made: 120 MB at 77 states of width 768
TEXT = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("caption", pa.string(), nullable=False)])


def open_pairs(store: Path, *, split: str, text_tokens: bool, reading: Reading = "cache") -> Pairs:
    """The rows of one split for training: mapped from the cache, which is made if need be, or read from the store into memory.

    Both give the same numbers.

    Raises:
        UnclipError: the store is not finished, is damaged or has no text states where they are asked for; or the cache
            can't be written.
    """
    if reading == "store":
        return read_pairs(store, split=split, text_tokens=text_tokens)
    with _current(store, split, text_tokens=text_tokens) as folder:
        rows, vectors = pq.read_table(folder / ROWS), _vectors(folder, text_tokens=text_tokens)
    keys, captions = (rows[name].to_numpy() for name in ("key", "caption"))
    return Pairs(keys, captions, vectors.image_emb, vectors.text_emb, vectors.text_tokens)


def open_vectors(store: Path, *, split: str, text_tokens: bool, reading: Reading = "cache") -> Vectors:
    """The same without keys and captions; mapped from the cache they take no memory of their own, however many they are.

    Raises:
        UnclipError: as `open_pairs`.
    """
    if reading == "store":
        pairs = read_pairs(store, split=split, text_tokens=text_tokens)
        return Vectors(pairs.image_emb, pairs.text_emb, pairs.text_tokens)
    with _current(store, split, text_tokens=text_tokens) as folder:
        return _vectors(folder, text_tokens=text_tokens)


@contextmanager
def _current(store: Path, split: str, *, text_tokens: bool) -> Iterator[Path]:
    """Yields the folder of a split's cache, which is made first if need be; nobody makes another one meanwhile."""
    require_columns(store, ["text_tokens"] if text_tokens else [])
    digest = rows_digest(store)
    folder = store / FOLDER / split
    try:
        with only_builder(folder.parent):
            if not _fits(folder, digest):
                _build(store, folder, split, digest)
            yield folder
    except OSError as error:
        raise UnclipError(f"the training cache in {folder} can't be made ({error}); make room for it, or set reading to 'store'") from None


def cache_sizes(store: Path) -> dict[str, int]:
    """Bytes of each split's cache that stands in the store, current or not."""
    return {path.parent.name: sum(file.stat().st_size for file in path.parent.iterdir()) for path in sorted((store / FOLDER).glob(f"*/{RECORD}"))}


@contextmanager
def only_builder(caches: Path) -> Iterator[None]:
    """Waits for any other process that is making a cache here: of several that train together, one makes it."""
    caches.mkdir(parents=True, exist_ok=True)
    with (caches / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fits(folder: Path, digest: str) -> bool:
    """Whether the cache is whole and made from the store of this digest. Sizes and shapes are looked at, not every byte."""
    try:
        record = read_json(folder / RECORD)
        if (record["version"], record["embeddings"], record["split"]) != (VERSION, digest, folder.name):
            return False
        return all(entry == _entry(folder / name) for name, entry in record["files"].items())
    except (UnclipError, OSError, KeyError, TypeError, ValueError):  # not there, cut, or written by somebody else: made again
        return False


def _entry(path: Path) -> dict[str, Any]:
    """What the record says of a file: its size, and of an array its type and shape as its header has them."""
    entry: dict[str, Any] = {"bytes": path.stat().st_size}
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r")
        entry |= {"dtype": str(array.dtype), "shape": list(array.shape)}
    return entry


def _vectors(folder: Path, *, text_tokens: bool) -> Vectors:
    states = Ragged.from_offsets(_mapped(folder, "text_tokens"), np.load(folder / "offsets.npy")) if text_tokens else None
    return Vectors(_mapped(folder, "image_emb"), _mapped(folder, "text_emb"), states)


def _mapped(folder: Path, name: str) -> np.ndarray:
    array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r")
    return array


def _build(store: Path, folder: Path, split: str, digest: str) -> None:
    """One pass over the store, a batch of rows in memory, written aside and renamed when it is whole."""
    remove_leftovers(folder.parent)
    widths = {"image_emb": emb_width(store), "text_emb": emb_width(store)}
    with_states, width = has_text_tokens(store), text_width(store)
    if with_states:
        widths["text_tokens"] = width
    with replacing(folder) as aside:
        aside.mkdir()
        offsets = [np.zeros(1, np.int64)]
        with ExitStack() as open_files:
            files = {name: open_files.enter_context(AppendedArray(aside / f"{name}.npy", wide)) for name, wide in widths.items()}
            rows = open_files.enter_context(pq.ParquetWriter(aside / ROWS, TEXT, compression="zstd"))
            for batch in iter_batches(store, ["key", "caption", "split", *widths], batch_size=BATCH_ROWS):
                chosen = np.flatnonzero(batch["split"] == split)
                rows.write_table(pa.table([batch["key"][chosen], batch["caption"][chosen]], schema=TEXT))
                for name in ("image_emb", "text_emb"):
                    files[name].append(batch[name][chosen])
                if with_states:
                    states = batch["text_tokens"][chosen]
                    files["text_tokens"].append(flat_states(states, width))
                    offsets.append(offsets_of(states, width)[1:] + offsets[-1][-1:])
        if with_states:
            np.save(aside / "offsets.npy", np.concatenate(offsets))
        record = {"version": VERSION, "embeddings": digest, "split": split, "files": {path.name: _entry(path) for path in sorted(aside.iterdir())}}
        write_json(aside / RECORD, record)


class AppendedArray:
    """A .npy file of float16 (n, width) that rows are appended to: its header is written again at the end, when n is known."""

    def __init__(self, path: Path, width: int) -> None:
        self._file = path.open("wb")
        self._width, self._rows = width, 0
        self._begin = self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._file:
            self._file.seek(0)
            if self._write_header() != self._begin:
                raise AssertionError(f"the header of {self._file.name} grew; numpy leaves room for the number of rows")

    def append(self, values: np.ndarray) -> None:
        """Adds (k, width) rows."""
        self._file.write(np.ascontiguousarray(values, np.float16).data)
        self._rows += len(values)

    def _write_header(self) -> int:
        npy.write_array_header_1_0(self._file, {"descr": "<f2", "fortran_order": False, "shape": (self._rows, self._width)})
        return self._file.tell()
