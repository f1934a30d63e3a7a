"""A disk that will be full is named before a stage begins."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tests.pipeline import copied, folder_of
from unclip.config import RunConfig, load_config
from unclip.files import UnclipError
from unclip.models import paths_of
from unclip.space import SPARE_BYTES, expected_bytes, require_space
from unclip.stages import run_stage
from unclip.training.run import last_checkpoint
from unclip.training.snapshot import KEPT_CHECKPOINTS

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(root: Path, tmp_path: Path) -> RunConfig:
    """A finished root of one's own."""
    return load_config(file=copied(root, tmp_path / "root") / "run.json")


def weight(folder: Path) -> int:
    """What its files take, less what TensorBoard keeps."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)


@pytest.mark.parametrize("stage", ["download", "embed", "decoder", "upsampler"])
def test_a_stage_writes_no_more_than_expected_and_not_much_less(stage: str, config: RunConfig) -> None:
    paths, folder = paths_of(config), folder_of(Path(config.root), stage)
    written = weight(folder)
    if stage == "embed":  # what lies beside its own
        written -= weight(folder / "_selected") + weight(folder / "_cache")
    if stage in ("download", "embed"):  # the formulas are of what is still to be written
        for record in folder.glob("[0-9]*.json"):
            record.unlink()
    expected = expected_bytes(stage, config, paths)
    assert 0.7 * written < expected < 6 * written  # a tiny root's: fixed sizes and three checkpoints weigh more than in a real one


def test_a_training_may_hold_all_that_it_keeps_and_one_more(config: RunConfig) -> None:
    paths = paths_of(config)
    one = sum(path.stat().st_size for path in last_checkpoint(paths.decoder, "decoder").rglob("*.*"))
    # moments are foreseen for AdamW, which keeps two; Muon keeps one
    assert (KEPT_CHECKPOINTS + 1) * one * 0.95 < expected_bytes("decoder", config, paths) < (KEPT_CHECKPOINTS + 1) * one * 1.4


def test_what_is_done_is_not_expected_again(config: RunConfig) -> None:
    assert expected_bytes("download", config, paths_of(config)) == 0
    assert expected_bytes("embed", config, paths_of(config)) == 0


def test_a_full_disk_is_refused_before_anything_is_written(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(paths_of(config).decoder)
    needed = expected_bytes("decoder", config, paths_of(config))
    monkeypatch.setattr("unclip.space.shutil.disk_usage", lambda path: Usage(0, 0, needed + SPARE_BYTES - 1))
    with pytest.raises(UnclipError, match=r"decoder will write about 0\.\d\d GB below .*root, where 0\.\d\d GB are free"):
        run_stage("decoder", config)
    assert not paths_of(config).decoder.exists()
    monkeypatch.setattr("unclip.space.shutil.disk_usage", lambda path: Usage(0, 0, needed + SPARE_BYTES))
    require_space("decoder", config, paths_of(config))
