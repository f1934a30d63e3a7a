"""Processes that read ahead: in order, gone with whoever started them, and not stopped by a signal before it has saved its state."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, islice

import psutil
import pytest

from tests.pipeline import environment
from unclip.data.stream import read_ahead, working
from unclip.files import UnclipError

PARENT = """
import itertools, os, time
from unclip.data.stream import read_ahead
stream = read_ahead(itertools.count(), lambda: lambda asked: (os.getpid(), bytes(10_000_000)), num_workers=2, pin=False)
print(next(stream)[0], next(stream)[0], flush=True)
time.sleep(60)
"""


def opened() -> Callable[[int], tuple[int, int]]:
    return lambda asked: (asked, os.getpid())


def broken_at_three() -> Callable[[int], int]:
    def read(asked: int) -> int:
        if asked == 3:
            raise UnclipError("the third is broken")
        return asked

    return read


def stream(num_workers: int) -> Iterator[tuple[int, int]]:
    return read_ahead(count(), opened, num_workers=num_workers, pin=False)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_that_they_were_asked_for(workers: int) -> None:
    with working(stream(workers)) as found:
        asked, readers = zip(*islice(found, 9), strict=True)
    assert asked == tuple(range(9))
    assert len(set(readers)) == max(1, workers)
    assert (os.getpid() in readers) == (workers == 0)
    assert workers == 0 or not any(alive(pid) for pid in readers)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_can_not_be_read_is_said_in_its_turn_without_a_traceback(workers: int) -> None:
    with working(read_ahead(count(), broken_at_three, num_workers=workers, pin=False)) as found:
        assert list(islice(found, 3)) == [0, 1, 2]
        with pytest.raises(UnclipError, match="^the third is broken$"):
            next(found)


def test_a_signal_to_all_lets_a_worker_go_on_until_its_parent_has_stopped() -> None:
    with working(stream(1)) as found:
        first = next(found)[1]
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(first, number)
        assert [reader for _, reader in islice(found, 20)] == [first] * 20
    assert not alive(first)


def kill_and_go_on(workers: list[int]) -> None:
    with working(stream(1)) as found:
        workers.append(next(found)[1])
        os.kill(workers[0], signal.SIGKILL)
        time.sleep(5)  # as if a model was at work; the signal of the death comes meanwhile
        list(islice(found, 9))


def fail(workers: list[int]) -> None:
    with working(stream(1)) as found:
        workers.append(next(found)[1])
        raise RuntimeError("out of luck")


@pytest.mark.parametrize(
    ("work", "kind", "said"),
    [
        (kill_and_go_on, UnclipError, "a process that reads pictures ahead was lost; if memory ran out, set num_workers lower"),
        (fail, RuntimeError, "out of luck"),
    ],
)
def test_a_lost_worker_is_one_line_other_errors_pass_and_no_worker_stays(work: Callable[[list[int]], None], kind: type[Exception], said: str) -> None:
    workers: list[int] = []
    with pytest.raises(kind, match=said):
        work(workers)
    assert not alive(workers[0])


def test_workers_die_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment(), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(set(workers)) == 2
    assert all(alive(pid) for pid in workers)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
