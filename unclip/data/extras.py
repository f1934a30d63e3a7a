"""Columns of the source that are kept beside its table, as text, for rules of the curation: chances of a watermark, of nudity."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unclip.files import UnclipError

EXTRAS = "columns.parquet"


def extras_schema(columns: Sequence[str]) -> pa.Schema:
    """The schema of `source/columns.parquet`: a row's id and shard as in the source table, and its values as text."""
    fixed = [pa.field("id", pa.string(), nullable=False), pa.field("shard", pa.int32(), nullable=False)]
    return pa.schema([*fixed, *(pa.field(_field(name), pa.string()) for name in columns)])


def _field(name: str) -> str:
    return f"value of {name}"  # so that a column of any name stands beside id and shard


def as_text(value: object) -> str | None:
    """A value as it is kept: numbers and truth values as Python writes them, what is empty as None."""
    text = "" if value is None else str(value).strip().encode(errors="replace").decode()
    return text or None


def extras_row(name: str, shard: int, values: dict[str, str | None]) -> dict[str, object]:
    """A row of the file."""
    return {"id": name, "shard": shard} | {_field(column): value for column, value in values.items()}


def known_extras(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that the file holds; none where it is not there."""
    if not path.exists():
        return
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def require_extras(source: Path, columns: Sequence[str]) -> None:
    """Refuses columns that the source does not keep.

    Raises:
        UnclipError: there is one.
    """
    there = set(pq.read_schema(source / EXTRAS).names) if columns and (source / EXTRAS).is_file() else set()
    if missing := [name for name in columns if _field(name) not in there]:
        raise UnclipError(
            f"curate.columns names {missing[0]!r}, but the source in {source} does not keep it; "
            f"name it in source.keep_columns, remove {source} and everything after it, and run again"
        )


def extra_values(source: Path, shard: int, ids: Sequence[str], columns: Sequence[str]) -> list[dict[str, str | None]]:
    """The values of these rows of a shard, a mapping from column to text (or None) for each.

    Raises:
        UnclipError: a row is not there.
    """
    if not columns:
        return [{} for _ in ids]
    table = pq.read_table(source / EXTRAS, filters=[("shard", "=", shard)], columns=["id", *map(_field, columns)])
    of_row = {row["id"]: {name: row[_field(name)] for name in columns} for row in table.to_pylist()}
    try:
        return [of_row[name] for name in ids]
    except KeyError as missing:
        raise UnclipError(f"{source / EXTRAS} has no row {missing}; source and shards do not belong together, run `unclip source` again") from None
