"""Prefect's servers for tests. Nothing here is automatic: a test that needs a server asks for one."""

# ruff: noqa: E402 -- Prefect reads the environment when it is imported

import os
import tempfile

HOME = tempfile.mkdtemp(prefix="unclip-prefect-")
os.environ |= {"PREFECT_API_URL": "", "PREFECT_HOME": HOME, "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prefect.testing.utilities import prefect_test_harness

from flows.serve import DEPLOYMENTS

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Served:
    """A real Prefect server, what `python -m flows.serve` said to it, and the data root that it serves."""

    api: str
    root: Path
    port: int
    pid: int


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of someone who has set nothing for Prefect."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DO_NOT_TRACK", "NO_ALBUMENTATIONS"))} | more


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


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`prefect server start` as a user types it in the repository, and `python -m flows.serve` with the tiny preset."""
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    api, root = f"http://127.0.0.1:{port}/api", folder / "root"
    environment = clean_environment(PREFECT_HOME=str(folder / "home"), PREFECT_API_URL=api, PREFECT_RUNNER_POLL_FREQUENCY="1")
    (folder / "home").mkdir()
    with (folder / "server.log").open("w") as server_log, (folder / "serve.log").open("w") as serve_log:
        server = _start(["prefect", "server", "start", "--port", str(port)], environment, server_log)
        serve = None
        try:
            wait_for("the server", lambda: _answers(f"{api}/health"), 60)
            serve = _start(["flows.serve", "--preset", "tiny", "--root", str(root)], environment, serve_log)
            wait_for("the deployments", lambda: len(httpx.post(f"{api}/deployments/filter", json={}).json()) == len(DEPLOYMENTS), 60)
            yield Served(api, root, port, server.pid)
        except BaseException:
            print((folder / "server.log").read_text(), (folder / "serve.log").read_text())
            raise
        finally:
            for process in (serve, server):
                if process is not None:
                    _end(process)


def _start(module: list[str], environment: dict[str, str], log: object) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", *module], cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)  # type: ignore[call-overload,no-any-return]


def _end(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
