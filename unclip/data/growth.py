"""The source table as it grows, row by row: who is known, who is new, and which shard each goes to."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.again import NONE
from unclip.data.links import RefusedError
from unclip.data.marks import ID_DIGITS, Ids, Marks, link_hash
from unclip.files import replacing

ROWS_AT_ONCE = 10_000


class RowWriter:
    """A Parquet file that rows are added to one by one."""

    def __init__(self, file: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self._rows: list[dict[str, object]] = []

    def add(self, row: dict[str, object]) -> None:
        """Takes a row in."""
        self._rows.append(row)
        if len(self._rows) >= ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait."""
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


@contextlib.contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[RowWriter]:
    """A Parquet file to add rows to, which takes its place when the block ends well."""
    with replacing(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd", write_page_checksum=True) as file:
        writer = RowWriter(file, schema)
        yield writer
        writer.flush()


class Growth:
    """The source table as it grows: rows that it knows keep their shard, new ones fill new shards.

    Of a row no more than its id is held in memory. What was removed keeps its place, as a row without link and caption.
    """

    def __init__(self, table: RowWriter, known: Iterable[dict[str, Any]], shard_size: int, removed: Marks, again: frozenset[str] = NONE) -> None:
        self._table, self._shard_size, self._removed = table, shard_size, removed
        self._hash = hashlib.sha256()
        self._splits: Counter[str] = Counter()
        self._shards = self._new = self._num_known = self._num_seen_again = self._num_again = 0
        self._known, self._seen, self._links = Ids(), Ids(), Ids()
        self._again = set(again)
        for row in known:
            self._write(row if row["url"] not in removed else row | {"url": "", "caption": ""})
            self._num_known += self._known.add(row["id"])
            self._shards = max(self._shards, row["shard"] + 1)
        self._first_new_shard = self._shards

    def add(self, url: str, caption: str, split: str) -> tuple[str, int] | None:
        """Takes a row of the source in; id and shard of one that is new or tried again.

        Raises RefusedError where the same one came before, or its link was removed.
        """
        if url in self._removed:
            raise RefusedError("removed")
        self._links.add(link_hash(url)[:ID_DIGITS])
        name = row_id(url, caption)
        if not self._seen.add(name):
            raise RefusedError("duplicate url and caption")
        if name in self._known:
            self._num_seen_again += 1
            if name not in self._again:
                return None
            self._again.remove(name)
            self._num_again += 1
        shard = self._first_new_shard + self._new // self._shard_size
        self._write({"id": name, "url": str(url), "caption": caption, "split": split, "shard": shard})
        self._new += 1
        self._shards = shard + 1
        return name, shard

    def gone_links(self, table: Iterable[dict[str, Any]]) -> list[str]:
        """The links of the table that no row of the source has any longer, with whatever caption."""
        if self._num_known == self._num_seen_again:
            return []
        return sorted({row["url"] for row in table if row["url"] and link_hash(row["url"])[:ID_DIGITS] not in self._links})

    def knew(self, name: str, shard: int) -> bool:
        """Whether the table held a row of this id before, and shards as far as this one."""
        return name in self._known and shard < self._first_new_shard

    @property
    def not_tried(self) -> frozenset[str]:
        """The ids of rows that were to be tried again, but that the source has no longer."""
        return frozenset(self._again)

    def _write(self, row: dict[str, Any]) -> None:
        self._table.add(row)
        self._hash.update(f"{row['id']} {row['shard']} {row['split']}{'' if row['url'] else ' removed'}\n".encode())
        self._splits[row["split"]] += 1

    def counts(self) -> dict[str, object]:
        """What the table holds: rows, those new in it, those that are tried again, those that the source no longer has, shards, rows a split."""
        gone = self._num_known - self._num_seen_again
        return {
            "rows": self._splits.total(),
            "new": self._new - self._num_again,
            "again": self._num_again,
            "gone": gone,
            "shards": self._shards,
            "splits": dict(sorted(self._splits.items())),
        }

    def digest(self) -> str:
        """Changes when any row of the table does."""
        return self._hash.hexdigest()


def row_id(url: str, caption: str) -> str:
    """The id of a row: the first 16 hexadecimal digits of the SHA-256 of its link and caption."""
    return hashlib.sha256(f"{url}\0{caption}".encode()).hexdigest()[:ID_DIGITS]
