"""The numbers of a run: buckets that add up, emptiness that is not a number's, and trackers that are there or say so."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.training.toy import CONFIG, train_toy
from unclip.files import UnclipError
from unclip.training.config import TrainingConfig
from unclip.training.metrics import Recorder, loss_by_step


def test_the_loss_by_step_is_the_mean_of_each_quarter() -> None:
    errors, i = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 249, 250, 999])
    found = {name: pair.tolist() for name, pair in loss_by_step(errors, i, 1000).items()}
    assert found == {"loss_t0_250": [3.0, 2.0], "loss_t250_500": [4.0, 1.0], "loss_t500_750": [0.0, 0.0], "loss_t750_1000": [8.0, 1.0]}
    assert list(loss_by_step(errors, i // 100, 10, buckets=3)) == ["loss_t0_3", "loss_t3_6", "loss_t6_10"]


def test_what_is_not_a_number_is_an_empty_cell(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "none", [], kind="toy", start=0)
    recorder.add(1, {"loss": 0.5, "loss_t0_250": float("nan")})
    recorder.add(2, {"loss": 0.25, "loss_t0_250": 2.0})
    table = pq.read_table(recorder.write())
    assert table.to_pydict() == {"step": [1, 2], "loss": [0.5, 0.25], "loss_t0_250": [None, 2.0]}


def test_tensorboard_is_the_default_and_none_leaves_nothing(tmp_path: Path) -> None:
    assert TrainingConfig().tracker == "tensorboard"
    train_toy(tmp_path / "with", TrainingConfig(**{**vars(CONFIG), "tracker": "tensorboard", "num_steps": 2}))
    train_toy(tmp_path / "without", TrainingConfig(**{**vars(CONFIG), "num_steps": 2}))
    assert list((tmp_path / "with" / "tensorboard").glob("events*"))
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_a_tracker_that_is_missing_is_said_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UnclipError, match=r"pip install 'unclip\[wandb\]'"):
        train_toy(tmp_path / "run", TrainingConfig(**{**vars(CONFIG), "tracker": "wandb"}))
    assert not (tmp_path / "run").exists()
