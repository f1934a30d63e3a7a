"""Which rows were seen, and which links were removed for good: as numbers and hashes, never as the links themselves."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.contracts import iter_rows
from unclip.files import fingerprint, replacing

REMOVED = "removed.parquet"  # under the root
SCHEMA = pa.schema([pa.field("url_sha256", pa.string(), nullable=False)])
ID_DIGITS = 16  # hexadecimal, of a row's id
RECENT = 1_000_000  # ids that are held as Python objects, before they go to the array


class Ids:
    """A growing set of row ids (16 hexadecimal digits) in 8 bytes each, and some for the latest million."""

    def __init__(self) -> None:
        self._sorted = np.zeros(0, np.uint64)
        self._recent: set[int] = set()

    def __contains__(self, name: str) -> bool:
        return self._holds(int(name, 16))

    def add(self, name: str) -> bool:
        """Takes an id in; False where it was there."""
        number = int(name, 16)
        if self._holds(number):
            return False
        self._recent.add(number)
        if len(self._recent) >= RECENT:
            self._sorted = np.union1d(self._sorted, np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._recent.clear()
        return True

    def _holds(self, number: int) -> bool:
        if number in self._recent:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(number))) if len(self._sorted) else 0
        return place < len(self._sorted) and int(self._sorted[place]) == number


@dataclass(frozen=True)
class Marks:
    """The links that were removed from a root, as the SHA-256 of each: enough to know one when it comes again."""

    hashes: frozenset[str] = field(default_factory=frozenset)

    def __contains__(self, url: str) -> bool:
        return bool(self.hashes) and bool(url) and link_hash(url) in self.hashes

    def inputs(self) -> dict[str, str]:
        """What a stage that reads them says of them; nothing where nothing was removed."""
        return {"removed": fingerprint(sorted(self.hashes))} if self.hashes else {}

    def with_links(self, urls: Iterable[str]) -> "Marks":
        """These and more."""
        return Marks(self.hashes | {link_hash(url) for url in urls})


NO_MARKS = Marks()


def link_hash(url: str) -> str:
    """The SHA-256 of a link, as the source table has it."""
    return hashlib.sha256(url.encode()).hexdigest()


def read_marks(root: Path) -> Marks:
    """The links that were removed from a root.

    Raises:
        UnclipError: their table is broken.
    """
    path = root / REMOVED
    return Marks(frozenset(row["url_sha256"] for row in iter_rows(path, SCHEMA))) if path.exists() else NO_MARKS


def write_marks(root: Path, marks: Marks) -> None:
    """Writes them, whole or not at all."""
    with replacing(root / REMOVED) as aside:
        pq.write_table(pa.table({"url_sha256": sorted(marks.hashes)}, schema=SCHEMA), aside, compression="zstd", write_page_checksum=True)
