"""The config: presets, files and single settings over one another, and every mistake named by its path."""

import json
from pathlib import Path

import pytest

from unclip.cli.options import split_settings
from unclip.config import as_dict, check_config, full_path, load_config, presets
from unclip.files import UnclipError


@pytest.mark.parametrize("preset", presets())
def test_presets_are_whole(preset: str) -> None:
    config = load_config(preset=preset)
    assert check_config(as_dict(config)) == config


def test_later_settings_stand_over_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('root = "elsewhere"\n[prior.network]\ndepth = 3\nwidth = 64\n')
    config = load_config(preset="tiny", file=file, settings={"prior.network.depth": 5})
    assert (config.root, config.prior.network.depth, config.prior.network.width) == ("elsewhere", 5, 64)
    assert config.clip.tower.patch_size == load_config(preset="tiny").clip.tower.patch_size


def test_json_reads_like_toml(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(as_dict(load_config(preset="tiny"))))
    assert load_config(file=file) == load_config(preset="tiny")


def test_a_setting_may_leave_out_what_lies_between() -> None:
    assert full_path("prior.depth") == "prior.network.depth"
    assert full_path("decoder.channels") == "decoder.network.unet.channels"
    assert full_path("prior.training.seed") == "prior.training.seed"
    assert full_path("prior.nonsense") == "prior.nonsense"
    assert load_config(preset="tiny", settings={"prior.depth": 4}).prior.network.depth == 4


def test_of_several_settings_of_one_name_the_least_deep_is_meant() -> None:
    assert full_path("prior.num_steps") == "prior.training.num_steps"
    assert full_path("prior.autoregressive.depth") == "prior.autoregressive.network.depth"
    assert full_path("prior.regression.num_steps") == "prior.regression.training.num_steps"
    config = load_config(preset="tiny", settings={"prior.depth": 4, "prior.autoregressive.depth": 3})
    assert (config.prior.network.depth, config.prior.autoregressive.network.depth) == (4, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior.dpeth": 8}, r"unknown setting prior\.dpeth; known here: .*network"),
        ({"prior.network.dpeth": 8}, r"unknown setting prior\.network\.dpeth; did you mean 'depth'"),
        ({"priors.depth": 8}, "unknown setting priors; did you mean 'prior'"),
        ({"prior.network.depth": "deep"}, r"prior\.network\.depth: .*integer.*got 'deep'"),
        ({"prior.network.head_width": 7}, "head_width 7"),
        ({"world.name": "faces"}, r"world\.name: .*'shapes' or 'emoji', got 'faces'"),
        ({"decoder.drop_image_prob": 2}, r"drop_image_prob must be in \[0, 1\], got 2"),
        ({"source.path": "x.parquet"}, "one source"),
        ({"download.encode_quality": 500}, "encode_quality must be in"),
    ],
)
def test_mistakes_are_named_by_their_path(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UnclipError, match=message):
        load_config(preset="tiny", settings=settings)


def test_unknown_presets_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UnclipError, match="preset must be one of .*tiny.*got 'huge'"):
        load_config(preset="huge")
    with pytest.raises(UnclipError, match="there is none"):
        load_config(file=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(UnclipError, match="is not TOML"):
        load_config(file=tmp_path / "bad.toml")


def test_settings_are_taken_out_of_a_command_line() -> None:
    line = [
        "run",
        "--preset",
        "demo",
        "--prior.depth",
        "8",
        "--decoder.channel-mult=[1, 2]",
        "--world.name",
        "emoji",
        "a caption. with dots",
        "--source.allow-private=true",
    ]
    others, settings = split_settings(line)
    assert others == ["run", "--preset", "demo", "a caption. with dots"]
    assert settings == {"prior.depth": 8, "decoder.channel_mult": [1, 2], "world.name": "emoji", "source.allow_private": True}
    with pytest.raises(UnclipError, match="expected a value after --prior.depth"):
        split_settings(["run", "--prior.depth"])
