"""What the data stages hand on: Arrow schemas, file names and the closed list of reasons for which a row is rejected."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from unclip.files import UnclipError

Reason = Literal[
    # source
    "row malformed", "url missing", "caption missing", "caption not text", "url not http(s)", "private address", "url malformed",
    "duplicate url and caption",
    # download
    "not found", "forbidden", "server error", "timed out", "connection failed", "too many requests", "opted out",
    "too large", "image broken", "image too small", "aspect ratio", "other",
    # curation by rules ("image too small" and "aspect ratio" too)
    "caption too short", "caption too long", "caption is a link", "caption is a file name", "caption has control characters",
    "caption has too few letters", "caption has too many digits", "caption has too much punctuation", "caption repeats itself",
    "column out of bounds", "duplicate picture and caption", "duplicate picture", "caption on too many pictures",
    # curation by embeddings
    "similarity too low", "near a row of another split", "near duplicate",
    # any: taken down with `unclip remove`
    "removed",
    # decoder training
    "embedding missing", "image missing",
]  # fmt: skip
REASONS: tuple[str, ...] = get_args(Reason)

SOURCE = pa.schema([
    pa.field("id", pa.string(), nullable=False),  # sha256 of url and caption, 16 hexadecimal digits
    pa.field("url", pa.string(), nullable=False),  # "", as the caption, where the row was removed: its place stays taken
    pa.field("caption", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),  # "train", or the name of a held-out split
    pa.field("shard", pa.int32(), nullable=False),  # the shard that the row goes to, for ever
])  # fmt: skip

REJECTED = pa.schema([
    pa.field("row", pa.int64(), nullable=False),  # its number in the table that was given, from 0
    pa.field("url", pa.string()),
    pa.field("caption", pa.string()),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string(), nullable=False),
])  # fmt: skip

# one row for every row of the source, kept ones in the order of the tar
SHARD = pa.schema([
    pa.field("key", pa.string(), nullable=False),
    pa.field("id", pa.string(), nullable=False),
    pa.field("url", pa.string(), nullable=False),
    pa.field("caption", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),  # "kept", or a Reason
    pa.field("detail", pa.string(), nullable=False),
    pa.field("sha256", pa.string()),  # of the bytes that were downloaded
    pa.field("width", pa.int32()),  # of the picture in the tar
    pa.field("height", pa.int32()),
])  # fmt: skip

# what `curate` says of each row that `download` kept, in the order of the tar
CURATED = pa.schema([
    pa.field("key", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),  # "kept", or a Reason
    pa.field("value", pa.float64()),  # what the rule that dropped the row measured
    pa.field("limit", pa.float64()),  # what it allows
    pa.field("other", pa.string()),  # the key of the row that is kept instead, or the name of the column that was looked at
    pa.field("pixels", pa.string()),  # sha256 of the decoded picture, where pixels are compared
])  # fmt: skip

# what `select` says of each row of the store; one row group a part, in the order of the store
SELECTED = pa.schema([
    pa.field("key", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),  # the final one
    pa.field("status", pa.string(), nullable=False),  # "kept", or a Reason
    pa.field("value", pa.float64()),
    pa.field("limit", pa.float64()),
    pa.field("other", pa.string()),  # the key of the row that is kept instead, or of the nearest one of the other split
    pa.field("cluster", pa.string()),  # the key of a row of its cluster of near duplicates; null where it has none
    pa.field("similarity", pa.float32(), nullable=False),  # as in the store: a row is the same while key and similarity are
])  # fmt: skip


def embedding_schema(width: int, *, text_tokens: bool) -> pa.Schema:
    """The schema of the embedding store for a CLIP of this width; embeddings as CLIP gives them, not normalised."""
    vector = pa.list_(pa.field("item", pa.float16(), nullable=False), width)
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image_emb", vector, nullable=False),
        pa.field("text_emb", vector, nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("token_ids", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
    ]
    if text_tokens:
        fields.append(pa.field("text_tokens", pa.list_(pa.field("item", pa.float16(), nullable=False)), nullable=False))
    return pa.schema(fields)


def part_name(number: int) -> str:
    """The name that a shard and everything made from it share."""
    return f"{number:05d}"


def iter_rows(path: Path, schema: pa.Schema, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file of ours one by one, all columns or some, with a row group in memory.

    Raises:
        UnclipError: as `read_table`.
    """
    for batch in iter_batches_of(path, schema, columns):
        yield from batch.to_pylist()


def iter_batches_of(path: Path, schema: pa.Schema, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The same in batches, for what goes through all rows without a look at each.

    Raises:
        UnclipError: as `read_table`.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_schema(path, file.schema_arrow, schema)
            yield from file.iter_batches(columns=list(columns) or None)
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a name or a text in it is not UTF-8
        raise _broken(path, error) from None


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Reads a Parquet file of ours and checks that it has this schema.

    Raises:
        UnclipError: it is missing, broken, or has other columns.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        _check_schema(path, table.schema, schema)
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _broken(path, error) from None
    return table


def _missing(path: Path) -> UnclipError:
    return UnclipError(f"expected the table {path}, but there is none; run the stage that makes it")


def _broken(path: Path, error: Exception) -> UnclipError:
    return UnclipError(f"{path} does not read as Parquet ({' '.join(str(error).split())}); remove it and its .json, and run its stage again")


def _check_schema(path: Path, found: pa.Schema, schema: pa.Schema) -> None:
    if not found.equals(schema):
        raise UnclipError(f"{path} has the columns {found.names}, expected {schema.names} with their types; it was made by another version")
