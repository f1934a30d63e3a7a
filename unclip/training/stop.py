"""How training is asked to stop before its end: by a signal, or by the death of whoever started it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Yields whether SIGTERM or SIGINT came, or the parent process went away; a second signal kills at once."""
    asked: list[int] = []
    before: dict[signal.Signals, Any] = {}
    parent = os.getppid()

    def remember(number: int, _frame: Any) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, remember)
    try:
        yield lambda: bool(asked) or os.getppid() != parent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
