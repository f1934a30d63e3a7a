"""A stage's child process: how it ends is told apart, its lines are heard, and it never outlives the flow."""

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from prefect.concurrency._leases import maintain_concurrency_lease
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.process import StageError, StoppedError, run_child
from unclip.files import UnclipError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_lines_of_both_streams_are_heard_in_order() -> None:
    heard: list[str] = []
    run_child(python("import sys; print('one'); print('two', file=sys.stderr); print(); print('thr\\u00e9e')"), name="embed", say=heard.append)
    assert heard == ["one", "two", "thrée"]


def test_code_2_is_a_users_error_with_the_childs_own_line() -> None:
    with pytest.raises(UnclipError, match=r"^download: expected the folder x, but there is none$"):
        run_child(
            python("import sys; print('unclip: expected the folder x, but there is none', file=sys.stderr); sys.exit(2)"),
            name="download",
            say=lambda line: None,
        )


def test_any_other_code_is_a_failure_with_the_last_line() -> None:
    with pytest.raises(StageError, match="download ended with exit code 1: ValueError: the cause"):
        run_child(python("raise ValueError('the cause')"), name="download", say=lambda line: None)


def test_a_child_that_died_without_a_word_points_to_the_terminal() -> None:
    with pytest.raises(StageError, match="embed ended with exit code -9: its message stands above"):
        run_child(python("import os; os.kill(os.getpid(), 9)"), name="embed", say=None)


@pytest.mark.parametrize("code", [130, 143])
def test_a_stopped_child_is_not_a_failure_to_retry(code: int) -> None:
    with pytest.raises(StoppedError, match="what it had done is kept"):
        run_child(python(f"raise SystemExit({code})"), name="prior", say=lambda line: None)


# like the training loop: the first signal of a kind saves, a second of the same kind kills at once
SAVES = """
import os, signal, sys, time
asked = []
def save(number, frame):
    asked.append(number)
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
if len(sys.argv) > 2:
    os.kill(os.getpid(), int(sys.argv[2]))  # what the whole process group got
print(os.getpid(), flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.5)
open(sys.argv[1], 'w').write('saved')
sys.exit(143)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""


class Stop:
    """Says that the flow must end as soon as the child speaks: its first line is its process id."""

    def __init__(self, reason: type[BaseException]) -> None:
        self.reason, self.pid = reason, 0

    def __call__(self, line: str) -> None:
        self.pid = int(line)
        raise self.reason


@pytest.mark.parametrize("reason", [KeyboardInterrupt, SystemExit])
def test_a_stopped_flow_asks_the_child_to_stop_and_waits_until_it_has_saved(reason: type[BaseException], tmp_path: Path) -> None:
    stop = Stop(reason)
    with pytest.raises(reason):
        run_child([*python(SAVES), str(tmp_path / "state")], name="prior", say=stop)
    assert (tmp_path / "state").read_text() == "saved"
    assert not psutil.pid_exists(stop.pid)


@pytest.mark.parametrize(("reason", "number"), [(KeyboardInterrupt, signal.SIGINT), (SystemExit, signal.SIGTERM)])
def test_a_child_that_had_the_groups_signal_already_still_saves(reason: type[BaseException], number: int, tmp_path: Path) -> None:
    with pytest.raises(reason):
        run_child([*python(SAVES), str(tmp_path / "state"), str(int(number))], name="prior", say=Stop(reason))
    assert (tmp_path / "state").read_text() == "saved"


def test_a_stop_beside_the_terminals_is_no_impatience(tmp_path: Path) -> None:
    asked = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))  # as `unclip serve` asks its runs to stop, after a Ctrl-C that they had too
    before = signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(143))
    try:
        asked.start()
        with pytest.raises(KeyboardInterrupt):
            run_child([*python(SAVES), str(tmp_path / "state")], name="prior", say=Stop(KeyboardInterrupt))
        asked.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (tmp_path / "state").read_text() == "saved"


def test_a_place_that_is_lost_while_the_server_is_away_stops_nothing() -> None:
    heard: list[str] = []

    def say(line: str) -> None:
        heard.append(line)
        if line == "1":
            raise asyncio.CancelledError  # as Prefect throws it when a lease can't be renewed

    run_child(python("import time\nfor n in range(4): print(n, flush=True); time.sleep(0.05)"), name="prior", say=say)
    assert heard == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_prefect_gives_up_a_lease_that_no_server_renews_and_the_child_does_not(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    count = python("import time\nfor n in range(80): print(n, flush=True); time.sleep(0.1)")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), maintain_concurrency_lease(uuid4(), 300, raise_on_lease_renewal_failure=True):
        run_child(count, name="prior", say=heard.append)
    assert heard[-1] == "79"
    assert "the work goes on" in caplog.text, "Prefect stops no run for this any more: then take the exception out of run_child"


def test_a_child_that_will_not_stop_is_killed() -> None:
    stop = Stop(KeyboardInterrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_child(python(STUBBORN), name="prior", say=stop, grace_seconds=0.3)
    assert time.monotonic() - started < 10
    assert not psutil.pid_exists(stop.pid)
