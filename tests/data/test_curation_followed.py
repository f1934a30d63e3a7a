"""Whoever comes after the curation goes by it: pictures for training, pairs for CLIP, and the index."""

import shutil
from pathlib import Path

from tests.data.byhand import Shown, Vector, png, write_shards, write_store
from unclip.clip import TowerConfig
from unclip.data.curate import CurateConfig, curate
from unclip.data.index import IndexConfig, build_index, open_index
from unclip.data.pictures import PictureConfig, open_pictures
from unclip.data.select import SelectConfig, select
from unclip.data.store import part_digest, part_paths, read_pairs
from unclip.training.clip_data import open_clip_pairs

ROWS = [Shown(f"caption {at}", png(at)) for at in range(5)] + [Shown("caption 0", png(0)), Shown("photo.jpg", png(7))]
# of the five rows that are kept: the second is near to the first, the last is held out and near to the fourth
VECTORS = [Vector([1, 0]), Vector([1, 0.1]), Vector([0, 1]), Vector([-1, 0]), Vector([-1, 0.1], "heldout")]


def make(tmp_path: Path, config: SelectConfig) -> tuple[Path, Path]:
    shards, store = write_shards(tmp_path / "shards", [ROWS]), write_store(tmp_path / "store", [VECTORS])
    curate(tmp_path, shards, CurateConfig())
    select(store, config)
    return shards, store


def test_training_pictures_are_those_that_were_kept_and_none_counts_as_missing(tmp_path: Path) -> None:
    shards, store = make(tmp_path, SelectConfig(near_duplicates="drop", crossing="move"))
    assert read_pairs(store, split="train", text_tokens=False).keys.tolist() == ["0000000000", "0000000002", "0000000003"]
    pictures = open_pictures(shards, store, PictureConfig(), split="train", image_size=8, text_tokens=False, seed=0)
    assert [pictures.joined.places.key(row) for row in range(len(pictures))] == ["0000000000", "0000000002", "0000000003"]
    assert pictures.joined.rejected == {}


def test_a_picture_that_was_kept_and_never_embedded_still_counts_as_missing(tmp_path: Path) -> None:
    shards, store = write_shards(tmp_path / "shards", [ROWS]), write_store(tmp_path / "store", [VECTORS[:4]])
    curate(tmp_path, shards, CurateConfig())
    select(store, SelectConfig(near_duplicates="drop"))
    pictures = open_pictures(shards, store, PictureConfig(), split="train", image_size=8, text_tokens=False, seed=0)
    assert pictures.joined.rejected == {"embedding missing": 1}


def test_a_clip_is_trained_on_what_was_kept(tmp_path: Path) -> None:
    shards, _ = make(tmp_path, SelectConfig())
    assert open_clip_pairs(shards, TowerConfig()).captions.to_pylist() == [f"caption {at}" for at in range(5)]


def test_an_index_is_not_grown_from_one_of_other_rows(tmp_path: Path) -> None:
    _, store = make(tmp_path, SelectConfig())
    before = part_digest(part_paths(store)[0])
    build_index(store, tmp_path / "index", IndexConfig())
    assert open_index(tmp_path / "index").keys.num_rows == 5
    shutil.rmtree(store / "_selected")
    select(store, SelectConfig(near_duplicates="drop", crossing="move"))
    assert part_digest(part_paths(store)[0]) != before
    manifest = build_index(store, tmp_path / "index", IndexConfig())
    assert manifest.counts["rows_in"] == manifest.counts["kept"] == 3
    keys = open_index(tmp_path / "index").keys
    assert keys["key"].to_pylist() == ["0000000000", "0000000002", "0000000003"]
    assert keys["split"].to_pylist() == ["train"] * 3
