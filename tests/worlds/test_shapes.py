"""The shapes world: what a caption says is what the scene is, and no scene crosses from one split to another."""

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unclip.files import UnclipError
from unclip.worlds.shapes import COLOURS, HELDOUT_PAIRS, SHAPES, caption, coverage, inside, parse_caption, render, scenes, split_of
from unclip.worlds.write import WorldConfig, write_world

SPLITS = ("train", "heldout-scene", "heldout-pair")


@pytest.mark.parametrize("split", SPLITS)
def test_a_caption_says_just_what_the_scene_is(split: str) -> None:
    rng = np.random.default_rng(1)
    wordings = set()
    for scene in islice(scenes(split, rng), 1500):  # type: ignore[arg-type]
        text = caption(scene, rng)
        said = parse_caption(text)
        assert (said.objects, said.relation) == (scene.objects, scene.relation), text
        assert said.background in (scene.background, None), text
        wordings |= {word for word in ("left of", "above", "that is", ", ", "one ", "on a ") if word in text}
        wordings.add(f"background said: {said.background is not None}")
    assert len(wordings) == 8  # every wording came up


@pytest.mark.parametrize("text", ["", "a circle", "a small red circle a large blue star", "a small red circle above", "a dog", "a small mauve circle"])
def test_a_sentence_that_is_not_of_this_world_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a caption like"):
        parse_caption(text)


def test_splits_share_no_scene_and_training_never_shows_a_held_out_pair() -> None:
    found = {split: set(islice(scenes(split, np.random.default_rng(2)), 4000)) for split in SPLITS}  # type: ignore[arg-type]
    assert not found["train"] & found["heldout-scene"]
    for split, held in (("train", False), ("heldout-scene", False), ("heldout-pair", True)):
        for scene in found[split]:
            assert any((thing.colour, thing.shape) in HELDOUT_PAIRS for thing in scene.objects) == held
            assert split_of(scene) == split
    shown = {(thing.colour, thing.shape) for scene in found["train"] for thing in scene.objects}
    assert len(shown) == len(COLOURS) * len(SHAPES) - len(HELDOUT_PAIRS)  # all others are there to learn from


@pytest.mark.parametrize(("shape", "area"), [("circle", np.pi / 4), ("square", 0.81), ("ring", np.pi / 4 * (1 - 0.55**2)), ("cross", 2 * 0.33 - 0.33**2)])
def test_coverage_adds_up_to_the_area_of_the_shape(shape: str, area: float) -> None:
    assert coverage(shape, (32.0, 32.0), 40.0, 64).sum() == pytest.approx(area * 40**2, rel=0.02)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape must be one of"):
        inside("hexagon", np.zeros(1), np.zeros(1))


def test_no_shape_is_cut_off_at_the_border() -> None:
    rng = np.random.default_rng(3)
    for scene in islice(scenes("train", rng), 300):
        picture = render(scene, size=32, rng=rng)
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (border == border[0]).all()


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())).hexdigest()


def test_the_same_config_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    small = {"num_train": 20, "num_heldout": 5, "image_size": 32}
    counts = write_world(tmp_path / "a", WorldConfig(**small))  # type: ignore[arg-type]
    assert counts == {"train": 20, "heldout-scene": 5, "heldout-pair": 5}
    write_world(tmp_path / "b", WorldConfig(**small))  # type: ignore[arg-type]
    write_world(tmp_path / "c", WorldConfig(**small, seed=1))  # type: ignore[arg-type]
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    rows = pq.read_table(tmp_path / "a/captions.parquet").to_pylist()
    assert Image.open(tmp_path / "a" / rows[0]["file"]).size == (32, 32)
    assert all(split_of(parse_caption(row["caption"])) == row["split"] for row in rows if parse_caption(row["caption"]).background)


def test_a_world_is_left_as_it_is_and_never_mixed(tmp_path: Path) -> None:
    config = WorldConfig(num_train=3, num_heldout=1, image_size=16)
    counts = write_world(tmp_path / "world", config)
    before = digest(tmp_path / "world")
    assert write_world(tmp_path / "world", config) == counts
    assert digest(tmp_path / "world") == before
    with pytest.raises(UnclipError, match="num_train was 3, is now 4"):
        write_world(tmp_path / "world", WorldConfig(num_train=4, num_heldout=1, image_size=16))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UnclipError, match="was not made by this command"):
        write_world(tmp_path / "mine", config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "emoji", "num_train": 5}, "num_train has an effect only"),
        ({"font": "x"}, "font has an effect only"),
        ({"image_size": 0}, "image_size must be"),
    ],
)
def test_a_setting_without_effect_is_an_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldConfig(**settings)  # type: ignore[arg-type]
