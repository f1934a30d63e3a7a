"""Answers that are asked for once and kept for a while, by however many threads need them: addresses, robots rules."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPException
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Remembered(Generic[Answer]):
    """At most `size` answers, each for `seconds`; those not used for longest are forgotten first.

    Of threads that ask for the same key at once, one finds it out and the others wait. A failure is an answer too.
    """

    def __init__(self, size: int, seconds: float) -> None:
        self._size, self._seconds = size, seconds
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, tuple[float, Future[Answer]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def future(self, key: str, begin: Callable[["Future[Answer]"], None]) -> "Future[Answer]":
        """The answer as a future; `begin` is called, outside of the lock, with a new one that it must see to."""
        with self._lock:
            expires, future = self._answers.get(key, (0.0, Future()))
            is_new = expires < time.monotonic()
            if is_new:
                expires, future = time.monotonic() + self._seconds, Future()
            self._answers[key] = (expires, future)
            self._answers.move_to_end(key)
            while len(self._answers) > self._size:
                self._answers.popitem(last=False)
        if is_new:
            begin(future)
        return future


def settle(future: "Future[Answer]", find: Callable[[], Answer]) -> None:
    """Finds an answer out, and gives it, or what the network made of it, to whoever waits for it."""
    try:
        future.set_result(find())
    except (OSError, HTTPException, ValueError) as error:
        future.set_exception(error)
