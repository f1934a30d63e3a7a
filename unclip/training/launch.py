"""Starts a command in several processes with torchrun's agent, and ends when they do, with their exit code."""

import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from unclip.training.processes import INTERRUPTED

LEADER = 0


def launch(arguments: Sequence[str], num_processes: int) -> int:
    """Runs `python -m unclip ARGUMENTS` in so many processes of this machine; returns its exit code.

    A signal that asks this process to stop is passed on to all of them, which have 30 seconds to save what they did.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    options = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1", "--nproc-per-node", str(num_processes)]
    try:
        run(get_args_parser().parse_args([*options, "--module", "unclip", *arguments]))  # type: ignore[no-untyped-call]
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        code = error.failures[LEADER].exitcode if LEADER in error.failures and error.failures[LEADER].exitcode > 0 else first.exitcode
        if code < 0:
            print(f"unclip: a process was killed by signal {-code}", file=sys.stderr, flush=True)
        return code if code > 0 else 128 - code
    return 0
