"""What all tests share: two cores must not be fought over, and nothing asks the network for anything."""

import os

os.environ.update(DO_NOT_TRACK="1", NO_ALBUMENTATIONS_UPDATE="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

import subprocess
from pathlib import Path

import pytest
import torch

from tests.pipeline import WATCH_THE_NETWORK, command, environment


@pytest.fixture(autouse=True, scope="session")
def _one_thread_a_worker() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]", Path]:
    """`unclip run --preset tiny`, the real flow, while every connection but to this machine is refused and written down."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH_THE_NETWORK)
    log = folder / "network.log"
    log.touch()
    watched = environment(PYTHONPATH=str(folder / "watch"), NETWORK_LOG=str(log))
    done = subprocess.run(command("run", folder / "root", "--preset", "tiny"), env=watched, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "root", done, log


@pytest.fixture(scope="session")
def root(whole_run: tuple[Path, object, Path]) -> Path:
    """The finished data root; only to be read, or copied."""
    return whole_run[0]
