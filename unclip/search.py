"""Nearest neighbours in the index: by caption, picture, key or vector, one or many at once, among all rows or some."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unclip.clip import Clip
from unclip.data.index import KEY_SCHEMA, Index
from unclip.data.picture import open_picture
from unclip.data.shards import decode, read_shard
from unclip.data.store import iter_batches
from unclip.data.tables import read_rows
from unclip.files import UnclipError
from unclip.printable import spreadsheet_cell

SHARD_DIGITS = 5  # a key begins with the name of its shard
COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    ">=": pc.greater_equal, "<=": pc.less_equal, "!=": pc.not_equal, "=": pc.equal, ">": pc.greater, "<": pc.less,
    "~": pc.match_substring_regex,
}  # fmt: skip
CONDITION = re.compile(rf"\s*(\w+)\s*({'|'.join(COMPARED)})\s*(.*?)\s*")


@dataclass(frozen=True)
class Hit:
    """One neighbour: its cosine with the query, and its row of the key table."""

    score: float
    key: str
    caption: str
    url: str
    split: str


def search(index: Index, queries: np.ndarray, k: int, *, where: Sequence[str] = ()) -> list[list[Hit]]:
    """The k nearest to each of (Q, E) raw embeddings, best first; fewer where fewer rows fulfil the conditions.

    Args:
        where: conditions on the columns of the key table, all of which must hold; see `rows_where`.

    Raises:
        UnclipError: k is not positive, the queries are of another width, or a condition can't be read.
    """
    if k < 1:
        raise UnclipError(f"k must be at least 1, got {k}")
    scores, rows = index.search(queries, k, rows=rows_where(index.keys, where) if where else None)
    columns = ["key", "caption", "url", "split"]
    hits = []
    for of_query, numbers in zip(scores, rows, strict=True):
        real = numbers >= 0
        found = index.keys.select(columns).take(pa.array(numbers[real])).to_pylist()
        hits.append([Hit(float(score), **row) for score, row in zip(of_query[real], found, strict=True)])
    return hits


def rows_where(keys: pa.Table, where: Sequence[str]) -> np.ndarray:
    """(n,) bool, the rows of which every condition holds, such as "split=train", "width>=256", "caption~red|blue" (a regular expression).

    Raises:
        UnclipError: not a condition, an unknown column, or a value that is none of the column's type.
    """
    chosen = np.ones(len(keys), bool)
    for condition in where:
        match = CONDITION.fullmatch(condition)
        if match is None:
            raise UnclipError(f"expected a condition such as split=train, width>=256 or caption~red, got {condition!r}")
        column, sign, value = match.groups()
        if column not in KEY_SCHEMA.names:
            raise UnclipError(f"a condition names one of the columns {', '.join(KEY_SCHEMA.names)}, got {column!r}")
        try:
            wanted = value if sign == "~" else pa.scalar(value).cast(KEY_SCHEMA.field(column).type)
            holds = COMPARED[sign](keys[column], wanted)
        except pa.ArrowException as error:
            raise UnclipError(f"the condition {condition!r} does not fit the column {column} ({KEY_SCHEMA.field(column).type}): {error}") from None
        chosen &= holds.to_numpy()
    return chosen


def embed_picture(clip: Clip, path: Path) -> np.ndarray:
    """The raw embedding (1, E) of a picture file.

    Raises:
        UnclipError: the file is no picture.
    """
    return clip.encode_pictures([open_picture(path)]).numpy()


def embed_captions(clip: Clip, captions: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
    """The raw embeddings (n, E) of captions."""
    chunks = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]
    return np.concatenate([clip.encode_texts(chunk).text_emb.cpu().numpy() for chunk in chunks])


def stored_embeddings(store: Path, keys: Sequence[str]) -> np.ndarray:
    """The raw image embeddings (n, E) of these keys, from the store, in their order.

    Raises:
        UnclipError: a key is not in the store.
    """
    found: dict[str, np.ndarray] = {}
    wanted, shards = set(keys), {key[:SHARD_DIGITS] for key in keys}
    for batch in iter_batches(store, ["key", "image_emb"], parts=sorted(shards)):
        for row in np.flatnonzero(np.isin(batch["key"].astype(str), sorted(wanted))):
            found[str(batch["key"][row])] = batch["image_emb"][row].astype(np.float32)
    if missing := sorted(wanted - found.keys()):
        raise UnclipError(f"{store} holds no row with the key {', '.join(missing[:5])}")
    return np.stack([found[key] for key in keys])


@dataclass(frozen=True)
class Batch:
    """Many queries from a file: a name for each of Q, and their raw embeddings (Q, E)."""

    names: list[str]
    queries: np.ndarray


def read_batch(path: Path, clip: Clip, store: Path, *, column: str) -> Batch:
    """The queries of a file: captions (.txt, one a line; or the column `caption` of a table), keys (the column `key`), or vectors (.npy, (Q, E)).

    Raises:
        UnclipError: the file does not read, or holds no query.
    """
    if path.suffix == ".npy":
        try:
            vectors = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UnclipError(f"{path} does not read as a matrix of numpy: {error}") from None
        if vectors.ndim != 2 or not len(vectors) or not np.issubdtype(vectors.dtype, np.floating):
            raise UnclipError(f"expected (Q, E) vectors of floats in {path}, got {vectors.dtype} of the shape {vectors.shape}")
        return Batch([f"vector {row}" for row in range(len(vectors))], vectors.astype(np.float32))
    if path.suffix == ".txt":
        try:
            names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UnclipError(f"{path} does not read as a text of captions: {error}") from None
    else:
        names = [value for row in read_rows(path, [column]) for value in row.values if isinstance(value, str) and value.strip()]
    if not names:
        raise UnclipError(f"expected at least one query in {path}, got none")
    return Batch(names, stored_embeddings(store, names) if column == "key" and path.suffix != ".txt" else embed_captions(clip, names))


def hit_table(names: Sequence[str], hits: Sequence[Sequence[Hit]]) -> pa.Table:
    """One row a hit: query, rank (from 1), score, key, caption, url, split."""
    rows = [
        {"query": name, "rank": rank, "score": hit.score, "key": hit.key, "caption": hit.caption, "url": hit.url, "split": hit.split}
        for name, of_query in zip(names, hits, strict=True)
        for rank, hit in enumerate(of_query, 1)
    ]
    schema = pa.schema(
        [("query", pa.string()), ("rank", pa.int32()), ("score", pa.float32()), *((name, pa.string()) for name in ("key", "caption", "url", "split"))]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def as_cells(hits: pa.Table) -> pa.Table:
    """The same for a spreadsheet, which would compute a caption that begins with "=": see `spreadsheet_cell`."""
    for place, field in enumerate(hits.schema):
        if pa.types.is_string(field.type):
            hits = hits.set_column(place, field, pa.array([spreadsheet_cell(text) for text in hits[field.name].to_pylist()], pa.string()))
    return hits


def pictures_of(shards: Path, keys: Sequence[str], size: int) -> np.ndarray:
    """The pictures of these keys from the shards, (n, size, size, 3) uint8, in the order of the keys.

    Raises:
        UnclipError: a key has no picture there.
    """
    wanted, found = set(keys), {}
    for shard in sorted({key[:SHARD_DIGITS] for key in keys}):
        for sample in read_shard(shards / f"{shard}.tar"):
            if sample.key in wanted:
                found[sample.key] = decode(sample.image, size)
    if missing := wanted - found.keys():
        raise UnclipError(f"{shards} holds no picture for {', '.join(sorted(missing)[:5])}; index and shards do not belong together, run `unclip index` again")
    return np.stack([found[key] for key in keys])
