"""Batches read ahead of the model by processes of torch's DataLoader, in the order that they were asked for."""

import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from unclip.data.fetch import die_with
from unclip.files import UnclipError

Asked = TypeVar("Asked")
Read = TypeVar("Read")

AHEAD = 2  # batches that each worker holds ready
LAST_SECONDS = 20.0  # of a worker that was asked to stop: the batches until its parent, which is asked too, has saved its state


@dataclass(frozen=True)
class _Refused:
    """In place of a batch: why it can't be read, for an error would come out of a worker as a traceback."""

    why: str


class _Batches(Dataset[Any], Generic[Asked, Read]):
    """What the DataLoader calls with each batch that is asked for; what reads them is opened in the process that reads."""

    def __init__(self, opened: Callable[[], Callable[[Asked], Read]]) -> None:
        self._opened = cache(opened)

    def __getitem__(self, asked: Asked) -> Read | _Refused:
        try:
            return self._opened()(asked)
        except UnclipError as error:
            return _Refused(str(error))


def read_ahead(asked: Iterable[Asked], opened: Callable[[], Callable[[Asked], Read]], *, num_workers: int, pin: bool) -> Iterator[Read]:
    """Reads batches for as long as they are asked for, in that order.

    Args:
        opened: called once in each process that reads; it gives the function that reads one batch.
        num_workers: how many processes read ahead; with 0 each batch is read here when its turn comes. They end when the
            iterator is closed, or with this process.
        pin: whether the batches are to lie in pinned memory.

    Raises:
        UnclipError: a batch can't be read.
    """
    workers: dict[str, Any] = {"prefetch_factor": AHEAD, "multiprocessing_context": "fork", "worker_init_fn": partial(_begin, os.getpid())}
    for batch in DataLoader(
        _Batches(opened),
        sampler=asked,
        batch_size=None,  # what the sampler names is a batch already
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=pin,
        generator=torch.Generator(),  # else it would take a number from the one that belongs to the training
        **(workers if num_workers else {}),
    ):
        if isinstance(batch, _Refused):
            raise UnclipError(batch.why)
        yield batch


@contextmanager
def working(stream: Iterator[Read]) -> Iterator[Iterator[Read]]:
    """Yields the stream; its workers end with the block.

    Raises:
        UnclipError: a worker died, of which torch tells whatever the block is doing just then.
    """
    try:
        yield stream
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UnclipError(f"a process that reads pictures ahead was lost; if memory ran out, set num_workers lower, 0 has none ({error})") from None
    finally:
        if isinstance(stream, Generator):
            stream.close()


def _as_it_is(batch: Read) -> Read:
    return batch


def _begin(parent: int, _number: int) -> None:
    """A worker ends with its parent. A signal that all processes of a command get stops it only when its parent had the time to."""
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: signal.setitimer(signal.ITIMER_REAL, LAST_SECONDS))
