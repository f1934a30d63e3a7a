"""Reads named columns from other people's tables (Parquet, CSV, TSV, JSONL) row by row, without trusting a single value."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unclip.files import UnclipError

BATCH_ROWS = 16_384
SHOWN_NAMES = 500  # characters of the column names in an error
MAX_FIELD = 1_000_000  # characters in one CSV field


@dataclass(frozen=True)
class Row:
    """The values of the columns asked for, as they stand there; or, with `problem` not empty, why the row can't be read.

    Text that is not valid UTF-8 comes with surrogate escapes in it.
    """

    values: tuple[object, ...]
    problem: str = ""


def read_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """Reads the rows of a table; the suffix of its name says which kind it is.

    Raises:
        UnclipError: no such file, another suffix, a column missing, or a file that doesn't read at all.
    """
    if not path.is_file():
        raise UnclipError(f"expected a table at {path}, but there is none")
    try:
        yield from _reader(path)(path, columns)
    except (OSError, ValueError, pa.ArrowException, csv.Error) as error:  # ValueError: a name that is not UTF-8
        raise UnclipError(f"{path} does not read as {path.suffix[1:].upper()}: {' '.join(str(error).split())}") from None


def count_rows(path: Path) -> int:
    """How many rows a table has; for the text formats the number of its lines, which is never less."""
    _reader(path)
    if path.suffix == ".parquet":
        try:
            return int(pq.ParquetFile(path).metadata.num_rows)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UnclipError(f"{path} does not read as PARQUET: {' '.join(str(error).split())}") from None
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _reader(path: Path) -> Callable[[Path, list[str]], Iterator[Row]]:
    if path.suffix not in READERS:
        raise UnclipError(f"expected a table that ends in {', '.join(READERS)}, got {path.name}")
    return READERS[path.suffix]


def _check_columns(path: Path, wanted: list[str], there: list[str]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        names = ", ".join(" ".join(name.split()) for name in there)[:SHOWN_NAMES]  # a stranger's header may hold lines
        raise UnclipError(f"{path} has no column {missing[0]!r}; its columns are {names or 'none'}. Set the column names in the source config")


def _read_parquet(path: Path, columns: list[str]) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        _check_columns(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            yield from map(Row, zip(*(_values(batch.column(name)) for name in columns), strict=True))


def _values(column: pa.Array) -> list[object]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return list(column.to_pylist())
    # Arrow doesn't check that text is UTF-8; one broken caption must cost one row
    raw = pc.cast(column, pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _read_csv(path: Path, columns: list[str]) -> Iterator[Row]:
    return _read_separated(path, columns, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_tsv(path: Path, columns: list[str]) -> Iterator[Row]:
    # IANA's text/tab-separated-values has no quoting, and captions are full of quotation marks
    return _read_separated(path, columns, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_separated(path: Path, columns: list[str], *, delimiter: str, quoting: int) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
        header = next(lines, [])
        _check_columns(path, columns, header)
        places = [header.index(name) for name in columns]
        for values in lines:
            if not values:
                continue  # an empty line is no row
            if len(values) != len(header):
                yield Row((None,) * len(columns), f"expected {len(header)} fields, got {len(values)}")
            else:
                yield Row(tuple(values[place] for place in places))


def _read_jsonl(path: Path, columns: list[str]) -> Iterator[Row]:
    num_objects = 0
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield Row((None,) * len(columns), f"not JSON: {error}")
                continue
            if not isinstance(content, dict):
                yield Row((None,) * len(columns), "not a JSON object")
                continue
            num_objects += 1
            if num_objects == 1:
                _check_columns(path, columns, list(content))
            yield Row(tuple(content.get(name) for name in columns))
    if not num_objects:
        raise UnclipError(f"{path} has no line that is a JSON object")


READERS: dict[str, Callable[[Path, list[str]], Iterator[Row]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
}
