"""Which rows of a part of the store count, and in which split: what `select` left, as the store's readers see it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unclip.files import UnclipError
from unclip.layout import SELECTED

ROWS = "rows.parquet"  # below SELECTED: one row group a part, see contracts.SELECTED
PARTS = b"parts"  # in its schema metadata: the names of the parts, joined by spaces


def selected_rows(part: Path) -> pa.Table | None:
    """Key, split and status of the rows of a part; None where nothing was selected in its store: then every row counts.

    Raises:
        UnclipError: the part came after the last `select`, or what that left does not read.
    """
    path = part.parent / SELECTED / ROWS
    if not path.is_file():
        return None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            parts = (file.schema_arrow.metadata or {})[PARTS].decode().split()
            if part.stem not in parts:
                raise UnclipError(f"the part {part.stem} of {part.parent} came after the last `unclip select`; run it again")
            return file.read_row_group(parts.index(part.stem), columns=["key", "split", "status"])
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UnclipError(f"{path} does not read as what `unclip select` leaves ({str(error)[:200]}); remove {path.parent} and run it again") from None


def only_selected(batch: pa.RecordBatch, rows: pa.Table, part: Path) -> pa.Table:
    """The rows of a batch of a part that were kept, each with its final split.

    Raises:
        UnclipError: one of them came after the last `select`.
    """
    places = pc.index_in(batch["key"], value_set=rows["key"].combine_chunks())
    if places.null_count:
        raise UnclipError(f"{part} has rows that came after the last `unclip select`; run it again")
    table = pa.Table.from_batches([batch])
    if "split" in table.schema.names:
        at = table.schema.get_field_index("split")
        table = table.set_column(at, table.schema.field(at), rows["split"].combine_chunks().take(places))
    kept = pc.equal(rows["status"].combine_chunks().take(places), "kept")
    return table if pc.all(kept).as_py() else table.filter(kept)
