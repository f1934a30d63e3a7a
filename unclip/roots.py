"""Roots behind a URL: each has a working copy on this machine, where all code works as on any folder. A root that is a path is its own.

Work holds the root on this machine by a lock and among machines by a lease, begins with what it needs brought down, and puts up
what it makes as it makes it. Reading brings down what it needs, and holds nothing.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from unclip.files import UnclipError, exclusive, fingerprint, followed
from unclip.layout import RUN_CONFIG
from unclip.lease import Lease, lease_seconds, owner_of
from unclip.mirror import STATE, Mirror
from unclip.storage import Storage, StorageError, check_root, is_url

COPIES_VARIABLE = "UNCLIP_WORKING_COPIES"  # the folder that holds the working copies
RUN_LOCK = ".run.lock"
ALL = ("",)  # every file of a root


def local_root(root: str) -> Path:
    """Where a root is worked on: the folder itself, or the working copy of a URL.

    Raises:
        UnclipError: a URL that can be no root.
    """
    if not is_url(root):
        return Path(root)
    url = check_root(root)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.replace("://", "-")).strip("-.")
    return _copies() / f"{name[:80]}-{fingerprint(url)[:8]}"


def _copies() -> Path:
    named = os.environ.get(COPIES_VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named or Path(cache) / "unclip" / "roots").expanduser().absolute()


@contextlib.contextmanager
def holding(root: str, needs: Sequence[str] = ALL, *, shared: bool = False, check: bool = True) -> Iterator[None]:
    """Holds a root to write to it. Of one behind a URL the needed files and folders are brought down first.

    Args:
        needs: names relative to the root; "" is all of it.
        shared: with others on this machine that share it too.
        check: refuse files that are not what was put up there.

    Raises:
        UnclipError: another process or machine holds it; or the place does not answer, or holds something broken.
    """
    folder = local_root(root)
    with exclusive(folder, shared=shared):
        if is_url(root):
            with _working_on(check_root(root), folder, needs, check=check):
                yield
        else:
            yield


@contextlib.contextmanager
def holding_run(root: str) -> Iterator[None]:
    """Holds a root for a run over all stages, each of which holds it again for itself. What the run itself writes or removes
    between them is put up, too.

    Raises:
        UnclipError: see `holding`.
    """
    folder = local_root(root)
    with exclusive(folder, RUN_LOCK):
        if is_url(root):
            bring_config(root)
            storage = Storage(check_root(root))
            with _leased(storage, folder) as lease, contextlib.closing(Mirror(storage, folder, lease.check)) as mirror:
                with followed(folder, mirror):
                    yield
                mirror.put_up()
        else:
            yield


def bring_down(root: str, needs: Sequence[str] = ALL) -> None:
    """Brings files and folders of a root behind a URL down to read them; nothing where it is a folder.

    While a process of this machine works on the root the copy is ahead of the place, and is left as it is.

    Raises:
        StorageError: the place does not answer, or holds something broken.
    """
    if is_url(root):
        with _bringing(root) as mirror:
            if mirror is not None:
                mirror.bring_down(needs)


def bring_config(root: str) -> None:
    """The same for the files right under the root, where it remembers its config."""
    if is_url(root):
        with _bringing(root) as mirror:
            if mirror is not None:
                mirror.bring_top()


def find_root(url: str) -> tuple[str, str]:
    """The root that a URL lies in, and its name below it ("" for the root itself).

    Raises:
        UnclipError: none of the folders above it holds what `unclip run` remembers.
    """
    upper, names = check_root(url), ""
    while upper.partition("://")[2]:
        if Storage(upper).info(RUN_CONFIG) is not None:
            return upper, names
        upper, _, name = upper.rpartition("/")
        names = f"{name}/{names}".rstrip("/")
    raise UnclipError(f"expected a root that `unclip run` made, or a folder in one, got {url}: there is no {RUN_CONFIG} in it, nor above it")


@contextlib.contextmanager
def _bringing(root: str) -> Iterator[Mirror | None]:
    """A mirror that may bring down, or None while a process of this machine works on the root."""
    folder = local_root(root)
    with _turn(folder), _Live(folder) as live:
        if not live.is_alone():
            yield None
            return
        mirror = Mirror(Storage(check_root(root)), folder, _refuse_to_write)
        with contextlib.closing(mirror):
            yield mirror


@contextlib.contextmanager
def _working_on(url: str, folder: Path, needs: Sequence[str], *, check: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        storage = Storage(url)
        lease = stack.enter_context(_leased(storage, folder))
        mirror = stack.enter_context(contextlib.closing(Mirror(storage, folder, lease.check)))
        live = stack.enter_context(_Live(folder))
        with _turn(folder):
            if live.is_alone():  # others of this machine have brought down the same already
                mirror.bring_down(needs, check=check, tidy=True)
            live.join()
        with followed(folder, mirror):
            try:
                yield
            except StorageError:
                raise
            except UnclipError:
                mirror.put_up()  # what was made before the refusal, such as the rows that could not be used
                raise
            mirror.put_up()


@contextlib.contextmanager
def _leased(storage: Storage, folder: Path) -> Iterator[Lease]:
    """The lease on a place, which all processes of this machine that work on it hold together; the last one ends it."""
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with (folder / STATE / "lease.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        lease = Lease(storage, owner_of(folder / STATE), lease_seconds())
        try:
            yield lease
        finally:
            lease.give_back(last=_is_ours(file.fileno()))


class _Live:
    """Whether processes of this machine work on a working copy: each holds a part of one lock, which ends with it."""

    def __init__(self, folder: Path) -> None:
        (folder / STATE).mkdir(parents=True, exist_ok=True)
        self._file = (folder / STATE / "live.lock").open("a")

    def __enter__(self) -> "_Live":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def is_alone(self) -> bool:
        """Whether no other process works on it; none can begin to until this one joins or ends."""
        return _is_ours(self._file.fileno())

    def join(self) -> None:
        """Works on it from now on."""
        fcntl.flock(self._file, fcntl.LOCK_SH)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Waits for the processes of this machine that bring something down."""
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with (folder / STATE / "turn.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_ours(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _refuse_to_write() -> None:
    raise AssertionError("reading changes nothing up there")
