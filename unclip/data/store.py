"""Reading the embedding store: batches of columns as arrays, or the rows of one split in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unclip.files import UnclipError


def part_paths(store: Path) -> list[Path]:
    """The parts of a store, in order.

    Raises:
        UnclipError: there are none.
    """
    paths = sorted(store.glob("[0-9]*.parquet"))
    if not paths:
        raise UnclipError(f"expected an embedding store in {store}, but it holds no part; run `unclip embed`")
    return paths


def column_array(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column as numpy: fixed-size lists as (rows, E), other lists as an object array of 1-d arrays, the rest as it is."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        return np.asarray(array.flatten().to_numpy(zero_copy_only=True)).reshape(-1, width)
    if pa.types.is_list(array.type):
        offsets, flat = array.offsets.to_numpy(), array.values.to_numpy(zero_copy_only=True)
        out = np.empty(len(array), dtype=object)
        for row in range(len(array)):
            out[row] = flat[offsets[row] : offsets[row + 1]]
        return out
    return np.asarray(array.to_numpy(zero_copy_only=False))


def iter_batches(store: Path, columns: Sequence[str], *, batch_size: int = 8192) -> Iterator[dict[str, np.ndarray]]:
    """Streams columns over all parts in order, page checksums verified.

    Raises:
        UnclipError: a part is broken or lacks a column.
    """
    for path in part_paths(store):
        try:
            with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
                _require(path, file.schema_arrow.names, columns)
                for batch in file.iter_batches(batch_size=batch_size, columns=list(columns)):
                    yield {name: column_array(batch.column(name)) for name in columns}
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UnclipError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); remove it and its .json, and run `unclip embed` again") from None


def require_columns(store: Path, columns: Sequence[str]) -> None:
    """Refuses a store without these columns, as `iter_batches` would.

    Raises:
        UnclipError: it lacks one.
    """
    path = part_paths(store)[0]
    _require(path, pq.read_schema(path).names, columns)


def _require(path: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := set(wanted) - set(there):
        raise UnclipError(f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(there)}. Embed again with it")


@dataclass(frozen=True)
class Ragged:
    """Rows of differing lengths in one array: row r is flat[starts[r] : starts[r] + lengths[r]].

    Attributes:
        flat: (total, S), in memory or mapped.
        starts, lengths: (n,) int64.
    """

    flat: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_offsets(cls, flat: np.ndarray, offsets: np.ndarray) -> "Ragged":
        """Row r lies between offsets r and r + 1, of (n + 1,)."""
        return cls(flat, offsets[:-1], np.diff(offsets))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        """(L, S), not copied."""
        return self.flat[self.starts[row] : self.starts[row] + self.lengths[row]]

    def take(self, rows: np.ndarray) -> "Ragged":
        """These rows in this order; the flat array is shared, nothing is copied."""
        return Ragged(self.flat, self.starts[rows], self.lengths[rows])


@dataclass(frozen=True)
class Pairs:
    """Rows of the store, in memory or mapped from its training cache. Vectors are float16 as stored.

    Attributes:
        keys: (n,) str; captions: (n,) str.
        image_emb, text_emb: (n, E).
        text_tokens: n rows of (L, S), None where they were not read.
    """

    keys: np.ndarray
    captions: np.ndarray
    image_emb: np.ndarray
    text_emb: np.ndarray
    text_tokens: Ragged | None

    def __len__(self) -> int:
        return len(self.keys)


def splits_of(store: Path) -> dict[str, int]:
    """How many rows each split has."""
    counts: dict[str, int] = {}
    for batch in iter_batches(store, ["split"]):
        for name, number in zip(*np.unique(batch["split"].astype(str), return_counts=True), strict=True):
            counts[str(name)] = counts.get(str(name), 0) + int(number)
    return counts


def read_pairs(store: Path, *, split: str, text_tokens: bool, limit: int | None = None) -> Pairs:
    """The rows of one split, the first `limit` of them."""
    columns = ["key", "caption", "split", "image_emb", "text_emb", *(["text_tokens"] if text_tokens else [])]
    chosen: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    rows = 0
    for batch in iter_batches(store, columns):
        mask = np.flatnonzero(batch["split"] == split)[: None if limit is None else limit - rows]
        rows += len(mask)
        for name in columns:
            chosen[name].append(batch[name][mask])
        if limit is not None and rows >= limit:
            break
    joined = {name: np.concatenate(values) for name, values in chosen.items()}
    states = _ragged(joined["text_tokens"], text_width(store)) if text_tokens else None
    return Pairs(joined["key"], joined["caption"], joined["image_emb"], joined["text_emb"], states)


def _ragged(rows: np.ndarray, width: int) -> Ragged:
    return Ragged.from_offsets(flat_states(rows, width), offsets_of(rows, width))


def flat_states(rows: np.ndarray, width: int) -> np.ndarray:
    """The states of n captions, each flat as `column_array` gives them, one after the other: (total, width)."""
    return np.concatenate([np.zeros(0, np.float16), *rows]).reshape(-1, width)


def offsets_of(rows: np.ndarray, width: int) -> np.ndarray:
    """(n + 1,) int64: the row of `flat_states` that each caption begins at, and where the last ends."""
    return np.cumsum([0, *(len(row) // width for row in rows)], dtype=np.int64)


def has_text_tokens(store: Path) -> bool:
    """Whether the captions' token states were kept."""
    return "text_tokens" in pq.read_schema(part_paths(store)[0]).names


def text_width(store: Path) -> int:
    """S, the width of the text states, from the schema's metadata."""
    return int(pq.read_schema(part_paths(store)[0]).metadata[b"text_width"])


def emb_width(store: Path) -> int:
    """E, the width of the embeddings."""
    return int(pq.read_schema(part_paths(store)[0]).field("image_emb").type.list_size)
