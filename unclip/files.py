"""Files that are whole or absent, hashes, locks, and the one error that users are meant to read."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class UnclipError(Exception):
    """Something that the user can put right. The message says what was expected, what came and what to do."""


class Follower(Protocol):
    """Is told, in order, what happens to the files under a folder."""

    def placed(self, path: Path) -> None:
        """A file or folder stands there whole, under its final name."""

    def removed(self, path: Path) -> None:
        """A file or folder is gone."""


_followers: list[tuple[Path, int, Follower]] = []  # the folder, and the process that follows: one that it forks does not


@contextmanager
def followed(root: Path, follower: Follower) -> Iterator[None]:
    """Tells the follower of all that this process places and removes under a folder (absolute) until the block ends."""
    entry = (root, os.getpid(), follower)
    _followers.append(entry)
    try:
        yield
    finally:
        _followers.remove(entry)


def _followers_of(path: Path) -> list[Follower]:
    return [follower for root, process, follower in _followers if process == os.getpid() and path.is_relative_to(root)]


@contextmanager
def replacing(path: Path, *, quietly: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; when the block ends well, what was written there takes the place of `path`.

    The file (or folder) is flushed to disk before it is renamed, so that a kill at any moment leaves the old one or the
    new one. When the block raises, the temporary one is removed. Followers are told, but `quietly`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(aside)
    try:
        yield aside
        for written in [*aside.rglob("*"), aside] if aside.is_dir() else [aside]:
            _flush(written)
        if aside.is_dir():
            remove(path)
        os.replace(aside, path)
        _flush(path.parent)
        for follower in () if quietly else _followers_of(path):
            follower.placed(path)
    finally:
        remove(aside)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path, *, quietly: bool = False) -> None:
    """Removes a file or a whole folder; nothing happens where there is none. Followers are told, but `quietly`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    for follower in () if quietly else _followers_of(path):
        follower.removed(path)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs left of `replacing` in a folder that only the caller writes to."""
    for aside in folder.glob(".*.tmp"):
        remove(aside)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UnclipError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UnclipError(f"expected the file {path}, but there is none") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnclipError(f"{path} is not JSON ({error}); remove it and run the stage that makes it again") from None


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(content: Any) -> str:
    """A short hash (16 hexadecimal digits) of anything that JSON can hold, the same for the same content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def exclusive(root: Path, lock: str = ".lock", *, shared: bool = False) -> Iterator[None]:
    """Holds the only writing run on a data root; the lock ends with the process, however it ends.

    A stage holds `.lock`; a run over all stages holds a lock of its own around theirs. With `shared` others that share it
    too may work there at the same time, but nobody else.

    Raises:
        UnclipError: another process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / lock).open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnclipError(f"another run is writing to {root}; wait for it to end, or stop it") from None
        yield


class Claims:
    """Numbers that processes share out among themselves by locks on one file; those of a process end with it, however it ends.

    Args:
        path: the file, which stays empty.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")

    def take(self, number: int) -> bool:
        """Whether this process has the number now, and no other."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def give_back(self, number: int) -> None:
        """Lets another process take it."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)
