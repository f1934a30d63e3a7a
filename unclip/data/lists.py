"""The tables that a source names: one file, several by a pattern (`lists/*.csv`), or either behind a URL (`s3://bucket/links/*.parquet`).

Several are read as one table, in the order of their names. Those behind a URL are brought here one at a time, and not kept.
"""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unclip.data.tables import READERS, Row, count_rows, read_rows
from unclip.files import UnclipError, fingerprint, remove, sha256_file
from unclip.storage import Found, Storage, check_url, is_url

PATTERN = "*?["  # what makes a name a pattern


@dataclass(frozen=True)
class Tables:
    """Tables that are read as one: files of this machine, or files behind a URL by their names there."""

    files: tuple[Path, ...] = ()
    storage: Storage | None = None
    there: tuple[tuple[str, Found], ...] = ()

    def inputs(self) -> dict[str, str]:
        """A digest of all: of their bytes, or behind a URL of their names, sizes and tags, without reading them."""
        if self.storage is not None:
            return {"tables": fingerprint([[name, found.size, found.tag] for name, found in self.there])}
        if len(self.files) == 1:
            return {"table": sha256_file(self.files[0])}
        return {"tables": fingerprint([sha256_file(file) for file in self.files])}

    def count(self) -> int:
        """How many rows there are (see `count_rows`); 0 behind a URL, where only reading tells."""
        return sum(count_rows(file) for file in self.files)

    def rows(self, columns: list[str], scratch: Path) -> Iterator[Row]:
        """The rows of all tables.

        Args:
            scratch: a folder to bring them to, one at a time; removed at the end.

        Raises:
            UnclipError: see `read_rows`; or the place does not answer.
        """
        for file in self.files:
            yield from read_rows(file, columns)
        for name, found in self.there:
            with self._brought(name, found, scratch) as (file, url):
                try:
                    yield from read_rows(file, columns)
                except UnclipError as error:
                    raise UnclipError(str(error).replace(str(file), url)) from None

    @contextmanager
    def _brought(self, name: str, found: Found, scratch: Path) -> Iterator[tuple[Path, str]]:
        assert self.storage is not None
        file, url = scratch / PurePosixPath(name).name, f"{self.storage.url}/{name}"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            self.storage.fetch(name, file)
            if file.stat().st_size != found.size:
                raise UnclipError(f"{url} has changed while it was read; run the same command again")
            yield file, url
        finally:
            remove(scratch)


def find_source(text: str) -> Path | Tables:
    """The folder or the tables that `source.path` names.

    Raises:
        UnclipError: there is nothing of that name, or nothing that can be read.
    """
    if is_url(text):
        return _tables_behind(check_url(text))
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        return path
    if path.exists():
        files = [path]
    elif any(sign in text for sign in PATTERN):
        files = sorted(file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file())
        if not files:
            raise UnclipError(f"source.path is {text}, but no file fits that pattern")
    else:
        raise UnclipError(f"source.path is {text}, but there is no such file or folder")
    for file in files:
        _check_kind(file.name)
    return Tables(files=tuple(files))


def _tables_behind(url: str) -> Tables:
    folder, names = url, ""
    while not names or any(sign in folder for sign in PATTERN):  # the part before the first folder that is a pattern
        folder, _, name = folder.rpartition("/")
        names = f"{name}/{names}".rstrip("/")
    if folder.endswith("/"):
        raise UnclipError(f"expected a table or a pattern behind {url}, such as {url}/*.parquet")
    storage = Storage(folder)
    if any(sign in names for sign in PATTERN):
        found = storage.glob(names)
        if not found:
            raise UnclipError(f"source.path is {url}, but no file there fits that pattern")
    else:
        info = storage.info(names)
        if info is None:
            raise UnclipError(f"source.path is {url}, but there is no such file; a folder is read by a pattern, such as {url}/*.parquet")
        found = {names: info}
    for name, entry in found.items():
        _check_kind(PurePosixPath(name).name)
        if not entry.tag:
            raise UnclipError(f"{folder}/{name} comes without an ETag or a time, so that nobody could tell when it changes; bring it to this machine first")
    return Tables(storage=storage, there=tuple(sorted(found.items())))


def _check_kind(name: str) -> None:
    if PurePosixPath(name).suffix not in READERS:
        raise UnclipError(f"expected a table that ends in {', '.join(READERS)}, got {name}")
