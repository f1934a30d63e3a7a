"""What all tests share: two cores must not be fought over, and nothing asks the network for anything."""

import os

os.environ.update(DO_NOT_TRACK="1", NO_ALBUMENTATIONS_UPDATE="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

import fcntl
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.pipeline import WATCH_THE_NETWORK, command, environment

SLOW_SECONDS = 1200

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's `&`: what the tests start would be deaf to Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes may take many where the machine is busy; a timeout ends the whole test process."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture(autouse=True, scope="session")
def _one_thread_a_worker() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]", Path]:
    """`unclip run --preset tiny`, the real flow, while every connection but to this machine is refused and written down.

    It is run once for all test processes: the first that wants it makes it, others wait for that.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "said.json").exists():
            _run_whole(folder)
    said = json.loads((folder / "said.json").read_text())
    return folder / "root", subprocess.CompletedProcess(**said), folder / "network.log"


def _run_whole(folder: Path) -> None:
    (folder / "watch").mkdir(exist_ok=True)
    (folder / "watch" / "sitecustomize.py").write_text(WATCH_THE_NETWORK)
    log = folder / "network.log"
    log.touch()
    watched = environment(PYTHONPATH=os.pathsep.join([str(folder / "watch"), *filter(None, [os.environ.get("PYTHONPATH")])]), NETWORK_LOG=str(log))
    done = subprocess.run(command("run", folder / "root", "--preset", "tiny"), env=watched, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = {"args": done.args, "returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    (folder / "said.json").write_text(json.dumps(said))


@pytest.fixture(scope="session")
def root(whole_run: tuple[Path, object, Path]) -> Path:
    """The finished data root; only to be read, or copied."""
    return whole_run[0]


@pytest.fixture
def sole_download(root: Path) -> Iterator[None]:
    """No other test process downloads the pictures of a copy of `root` meanwhile: all copies serve them on one port."""
    with (root.parent / "port").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
