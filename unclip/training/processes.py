"""Several processes that train one model: the first one leads, the others train with it and do nothing else.

The stage, its lock and its manifest are the leader's alone. What all have to do together is a function of plain
arguments that the leader calls through `together`; the others wait in `crew` and call the same.
"""

import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import ParamSpec, TextIO, TypeVar

import torch
import torch.distributed as dist

from unclip.files import UnclipError

WAIT = timedelta(hours=12)  # how long the others may wait for the leader's own work; a leader that died is noticed at once
INTERRUPTED = 130  # the exit code
SPEAK_FIRST_SECONDS = 5.0
LOST = "unclip: a process that trained together with this one was lost; the last checkpoint stays, and the same command goes on from it"
SEEN_SECONDS = 20.0  # after which a file that one machine wrote is seen by all, on a shared folder

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Interrupted(UnclipError):
    """Training was asked to stop; its state is on disk."""


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_number() -> int:
    """Which of the processes that train together this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_leader() -> bool:
    """Whether this process writes files and speaks."""
    return process_number() == 0


@contextmanager
def crew() -> Iterator[bool]:
    """Yields True in the process that leads. The others do what it calls through `together` until it leaves the block, then get False."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # as torchrun sets it
        yield True
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT)
    if not is_leader():
        _follow()
        yield False
        dist.barrier()
        os._exit(0)  # all is written, by the leader; gloo's threads now and then abort a process that takes them down in order
    try:
        yield True
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        print(LOST, file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    dist.broadcast_object_list([None])
    dist.barrier()
    dist.destroy_process_group()


def together(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Calls a function of a module in all processes; returns what the leader's own call does."""
    if num_processes() > 1:
        dist.broadcast_object_list([(work, args, kwargs)])
    return work(*args, **kwargs)


def _follow() -> None:
    while True:
        asked: list[tuple[Callable[..., object], tuple[object, ...], dict[str, object]] | None] = [None]
        try:
            dist.broadcast_object_list(asked)
        except RuntimeError:  # the leader has ended, and says why; what it says and its exit code come first
            time.sleep(SPEAK_FIRST_SECONDS)
            _say_for_this_machine("unclip: the process that leads has ended; why, it says on its own machine", file=sys.stderr)
            raise SystemExit(1) from None
        if asked[0] is None:
            return
        work, args, kwargs = asked[0]
        try:
            work(*args, **kwargs)
        except Interrupted:
            raise SystemExit(INTERRUPTED) from None  # all stop after the same step, and the leader says so
        except RuntimeError as error:
            if not _is_loss(error):
                raise
            time.sleep(SPEAK_FIRST_SECONDS)
            _say_for_this_machine(LOST, file=sys.stderr)
            raise SystemExit(1) from None
        except UnclipError:
            time.sleep(SPEAK_FIRST_SECONDS)  # the leader meets the same, says it and ends all; only what it does not meet is said here
            raise


def _is_loss(error: RuntimeError) -> bool:
    """Whether it says that another process has gone; gloo has words for it, and no error of its own."""
    return isinstance(error, dist.DistError) or "by peer" in str(error)


def require_one_folder(folder: Path) -> None:
    """Called by the leader: all processes must see its folder, each under this path as it is written.

    Raises:
        UnclipError: on some machine there is another folder, or none.
    """
    if num_processes() == 1:
        return
    mark = folder / f".meeting-{uuid.uuid4().hex}"
    mark.touch()
    try:
        together(_compare, folder, mark)
    finally:
        mark.unlink(missing_ok=True)


def _compare(folder: Path, mark: Path) -> None:
    sees = _appears(mark)
    found: list[tuple[str, bool]] = [("", False)] * num_processes()
    dist.all_gather_object(found, (socket.gethostname(), sees))
    _say_for_this_machine(f"unclip: trains with {found[0][0]}, which leads: it writes, and says what is done", file=sys.stdout)
    if blind := sorted({host for host, seen in found if not seen}):
        raise UnclipError(
            f"expected every machine to see the same {folder}, but on {', '.join(blind)} it is another one or none; mount it there, or use --root"
        )


def _appears(path: Path) -> bool:
    end = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _say_for_this_machine(line: str, *, file: TextIO) -> None:
    """Once on each machine but the leader's, where the leader speaks."""
    if os.environ.get("GROUP_RANK", "0") != "0" and os.environ.get("LOCAL_RANK") == "0":  # as torchrun sets them
        print(line, file=file, flush=True)
