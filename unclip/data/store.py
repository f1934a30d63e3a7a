"""Reading the embedding store: batches of columns as arrays, or the rows of one split in memory.

Once `select` has been over a store, whoever reads it here gets the rows that it kept, each in the split that it gave it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unclip.data.manifest import finished_manifest, read_manifest, read_part
from unclip.data.plain import Chunk, as_float32, plain_columns, plain_vectors, read_chunks
from unclip.data.selection import only_selected, selected_rows
from unclip.files import UnclipError, fingerprint
from unclip.layout import SELECTED


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


def normalised(vectors: np.ndarray) -> np.ndarray:
    """(n, E) of any float type -> unit rows in float32."""
    wide = as_float32(vectors)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def iter_batches(
    store: Path, columns: Sequence[str], *, batch_size: int = 8192, parts: Sequence[str] | None = None, selected: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """Streams columns over all parts in order, or over those named, page checksums verified.

    With `selected` False rows and splits are those of the parts, whatever `select` says of them.

    Raises:
        UnclipError: a part is broken or lacks a column, or came after the last `select`.
    """
    for path in part_paths(store):
        if parts is None or path.stem in parts:
            yield from iter_part(path, columns, batch_size=batch_size, selected=selected)


def iter_part(path: Path, columns: Sequence[str], *, batch_size: int = 8192, selected: bool = True) -> Iterator[dict[str, np.ndarray]]:
    """The same of one part."""
    rows = selected_rows(path) if selected else None
    wanted = list(columns) if rows is None else list(dict.fromkeys([*columns, "key"]))
    try:
        with pa.memory_map(str(path)) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            there = file.schema_arrow
            _require(path, there.names, wanted)
            schema = pa.schema([there.field(name) for name in wanted])
            for group, chunks in enumerate(read_chunks(source)):
                for batch in _batches(source, file, group, chunks, schema, batch_size):
                    chosen = pa.Table.from_batches([batch]) if rows is None else only_selected(batch, rows, path)
                    if len(chosen):
                        yield {name: column_array(chosen.column(name)) for name in columns}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UnclipError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); remove it and its .json, and run `unclip embed` again") from None


def _batches(
    source: pa.NativeFile, file: pq.ParquetFile, group: int, chunks: Mapping[str, Chunk], schema: pa.Schema, batch_size: int
) -> Iterator[pa.RecordBatch]:
    """A row group in batches: vectors that lie plain are taken as they lie, the rest goes through pyarrow's decoder."""
    num_rows = file.metadata.row_group(group).num_rows
    plain = {
        name: plain_vectors(source, column, num_rows, schema.field(name).type.list_size) for name, column in plain_columns(chunks, schema, schema.names).items()
    }
    others = [name for name in schema.names if name not in plain]
    decoded = file.iter_batches(batch_size=batch_size, row_groups=[group], columns=others) if others else itertools.repeat(None)
    for start, batch in zip(range(0, num_rows, batch_size), decoded, strict=False):
        rows = slice(start, start + batch_size)
        columns = [batch.column(name) if name in others else as_lists(plain[name][rows], schema.field(name).type) for name in schema.names]
        yield pa.record_batch(columns, schema=schema)


def as_lists(vectors: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    """(n, E) as an Arrow column of this type, not copied."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)


def training_rows(store: Path, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Streams columns over all parts, the rows of the training split alone."""
    for batch in iter_batches(store, ["split", *columns]):
        rows = batch["split"] == "train"
        yield {name: batch[name][rows] for name in columns}


def rows_digest(store: Path) -> str:
    """Stands for the rows that readers of a store get today: what was embedded, less what `select` dropped, in its splits.

    Raises:
        UnclipError: `embed` or `select` has not finished, or there are rows that `select` has not seen.
    """
    embedded = finished_manifest(store, "embed").digest
    if read_manifest(store / SELECTED) is None:
        return embedded
    selected = finished_manifest(store / SELECTED, "select")
    if selected.inputs["embeddings"] != embedded:
        raise UnclipError(f"the store {store} has changed since `unclip select`; run it again")
    return selected.digest


def part_digest(path: Path) -> str:
    """Stands for the rows that readers get of one part.

    Raises:
        UnclipError: it has no record, or came after the last `select`.
    """
    part = read_part(path.parent, path.stem)
    if part is None:
        raise UnclipError(f"{path} has no record {path.stem}.json, so it is not known to be whole; run `unclip embed` again")
    rows = selected_rows(path)
    dropped = [] if rows is None else rows.filter(pc.not_equal(rows["status"], "kept"))["key"].to_pylist()
    return fingerprint([part.digest, dropped]) if dropped else part.digest


def num_rows(store: Path) -> int:
    """How many rows readers of a finished store get, from the records alone."""
    manifest = read_manifest(store / SELECTED) or finished_manifest(store, "embed")
    return int(manifest.counts["kept"])


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
class Vectors:
    """What CLIP says of rows of the store, in memory or mapped from its training cache, as float16 as stored.

    Attributes:
        image_emb, text_emb: (n, E).
        text_tokens: n rows of (L, S), None where they were not read.
    """

    image_emb: np.ndarray
    text_emb: np.ndarray
    text_tokens: Ragged | None


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
