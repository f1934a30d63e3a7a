"""Writes a shard from what was fetched: in the order of the source, and byte for byte the same from the same pictures."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.batch import Fetched
from unclip.data.contracts import SHARD
from unclip.data.outcomes import KEPT
from unclip.files import replacing, write_json

NAME_DIGITS = 5  # of the row's number in its shard, within its key


def write_shard(out: Path, name: str, rows: Sequence[Mapping[str, Any]], fetched: Mapping[str, Fetched], suffix: str) -> tuple[int, dict[str, int]]:
    """Writes `name.tar`, `name.parquet` (a row for every row of the source) and `name_stats.json`.

    Args:
        rows: those of the source table that belong to the shard, in order.
        fetched: what came of each, by id.
        suffix: of the pictures, without a dot.

    Returns:
        the number of rows kept, and rejected for each reason.
    """
    entries = [_entry(f"{name}{number:0{NAME_DIGITS}d}", row, fetched[row["id"]]) for number, row in enumerate(rows)]
    with replacing(out / f"{name}.tar") as aside, tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for entry in entries:
            if entry["status"] == KEPT:
                about = {column: entry[column] for column in ("key", "id", "url", "caption", "split", "sha256", "width", "height")}
                _add(tar, f"{entry['key']}.{suffix}", _picture(fetched[entry["id"]]))
                _add(tar, f"{entry['key']}.txt", entry["caption"].encode())
                _add(tar, f"{entry['key']}.json", json.dumps(about, ensure_ascii=False, sort_keys=True).encode())
    with replacing(out / f"{name}.parquet") as aside:
        pq.write_table(pa.Table.from_pylist(entries, schema=SHARD), aside, compression="zstd", write_page_checksum=True)
    counts = Counter(entry["status"] for entry in entries)
    write_json(out / f"{name}_stats.json", {"rows_in": len(entries), "status": dict(counts)})
    kept = counts.pop(KEPT, 0)
    return kept, dict(sorted(counts.items()))


def _entry(key: str, row: Mapping[str, Any], fetched: Fetched) -> dict[str, Any]:
    came = {"status": fetched.status, "detail": fetched.detail, "sha256": fetched.sha256, "width": fetched.width, "height": fetched.height}
    return {"key": key} | {column: row[column] for column in ("id", "url", "caption", "split")} | came


def _picture(fetched: Fetched) -> bytes:
    if fetched.tar is None:
        raise AssertionError("a kept row has a picture")
    offset, size = fetched.place
    with fetched.tar.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time is 0 and its owner 0, so that the bytes depend on the content alone
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
