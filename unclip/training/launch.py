"""Starts a command in several processes, on one machine or several, with torchrun's agent; ends when they do, with their exit code."""

import ipaddress
import logging
import socket
import sys
import time
import traceback
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError, RendezvousTimeoutError
from torch.distributed.run import get_args_parser, run

from unclip.files import UnclipError, fingerprint
from unclip.training.processes import INTERRUPTED, LOST, SPEAK_FIRST_SECONDS
from unclip.training.together import Together

LEADER = 0
SECONDS_AFTER_STOP = 2.0  # all end after the same step
SECONDS_AFTER_FAILURE = SPEAK_FIRST_SECONDS + 3.0


def launch(arguments: Sequence[str], processes: Together) -> int:
    """Runs `python -m unclip ARGUMENTS` in so many processes of this machine, together with those of the others; returns its exit code.

    A signal that asks this process to stop is passed on to all of this machine, which have 30 seconds to save what they
    did; those of the other machines stop after the same step.

    Raises:
        UnclipError: the machines did not all come to the place where they meet.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    options = [*_meeting(arguments, processes), "--nproc-per-node", str(processes.nproc)]
    try:
        run(get_args_parser().parse_args([*options, "--module", "unclip", *arguments]))  # type: ignore[no-untyped-call]
    except SignalException:
        _linger(processes, INTERRUPTED)
        return INTERRUPTED
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        code = error.failures[LEADER].exitcode if LEADER in error.failures and error.failures[LEADER].exitcode > 0 else first.exitcode
        _linger(processes, code)
        if code < 0:
            print(f"unclip: a process was killed by signal {-code}", file=sys.stderr, flush=True)
        return code if code > 0 else 128 - code
    except (RendezvousTimeoutError, RendezvousConnectionError, RendezvousClosedError) as error:
        if _had_begun(error):
            print(LOST, file=sys.stderr, flush=True)
            return 1
        raise UnclipError(
            f"expected {processes.nnodes} machines at {processes.rdzv_endpoint}, but they did not all come within {processes.rdzv_minutes:g} minutes;"
            " start the very same command on each, and see that each reaches that host and port"
        ) from None
    return 0


def _linger(processes: Together, code: int) -> None:
    """The agents of other machines ask this one, where it is the place to meet, until their own processes have spoken and ended."""
    if processes.nnodes > 1:
        time.sleep(SECONDS_AFTER_STOP if code == INTERRUPTED else SECONDS_AFTER_FAILURE)


def _had_begun(error: Exception) -> bool:
    """Whether all machines had come: later an agent asks only if another one waits, and fails where nobody answers any more."""
    return any(frame.name == "num_nodes_waiting" for frame in traceback.extract_tb(error.__traceback__))


def _meeting(arguments: Sequence[str], processes: Together) -> list[str]:
    """torchrun's options that say where the machines meet. Only those with the very same command do, as the run's id stands for it.

    Which machine leads comes out of the meeting, so that no command has a number of its own machine in it.
    """
    if processes.nnodes == 1:
        return ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1"]
    seconds = max(1, round(processes.rdzv_minutes * 60))
    return [
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", processes.rdzv_endpoint, "--local-addr", own_address(processes.rdzv_endpoint)),
        *("--nnodes", str(processes.nnodes), "--rdzv-id", fingerprint([list(arguments), processes.arguments()])),
        *("--rdzv-conf", f"read_timeout={seconds},join_timeout={seconds}"),
    ]  # fmt: skip


def own_address(endpoint: str) -> str:
    """The address under which the others reach this machine: that of the interface by which it reaches the endpoint.

    The machine of the endpoint itself may know its own name as a loopback address; the others know it by that name.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: nothing is sent
            own = str(probe.getsockname()[0])
    except (OSError, UnicodeError) as error:
        raise UnclipError(f"expected --rdzv-endpoint to name a machine that can be reached, got {endpoint!r} ({error})") from None
    return host if ipaddress.ip_address(own.partition("%")[0]).is_loopback else own
