"""How many processes on how many machines train one model together, and where the machines meet."""

from dataclasses import dataclass

from unclip.files import UnclipError


class TogetherError(UnclipError, ValueError):
    """What can't be: one line at the command line, and, as a ValueError, a wrong parameter with its path in a flow's form."""


@dataclass(frozen=True, kw_only=True)
class Together:
    """Processes that share each batch.

    With several machines the very same command is started on each of them, in any order; all see the root under the same
    path. One process leads, on whichever machine: it alone writes the models, and speaks.

    Attributes:
        nproc: Processes on each machine that train together, such as one a GPU; they share each batch.
        nnodes: Machines that train together. The same command is started on each.
        rdzv_endpoint: host:port of one of the machines, where all meet; for a network that strangers can't reach.
        rdzv_minutes: How long a machine waits for the others before it gives up.
    """

    __pydantic_config__ = {"extra": "forbid"}

    nproc: int = 1
    nnodes: int = 1
    rdzv_endpoint: str = ""
    rdzv_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("nproc", "nnodes"):
            if getattr(self, name) < 1:
                raise TogetherError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.nnodes > 1 and not self.rdzv_endpoint:
            raise TogetherError(f"{self.nnodes} machines need a place to meet: expected rdzv_endpoint, the host:port of one of them, got none")
        if self.nnodes == 1 and self.rdzv_endpoint:
            raise TogetherError(f"rdzv_endpoint is where several machines meet: expected nnodes of 2 or more, got {self.nnodes}")
        if self.rdzv_endpoint:
            host, _, port = self.rdzv_endpoint.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise TogetherError(f"rdzv_endpoint must be host:port, such as node0:29400, got {self.rdzv_endpoint!r}")
        if self.rdzv_minutes <= 0:
            raise TogetherError(f"rdzv_minutes must be positive, got {self.rdzv_minutes}")

    @property
    def num_processes(self) -> int:
        """Of all machines."""
        return self.nproc * self.nnodes

    def arguments(self) -> list[str]:
        """The options of `unclip train …` that say this; none for one process."""
        if self.num_processes == 1:
            return []
        of_machines = ["--nnodes", str(self.nnodes), "--rdzv-endpoint", self.rdzv_endpoint, "--rdzv-minutes", str(self.rdzv_minutes)]
        return ["--nproc", str(self.nproc), *(of_machines if self.nnodes > 1 else [])]


ALONE = Together()
OPTIONS = ("--nproc", "--nnodes", "--rdzv-endpoint", "--rdzv-minutes")


def without_options(arguments: list[str]) -> list[str]:
    """The command line of one of the processes."""
    kept: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, _ = argument.partition("=")
        if name.replace("_", "-") not in OPTIONS:
            kept.append(argument)
        elif not equals:
            next(waiting, None)
    return kept
