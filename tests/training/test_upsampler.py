"""The upsampler stage: none, one or two of them, each made once; what does not fit is refused before anything is trained."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from tests.pipeline import copied
from unclip.config import RunConfig, load_config
from unclip.files import UnclipError
from unclip.models import load_models, paths_of
from unclip.stages import is_done, result_of, run_stage
from unclip.training.upsampler import UpsamplerTraining, load_trained_upsamplers
from unclip.upsampler import UpsamplerConfig


@pytest.fixture
def config(root: Path, tmp_path: Path) -> RunConfig:
    """A copy of the tiny root without its upsamplers."""
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(copy / "upsampler")
    return load_config(file=copy / "run.json")


def with_upsamplers(config: RunConfig, num: int) -> RunConfig:
    return dataclasses.replace(config, upsampler=dataclasses.replace(config.upsampler, num_upsamplers=num))


def test_without_upsamplers_the_stage_has_nothing_to_do_and_says_so(config: RunConfig) -> None:
    none = with_upsamplers(config, 0)
    manifest, worked = run_stage("upsampler", none)
    assert not worked
    assert is_done("upsampler", none)
    assert "num_upsamplers is 0" in manifest.counts["nothing to do"]
    assert result_of("upsampler", none) == manifest
    assert not paths_of(none).upsampler.exists()
    assert load_models(none, None).upsamplers == ()


def test_a_second_is_added_to_the_first_which_stays_as_it_is(config: RunConfig, root: Path) -> None:
    one, two = with_upsamplers(config, 1), with_upsamplers(config, 2)
    run = paths_of(config).upsampler
    assert run_stage("upsampler", one)[0].counts["upsamplers"] == {"first": 6}
    before = (run / "first" / "manifest.json").read_bytes()
    assert not is_done("upsampler", two)
    manifest, worked = run_stage("upsampler", two)
    assert worked
    assert (run / "first" / "manifest.json").read_bytes() == before
    assert manifest.counts == {"steps": 12, "rows_in": 96, "kept": 96, "rejected": {}, "upsamplers": {"first": 6, "second": 6}}
    assert manifest.digest == result_of("upsampler", load_config(file=root / "run.json")).digest, "not what both in one go come to"
    assert [upsampler.config.scale for upsampler in load_models(two, None).upsamplers] == [2, 2]
    assert len(load_models(one, None).upsamplers) == 1


def test_other_settings_of_a_trained_one_are_refused(config: RunConfig) -> None:
    run_stage("upsampler", with_upsamplers(config, 1))
    first = dataclasses.replace(config.upsampler.first, corruption_prob=0.5)
    other = dataclasses.replace(config, upsampler=dataclasses.replace(config.upsampler, first=first))
    with pytest.raises(UnclipError, match=r"another upsampler-first config: corruption_prob was 1\.0, is now 0\.5"):
        run_stage("upsampler", other)


def test_one_that_is_wanted_and_not_trained_is_named(config: RunConfig) -> None:
    with pytest.raises(UnclipError, match="unclip train upsampler"):
        load_trained_upsamplers(paths_of(config).upsampler, config.upsampler)


def test_training_brings_the_loss_down(config: RunConfig) -> None:
    """A few steps on crops of the tiny root."""
    import pyarrow.parquet as pq

    training = dataclasses.replace(config.upsampler.first.training, num_steps=24, batch_size=16, log_every=2, learning_rate=5e-3, tracker="none")
    first = dataclasses.replace(config.upsampler.first, training=training)
    section = dataclasses.replace(config.upsampler, first=first, num_upsamplers=1, run="longer")
    longer = dataclasses.replace(config, upsampler=section)
    run_stage("upsampler", longer)
    losses = pq.read_table(paths_of(longer).upsampler / "first" / "metrics.parquet")["loss"].to_pylist()
    assert torch.tensor(losses[-4:]).mean() < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upsampler.num_upsamplers": 3}, "num_upsamplers must be 0, 1 or 2, got 3"),
        ({"upsampler.first.network.low_size": 8}, "upsampler.first.network.low_size must be the 16 pixels that the decoder makes, got 8"),
        ({"upsampler.second.network.low_size": 16}, "second.network.low_size must be the 32 pixels that the first upsampler makes, got 16"),
        ({"download.image_size": 32}, "upsampler.second learns to make pictures of 64 pixels, but those in the shards have 32"),
        ({"upsampler.first.crop_fraction": 0.3}, "a crop's side must be a multiple of 2 pixels"),
        ({"upsampler.first.crop_fraction": 0.0}, r"crop_fraction must be in \(0, 1\]"),
        ({"upsampler.first.corruption_prob": 0.0}, "corruption is 'none'"),
        ({"upsampler.first.network.residual_scale": -1.0}, "residual_scale must not be negative"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UnclipError, match=message):
        load_config(preset="tiny", settings=settings)


def test_crops_are_whole_pixels_of_the_small_picture() -> None:
    with pytest.raises(ValueError, match=r"multiple of 8 pixels .*, got 0\.1 of 128, which is 12\.8"):
        UpsamplerTraining(network=UpsamplerConfig(), crop_fraction=0.1)
