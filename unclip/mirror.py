"""The working copy of a place: brings files down before work, and puts up what the work made, in an order that a kill can't spoil.

What stands up there is the truth. At the beginning of work the copy is made like it; what is known to be the same is not
touched. While work goes on the copy is ahead, and this order holds up there at every moment, as it does on a disk:

- a part's record (`00000.json`) is there only while its files are, as it names them: it goes up after them, and comes off
  before one of them changes;
- a seal (`.files.json` in a folder, only up there) names size and SHA-256 of the folder's other files, and obeys the same
  order; a checkpoint (`step-…`) without its seal does not count, and is cleared away;
- a stage's `manifest.json` goes up when all else that has changed is up, and what is gone here is gone there.

Locks, caches (`_cache`), scratch and other hidden files stay here.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unclip.file_kinds import (
    JOURNALS,
    checkpoint_of,
    folder_of,
    is_below,
    is_manifest,
    is_mirrored,
    is_plain,
    is_record,
    is_seal,
    record_of,
    seal_of,
    without_torn,
)
from unclip.files import remove, replacing, sha256_file
from unclip.known import Entry, Known
from unclip.progress import progress
from unclip.storage import Found, Storage, StorageError

STATE = ".remote"  # the folder of the working copy that holds what is about it itself
AT_ONCE = 16  # transfers
WORTH_SHOWING = 100  # files
TRIES = 3  # at a file that is written to while it goes up

Sealed = Mapping[str, tuple[int, str, int]]  # name -> size, SHA-256, time (ns)


class Mirror:
    """A working copy in a folder, and the place that it is of. A `Follower` (see files.py) of the folder.

    Args:
        folder: the working copy, absolute.
        may_write: called before each change up there; raises where this machine may write no longer.
    """

    def __init__(self, storage: Storage, folder: Path, may_write: Callable[[], None]) -> None:
        self._storage, self._folder, self._may_write = storage, folder, may_write
        self._known = Known(folder / STATE / "known.sqlite")

    def close(self) -> None:
        """Closes what is open."""
        self._known.close()

    def bring_down(self, prefixes: Sequence[str], *, check: bool = True, tidy: bool = False) -> None:
        """Makes the copy of some files and folders like the place; "" is all of it.

        Args:
            check: refuse what is not what its record or seal says; without, it comes down as it is.
            tidy: clear away what machines that died in the middle of a checkpoint left up there.

        Raises:
            StorageError: the place does not answer, or holds something else than was put there.
        """
        there: dict[str, Found] = {}
        for prefix in prefixes:
            there |= self._storage.find(prefix)
        whole, torn = without_torn(there)
        if tidy:
            for name in torn:
                self._may_write()
                self._storage.remove(name)
        known = self._known.all()
        self._bring(whole, known, check=check)
        for name in known:
            if name not in whole and any(is_below(name, prefix) for prefix in prefixes):
                self._drop(name)

    def _drop(self, name: str) -> None:
        """Removes a file here that is gone there. A checkpoint goes as a whole, for its folder alone makes it count; and so do empty folders."""
        if is_mirrored(name):
            path = self._folder / (checkpoint_of(name) or name)
            remove(path, quietly=True)
            while path.parent != self._folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                path = path.parent
                path.rmdir()
        self._known.forget(name)

    def bring_top(self) -> None:
        """The same for the files that lie right under the place."""
        self._bring(without_torn(self._storage.here())[0], self._known.all(), check=True)

    def put_up(self) -> None:
        """Puts up all that has changed here, and removes there what is gone here."""
        here, known = dict(self._scan()), self._known.all()
        changed = [name for name, state in here.items() if name not in known or state != (known[name].size, known[name].time)]
        gone = [name for name in known if name not in here and not is_seal(name)]
        self._open(changed)
        records = [name for name in here if is_record(name) and self._known.get(name) is None]
        manifests = {name for name in changed if is_manifest(name)}
        others = [name for name in changed if name not in manifests and not is_record(name)]
        _in_parallel(self._put, (name for name in others if not name.endswith(".json")))
        _in_parallel(self._put, (name for name in others if name.endswith(".json")))  # a record may have any name
        _in_parallel(self._put, {*records, *(name for name in changed if is_record(name))})
        self._open(gone)  # only now: what was renamed is up under its new name
        self._take_off(gone)
        for folder, names in itertools.groupby(sorted(filter(is_plain, here), key=folder_of), key=folder_of):
            if self._known.get(seal_of(folder)) is None:
                self._seal(folder, list(names))
        for name in sorted(manifests, key=lambda name: -name.count("/")):
            self._put(name)

    def placed(self, path: Path) -> None:
        """Puts up what counts from now on: a part, a checkpoint, a manifest with all that stands behind it."""
        name = path.relative_to(self._folder).as_posix()
        if not is_mirrored(name):
            return
        if is_manifest(name):
            self.put_up()
        elif is_record(name):
            files = [f"{folder_of(name)}/{file}" for file in _named_by(path.read_bytes())]
            self._open(file for file in files if self._has_changed(file))
            _in_parallel(self._put, files)
            self._put(name)
        elif checkpoint_of(f"{name}/") == name:
            files = [f"{name}/{file.relative_to(path).as_posix()}" for file in path.rglob("*") if file.is_file()]
            self._open(files)
            _in_parallel(self._put, files)
            self._seal(name, files)
        elif path.is_file() and ("/" not in name or path.name in JOURNALS):
            self._open([name])
            self._put(name)

    def removed(self, path: Path) -> None:
        """Removes it there too, also where it was never brought down."""
        name = path.relative_to(self._folder).as_posix()
        if is_mirrored(name):
            names = self._known.below(name) or list(self._storage.find(name))
            self._open(names)
            self._take_off(names)

    def _bring(self, there: Mapping[str, Found], known: Mapping[str, Entry], *, check: bool) -> None:
        wanted = {name: found for name, found in there.items() if not is_seal(name) and not self._is_here(name, found, known.get(name))}
        for name, found in there.items():
            if is_seal(name):
                self._known.put(name, Entry(found.size, 0, "", found.tag))
        expected = self._expected(wanted, there, check=check)
        for name in expected:
            if check and name not in there:
                raise self._broken(name, "is missing")
        manifests = {name for name in wanted if is_manifest(name)}
        with progress("bringing", len(wanted), unit="files") if len(wanted) > WORTH_SHOWING else contextlib.nullcontext() as bar:

            def bring(name: str) -> None:
                self._fetch(name, wanted[name], expected.get(name), check=check)
                if bar is not None:
                    bar.advance()

            _in_parallel(bring, (name for name in wanted if name not in manifests and not is_record(name)))
            _in_parallel(bring, (name for name in wanted if is_record(name)))
            _in_parallel(bring, manifests)

    def _is_here(self, name: str, found: Found, known: Entry | None) -> bool:
        if known is None or (known.size, known.tag) != (found.size, found.tag):
            return False
        return self._state(name) == (known.size, known.time)

    def _expected(self, wanted: Mapping[str, Found], there: Mapping[str, Found], *, check: bool) -> dict[str, tuple[int, str, int | None]]:
        """What the seals and records that stand there say of the wanted files: size, SHA-256, and time where it is known."""
        expected: dict[str, tuple[int, str, int | None]] = {}
        speaking = {seal_of(folder_of(name)) for name in wanted if is_plain(name)} | {record_of(name) for name in wanted if not is_plain(name)}
        for speaker in sorted(speaking & there.keys()):
            content, folder = self._storage.read(speaker), folder_of(speaker)
            if content is None:
                continue  # it has come off since, so that something is being changed
            try:
                said = _named_by(content)
            except StorageError:
                if check:
                    raise self._broken(speaker, "does not read as JSON") from None
                continue
            for file, (size, sha, *time) in said.items():
                expected[f"{folder}/{file}" if folder else file] = (int(size), str(sha), int(time[0]) if time else None)
        return expected

    def _fetch(self, name: str, found: Found, expected: tuple[int, str, int | None] | None, *, check: bool) -> None:
        path = self._folder / name
        if expected is not None and expected[0] == found.size and self._is_the_same(path, expected):
            self._known.put(name, Entry(found.size, path.stat().st_mtime_ns, expected[1], found.tag))
            return
        with replacing(path, quietly=True) as aside:
            self._storage.fetch(name, aside)
            size, sha = aside.stat().st_size, sha256_file(aside)
            if check and expected is not None and (size, sha) != expected[:2]:
                raise self._broken(name, f"has {size} bytes with the SHA-256 {sha[:12]}…, expected {expected[0]} with {expected[1][:12]}…")
            if size != found.size:
                raise StorageError(f"{self._storage.url}/{name} has changed while it was read; the same command goes on")
            if expected is not None and expected[2] is not None:
                os.utime(aside, ns=(expected[2], expected[2]))  # what goes by times of files finds them as they were
        self._known.put(name, Entry(size, path.stat().st_mtime_ns, sha, found.tag))

    def _is_the_same(self, path: Path, expected: tuple[int, str, int | None]) -> bool:
        """Whether a file that nothing is known of, such as that of a run which was killed, is what stands there."""
        if not path.is_file() or path.stat().st_size != expected[0] or sha256_file(path) != expected[1]:
            return False
        if expected[2] is not None:
            os.utime(path, ns=(expected[2], expected[2]))
        return True

    def _broken(self, name: str, what: str) -> StorageError:
        return StorageError(
            f"{self._storage.url}/{name} is not what was put there: it {what}. `unclip repair --root {self._storage.url}` makes shards and parts "
            "of the store again; for anything else put the object back, or remove its folder there and run its stage again"
        )

    def _open(self, names: Iterable[str]) -> None:
        """Takes records and seals off that speak of files which are about to change; what has a record is recorded again by the caller."""
        for speaker in sorted({seal_of(folder_of(name)) if is_plain(name) else record_of(name) for name in names if not is_manifest(name)}):
            if self._known.get(speaker) is not None:
                self._may_write()
                self._storage.remove(speaker)
                self._known.forget(speaker)

    def _take_off(self, names: Iterable[str]) -> None:
        """Removes files there: what makes others count goes first, and a manifest only after the seals of its checkpoints."""
        for name in sorted(names, key=lambda name: 0 if is_seal(name) or is_record(name) else 1 if is_manifest(name) else 2):
            self._may_write()
            self._storage.remove(name)
            self._known.forget(name)

    def _put(self, name: str) -> None:
        path, known = self._folder / name, self._known.get(name)
        for _ in range(TRIES):
            state = self._state(name)
            if state is None:
                return  # it has gone since
            if known is not None and state == (known.size, known.time):
                return
            sha = sha256_file(path)
            if known is not None and (state[0], sha) == (known.size, known.sha256):
                self._known.put(name, Entry(*state, sha, known.tag))
                return
            self._may_write()
            self._storage.put(path, name)
            if self._state(name) == state:
                self._known.put(name, Entry(*state, sha, self._tag(name, state[0])))
                return
        self._known.forget(name)  # a log that grows all the time; its last state goes up when it is whole

    def _tag(self, name: str, size: int) -> str:
        found = self._storage.info(name)
        if found is None or found.size != size:
            there = "is not there" if found is None else f"has {found.size} there"
            raise StorageError(f"{self._storage.url}/{name} was put up with {size} bytes, and {there}; does something else write there?")
        return found.tag

    def _seal(self, folder: str, names: Sequence[str]) -> None:
        """Writes the seal of a folder over its files that are up there."""
        entries = {name: entry for name in names if (entry := self._known.get(name)) is not None}
        sealed = {name[len(folder) + 1 if folder else 0 :]: [entry.size, entry.sha256, entry.time] for name, entry in entries.items()}
        content, name = json.dumps({"files": sealed}, sort_keys=True).encode(), seal_of(folder)
        self._may_write()
        self._storage.write(name, content)
        self._known.put(name, Entry(len(content), 0, "", ""))

    def _has_changed(self, name: str) -> bool:
        known = self._known.get(name)
        return known is not None and self._state(name) != (known.size, known.time)

    def _state(self, name: str) -> tuple[int, int] | None:
        try:
            found = (self._folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size, found.st_mtime_ns

    def _scan(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for folder, folders, files in os.walk(self._folder):
            below = Path(folder).relative_to(self._folder).as_posix()
            start = "" if below == "." else f"{below}/"
            folders[:] = sorted(name for name in folders if is_mirrored(start + name))
            for file in sorted(files):
                if is_mirrored(start + file) and (state := self._state(start + file)) is not None:
                    yield start + file, state


def _in_parallel(work: Callable[[str], None], names: Iterable[str]) -> None:
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for _ in pool.map(work, names):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # one that failed, or Ctrl-C, ends the others that wait


def _named_by(content: bytes) -> dict[str, Any]:
    """The files that a record or a seal speaks of."""
    try:
        files = json.loads(content)["files"]
        return dict(files)
    except (ValueError, KeyError, TypeError):
        raise StorageError("expected a record with files") from None
