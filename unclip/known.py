"""What a working copy knows of each of its files that is the same in its place: sizes, times, hashes, tags, in one SQLite file."""

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A file that was the same here and there: its size, the time here (ns), its SHA-256, and the tag of the storage."""

    size: int
    time: int
    sha256: str
    tag: str


class Known:
    """Entries by name. Threads and processes may share it, and any of them may be killed.

    A machine that loses its power may lose the last entries: what is not known is compared by its hash, or moved again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=OFF")
        self._file.execute("CREATE TABLE IF NOT EXISTS known (name TEXT PRIMARY KEY, size INTEGER, time INTEGER, sha256 TEXT, tag TEXT)")

    def all(self) -> dict[str, Entry]:
        """Every entry, in the order of names."""
        with self._lock:
            return {name: Entry(*rest) for name, *rest in self._file.execute("SELECT name, size, time, sha256, tag FROM known ORDER BY name")}

    def below(self, name: str) -> list[str]:
        """The name itself, where it is known, and those below it."""
        with self._lock:
            rows = self._file.execute("SELECT name FROM known WHERE name = ? OR (name >= ? AND name < ?)", (name, f"{name}/", f"{name}0"))  # "0" follows "/"
            return [found for (found,) in rows]

    def get(self, name: str) -> Entry | None:
        """What is known of a file, None for nothing."""
        with self._lock:
            row = self._file.execute("SELECT size, time, sha256, tag FROM known WHERE name = ?", (name,)).fetchone()
        return None if row is None else Entry(*row)

    def put(self, name: str, entry: Entry) -> None:
        """Notes a file."""
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", (name, entry.size, entry.time, entry.sha256, entry.tag))

    def forget(self, name: str) -> None:
        """Drops a file."""
        with self._lock:
            self._file.execute("DELETE FROM known WHERE name = ?", (name,))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
