"""What all tests share: two cores must not be fought over, and nothing asks the network for anything."""

import os

os.environ.update(DO_NOT_TRACK="1", NO_ALBUMENTATIONS_UPDATE="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_a_worker() -> None:
    torch.set_num_threads(1)
