"""Pieces of work on the machines of a Ray cluster: each in a process that keeps what it has loaded, and again where one died.

Plain Ray rather than Prefect's runner for it: so a stage needs no Prefect, and a piece no row in Prefect's database and
no road from its machine to Prefect's server. Actors rather than tasks: a task that keeps its process, as loaded models ask
for, finds the GPU that it is given changing from call to call, while what it has loaded stays where it was.
"""

import logging
import os
import re
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any, TypeVar

import torch

from unclip.files import UnclipError

Item = TypeVar("Item")
Result = TypeVar("Result")

THIS_MACHINE = "local"  # to Ray, an address
OBJECT_STORE_BYTES = 2**27  # of a Ray started here: paths and numbers are all that travels
SECONDS_TO_ANSWER = 10.0
SECONDS_BETWEEN_LOOKS = 10.0  # for machines that have joined


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Which Ray cluster, and what a process takes of it.

    Attributes:
        address: of the cluster, host:port; "auto" is that of RAY_ADDRESS or the one that runs on this machine, and
            "local" starts Ray on this machine alone, for as long as the stage takes.
        cpus, gpus: what a process takes; a fraction of a GPU leaves the rest of it to others. Torch has `cpus` threads.
        retries: how often a piece of work is begun again whose process died.
    """

    __pydantic_config__ = {"extra": "forbid"}

    address: str = THIS_MACHINE
    cpus: int = 1
    gpus: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.address not in ("auto", THIS_MACHINE) and not re.fullmatch(r"[^/]+:\d+", self.address):
            raise ValueError(f"address must be host:port, 'auto' or {THIS_MACHINE!r}, got {self.address!r}")
        if self.cpus < 1:
            raise ValueError(f"cpus must be at least 1, got {self.cpus}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"gpus must be a whole number, or a share of one GPU between 0 and 1, got {self.gpus}")
        if self.retries < 0:
            raise ValueError(f"retries must be at least 0, got {self.retries}")


def on_cluster(work: Callable[[Item], Result], items: Mapping[str, Item], config: RayConfig) -> Iterator[tuple[str, Result]]:
    """Calls a function of an importable module with each item; yields names and results as they come.

    There are as many processes as the cluster has room for. Each takes one item after the other, so that what the function
    keeps (with `functools.cache`) is loaded once in it. Machines that join are used, those that leave are made up for.

    Raises:
        UnclipError: Ray is missing or can't be reached, no machine has what a process takes, another version of this
            package is installed somewhere, an item's process died too often, or what the function raises itself.
    """
    waiting, lost = deque(items), Counter[str]()
    with _connected(config) as ray:
        process = ray.remote(Process).options(num_cpus=config.cpus, num_gpus=config.gpus)
        begun: dict[Any, tuple[Any, str]] = {}  # what each process does: an item, or "" while it starts
        while waiting or any(name for _, name in begun.values()):
            while len(begun) < min(len(waiting) + sum(bool(name) for _, name in begun.values()), _room(ray, config)):
                actor = process.remote(config.cpus)
                begun[actor.version.remote()] = actor, ""
            done, _ = ray.wait(list(begun), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
            for reference in done:
                actor, name = begun.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayActorError:
                    _count_loss(lost, name, config)
                    waiting.extendleft([name] if name else [])
                    continue
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UnclipError):
                        raise error.cause from None
                    raise
                if name:
                    yield name, result
                else:
                    _require_same_version(result)
                if waiting:
                    name = waiting.popleft()
                    begun[actor.call.options(name=f"{work_name(work)} {name}").remote(work, items[name])] = actor, name


def work_name(work: Callable[..., Any]) -> str:
    """What a piece of work is called where Ray lists it."""
    return str(getattr(getattr(work, "func", work), "__name__", "work")).strip("_")


class Process:
    """A process of the cluster."""

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)  # Ray sets OMP_NUM_THREADS to 1

    def version(self) -> str:
        """That of the package on its machine."""
        return metadata.version("unclip")

    def call(self, work: Callable[[Item], Result], item: Item) -> Result:
        """Does a piece of work."""
        return work(item)


@contextmanager
def _connected(config: RayConfig) -> Iterator[Any]:
    """The module `ray`, connected to the cluster."""
    if find_spec("ray") is None:
        raise UnclipError("the engine is 'ray', but the package ray is not installed; pip install 'unclip[ray]', on every machine")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it when it starts; it would tell its makers of this machine
    import ray

    here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "num_gpus": torch.cuda.device_count()}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _reach(config.address)
        ray.init(config.address, logging_level=logging.ERROR, **(here if config.address == THIS_MACHINE else {}))
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise UnclipError(f"expected a Ray cluster at {config.address!r}, but {' '.join(str(error).split())[:300]}") from None
    signal.signal(signal.SIGTERM, _stop)  # Ray's own handler ends with the signal's number as exit code
    try:
        yield ray
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _reach(address: str) -> None:
    """Ray itself would ask for minutes where nobody answers.

    Raises:
        OSError, ValueError: nobody does, or it is no address.
    """
    told = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if told and told not in (THIS_MACHINE, "auto"):
        host, _, port = told.rpartition(":")
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()


def _stop(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _room(ray: Any, config: RayConfig) -> int:
    """How many processes the cluster's machines hold.

    Raises:
        UnclipError: none at all.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_fitting(resources, config) for resources in alive)
    if not room:
        most = ", ".join(f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}" for resources in alive)
        raise UnclipError(
            f"a process takes {config.cpus} CPUs and {config.gpus:g} GPUs, but no machine of the Ray cluster has so many (they have {most});"
            " start one that has, or lower the engine's cpus and gpus"
        )
    return room


def _fitting(resources: Mapping[str, float], config: RayConfig) -> int:
    room = int(resources.get("CPU", 0) // config.cpus)
    if not config.gpus:
        return room
    gpus = resources.get("GPU", 0)
    return min(room, int(gpus) * int(1 / config.gpus) if config.gpus <= 1 else int(gpus // config.gpus))


def _require_same_version(found: str) -> None:
    if found != metadata.version("unclip"):
        raise UnclipError(f"a machine of the Ray cluster has unclip {found}, expected {metadata.version('unclip')}, as here; install the same on all")


def _count_loss(lost: Counter[str], name: str, config: RayConfig) -> None:
    lost[name] += 1
    if lost[name] > config.retries:
        what = f"the process of {name}" if name else "a process that was starting"
        raise UnclipError(
            f"{what} died {lost[name]} times on the Ray cluster; what is done is kept. If memory ran out, give a process more cpus, so that fewer run"
        )
