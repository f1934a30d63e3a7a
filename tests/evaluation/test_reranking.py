"""Choosing among draws, held against one draw and against a second real picture, in cases whose answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.stores import write_store
from unclip.data.store import iter_batches, normalised
from unclip.evaluation.heldout import NEAREST, TEXT, TRUE, Predictions, Rows
from unclip.evaluation.recall import ranks
from unclip.evaluation.reranking import SECOND, measure_reranking, second_pictures, share_closed

WIDTH = 8


def made(folder: Path, captions: list[str]) -> tuple[Path, Rows, Predictions]:
    """A store whose first rows are asked for: the first draw is a stranger's picture for all but every other one, the best is right for all."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(captions), WIDTH)).astype(np.float16).astype(np.float32)
    store = write_store(folder, images, images, captions, ["test"] * len(captions), parts=2)
    num = 6
    rows = Rows([f"k{row}" for row in range(num)], captions[:num], images[:num], images[:num])
    first = np.where((np.arange(num) % 2 == 0)[:, None], images[:num], -images[:num])
    draws = np.stack([first, images[:num]], axis=1)
    ladder = {TRUE: rows.true_emb, "diffusion x1": first, "diffusion best of 2": images[:num], "linear": first, TEXT: first, NEAREST: first}
    return store, rows, Predictions(ladder, {"diffusion x1": draws}, "diffusion best of 2", "linear")


def measured(store: Path, rows: Rows, predicted: Predictions) -> dict[str, Any]:
    placed = {name: ranks(emb, rows.true_emb, store) for name, emb in predicted.rows.items()}
    return measure_reranking(predicted, placed, rows, store, split="test", world="", seed=0)


def test_the_first_other_picture_of_a_caption_is_the_second(tmp_path: Path) -> None:
    captions = ["a", "b", "a", "c", "d", "e", *(f"other {row}" for row in range(30)), "a", "c"]
    store, rows, _ = made(tmp_path, captions)
    found = second_pictures(store, rows, world="")
    assert np.array_equal(found[[0, 2]], rows.true_emb[[2, 0]])
    assert np.isnan(found[[1, 4, 5]]).all()
    assert not np.isnan(found[3]).any()


def test_in_the_shapes_world_two_wordings_of_a_scene_are_one_caption(tmp_path: Path) -> None:
    wordings = ["a small red star on a white background", "one small red star on white", "a large red star"]
    captions = [*wordings, "a large blue star", "a large green ring", "a small pink cross"]
    store, rows, _ = made(tmp_path, captions)
    found = second_pictures(store, rows, world="shapes")
    assert np.array_equal(found[:2], rows.true_emb[[1, 0]])
    assert np.isnan(found[2:]).all()


def test_the_gain_and_the_ceiling_are_those_of_sorted_cosines(tmp_path: Path) -> None:
    captions = ["a", "b", "c", "d", "e", "f", *(f"other {row}" for row in range(40)), "a", "b", "c", "d"]
    store, rows, predicted = made(tmp_path, captions)
    found = measured(store, rows, predicted)
    gain = found["gains"]["diffusion"]["recall_at_10"]
    assert gain["mean"] == pytest.approx(0.5)
    assert gain["low"] <= 0.5 <= gain["high"]
    ceiling = found["ceiling"]
    assert ceiling["captions"] == 4
    second = second_pictures(store, rows, world="")[:4]
    gallery = normalised(np.concatenate([batch["image_emb"] for batch in iter_batches(store, ["image_emb"])]))
    order = np.argsort(-(normalised(second) @ gallery.T), axis=1)[:, 1:]  # the first is the picture that asks
    place = (order == np.arange(4)[:, None]).argmax(axis=1) + 1
    rows_of = ceiling["rows"]
    assert rows_of[SECOND]["median_rank"] == np.median(place)
    assert rows_of[SECOND]["recall_at_10"]["mean"] == (place <= 10).mean()
    assert rows_of["diffusion x1"]["recall_at_1"]["mean"] == 0.5
    assert rows_of["diffusion best of 2"]["image_cosine"]["mean"] == pytest.approx(1.0)


def test_of_the_way_to_the_ceiling_a_share_is_closed() -> None:
    first, best, ceiling = (np.repeat([1.0, 0.0], [ones, 100 - ones]) for ones in (20, 50, 80))
    closed = share_closed(first, best, ceiling, seed=0)
    assert closed["mean"] == pytest.approx(0.5)
    assert 0.3 < closed["low"] < 0.5 < closed["high"] < 0.7  # by the binomial, its standard deviation is about 0.06
    assert share_closed(ceiling, best, first, seed=0) is None


def test_where_no_caption_has_two_pictures_the_report_says_so(tmp_path: Path) -> None:
    store, rows, predicted = made(tmp_path, [f"caption {row}" for row in range(40)])
    found = measured(store, rows, predicted)
    assert found["ceiling"] is None
    assert "there is no ceiling of a draw" in str(found["sentence"])
