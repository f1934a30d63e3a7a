"""Prefect's servers for tests. Nothing here is automatic: a test that needs a server asks for one."""

# ruff: noqa: E402 -- Prefect reads the environment when it is imported

import os
import tempfile

HOME = tempfile.mkdtemp(prefix="unclip-prefect-")
os.environ |= {"PREFECT_API_URL": "", "PREFECT_HOME": HOME, "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

REPOSITORY = Path(__file__).parents[2]


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of someone who has set nothing for Prefect."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DO_NOT_TRACK", "NO_ALBUMENTATIONS"))} | more


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(what: str, holds: Callable[[], object], seconds: float) -> None:
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def harness() -> Iterator[None]:
    """A temporary server for flows that are called in this process."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
    shutil.rmtree(HOME, ignore_errors=True)
