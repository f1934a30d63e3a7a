"""A run's folder: gone on with for the same inputs, moved aside for others, refused for another config."""

from pathlib import Path

import pytest

from unclip.files import UnclipError
from unclip.training.config import TrainingConfig
from unclip.training.run import has_all_steps, last_checkpoint, open_run

CONFIG = TrainingConfig(num_steps=3)


def finished(run: Path, inputs: dict[str, str]) -> None:
    open_run(run, "prior", CONFIG, inputs).finish(counts={"steps": 3}, digest="d")
    (run / "weights").write_text(inputs["embeddings"])


def test_a_run_on_grown_data_moves_the_earlier_one_aside(tmp_path: Path) -> None:
    finished(tmp_path / "main", {"embeddings": "old"})
    finished(tmp_path / "main", {"embeddings": "new"})
    kept = {(folder / "weights").read_text() for folder in tmp_path.iterdir()}
    assert kept == {"old", "new"}
    assert (tmp_path / "main" / "weights").read_text() == "new"


def test_the_same_inputs_go_on_in_place(tmp_path: Path) -> None:
    finished(tmp_path / "main", {"embeddings": "old"})
    open_run(tmp_path / "main", "prior", CONFIG, {"embeddings": "old"})
    assert [folder.name for folder in tmp_path.iterdir()] == ["main"]
    assert (tmp_path / "main" / "weights").exists()


def test_another_config_is_refused_before_anything_is_moved(tmp_path: Path) -> None:
    finished(tmp_path / "main", {"embeddings": "old"})
    with pytest.raises(UnclipError, match="num_steps was 3, is now 4"):
        open_run(tmp_path / "main", "prior", TrainingConfig(num_steps=4), {"embeddings": "new"})
    assert [folder.name for folder in tmp_path.iterdir()] == ["main"]


def test_nothing_that_was_moved_aside_is_overwritten(tmp_path: Path) -> None:
    for inputs in ("old", "new", "old"):
        finished(tmp_path / "main", {"embeddings": inputs})
    with pytest.raises(UnclipError, match="remove one of the two"):
        open_run(tmp_path / "main", "prior", CONFIG, {"embeddings": "new"})


def test_a_lost_checkpoint_is_one_line(tmp_path: Path) -> None:
    finished(tmp_path / "main", {"embeddings": "old"})
    with pytest.raises(UnclipError, match="that folder is gone"):
        last_checkpoint(tmp_path / "main", "prior")


def test_a_run_that_ended_at_a_bound_is_finished_and_not_done(tmp_path: Path) -> None:
    assert not has_all_steps(tmp_path / "main", 3)
    finished(tmp_path / "main", {"embeddings": "old"})
    assert has_all_steps(tmp_path / "main", 3)
    assert not has_all_steps(tmp_path / "main", 4)
