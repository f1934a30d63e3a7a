"""One stage as a child process: its lines go where they can be read, and what stops the flow stops it too."""

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from unclip.files import UnclipError

USER_ERROR = 2  # the exit code of `unclip` for what the user can put right
INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
GRACE_SECONDS = 25.0  # Prefect kills a cancelled flow 30 s after it asked it to stop

_log = logging.getLogger("unclip")


class StageError(RuntimeError):
    """A child ended with a failure that trying again may cure."""


class StoppedError(RuntimeError):
    """A signal stopped a child. What it had done is kept; someone wanted the stop, so nothing tries again by itself."""


def run_child(command: Sequence[str], *, name: str, say: Callable[[str], None] | None, grace_seconds: float = GRACE_SECONDS) -> None:
    """Runs a command to its end.

    Whatever leaves this function early (a cancelled run, Ctrl-C) asks the child to stop, waits, and kills it if need be. One
    thing does not: a server that was away too long. Prefect then stops a run whose deployment has a limit, lest another takes its
    place (by an `asyncio.CancelledError` out of nowhere); the data root has a lock of its own, so the child goes on.

    Args:
        command: the program and its arguments.
        name: what to call it in errors.
        say: takes the child's lines, both of stdout and stderr; None leaves it the terminal, for its progress bars.
        grace_seconds: how long the child may take to save its state.

    Raises:
        UnclipError: the child ended with code 2; the message is its last line.
        StoppedError: a signal stopped it.
        StageError: it ended with any other code.
    """
    pipe = None if say is None else subprocess.PIPE
    # no session of its own: a cancelled flow's signal goes to the whole process group, and must reach the child
    child = subprocess.Popen(
        list(command), env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdout=pipe, stderr=None if say is None else subprocess.STDOUT, text=True, errors="replace"
    )
    lines: list[str] = []
    try:
        while True:
            try:
                code = _hear(child, say, lines)
                break
            except asyncio.CancelledError as lost:
                _log.warning("the Prefect server was away too long, and another run may get this one's place (%r); the work goes on", lost)
    except BaseException as reason:
        _stop(child, _other_signal(reason), grace_seconds)
        raise
    finally:
        if child.stdout is not None:
            child.stdout.close()
    _judge(code, name, lines[-1].removeprefix("unclip: ") if lines else "its message stands above")


def _hear(child: "subprocess.Popen[str]", say: Callable[[str], None] | None, last: list[str]) -> int:
    """Waits for the child's end and says its lines; the last of them is kept. Returns its exit code."""
    if say is not None and child.stdout is not None:
        for line in child.stdout:
            if text := line.rstrip():
                last[:] = [text]
                say(text)
    return child.wait()


def _judge(code: int, name: str, reason: str) -> None:
    if code == USER_ERROR:
        raise UnclipError(f"{name}: {reason}")
    if code in INTERRUPTED:
        raise StoppedError(f"{name} was stopped by a signal (exit code {code}); what it had done is kept, and the same run goes on")
    if code != 0:
        raise StageError(f"{name} ended with exit code {code}: {reason}")


def _other_signal(reason: BaseException) -> signal.Signals:
    """How to ask the child to stop. The whole process group may have had the signal that stops us, and a stage takes the
    same one twice for impatience, and dies without saving; so it is asked with the other one.
    """
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # started by a shell with `&`, as children inherit
    return signal.SIGTERM if isinstance(reason, KeyboardInterrupt) or deaf else signal.SIGINT


def _stop(child: "subprocess.Popen[str]", number: signal.Signals, grace_seconds: float) -> None:
    """Asks the child to stop, and kills it when its time is over, or at a Ctrl-C meanwhile."""
    child.send_signal(number)
    end = time.monotonic() + grace_seconds
    while child.poll() is None:
        try:
            child.wait(max(0.0, end - time.monotonic()))
        except BaseException as reason:
            # one Ctrl-C reaches this process and `unclip serve`, which then stops its runs: being asked twice is no impatience
            if not isinstance(reason, subprocess.TimeoutExpired | KeyboardInterrupt):
                continue
            child.kill()
            child.wait()
            if isinstance(reason, KeyboardInterrupt):
                raise
