"""The quintet and the spreads on vectors whose angles are known."""

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.stores import write_store
from unclip.evaluation.cosine import quintet, real_spreads, spread, spreads
from unclip.evaluation.distribution import read_training
from unclip.evaluation.heldout import Rows
from unclip.evaluation.prior import conditional_spread, cosines, with_intervals


def at(*degrees: float) -> np.ndarray:
    """Plane vectors at these angles, of different lengths."""
    angles = np.deg2rad(degrees)
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, len(degrees) + 1)[:, None]).astype(np.float32)


def test_the_quintet_is_five_known_angles() -> None:
    found = quintet(emb=at(60, 100), true_emb=at(90, 90), text_emb=at(0, 30))
    expected = {"baseline": (90, 60), "text": (60, 70), "image": (30, 10), "unrelated": (100, 30)}  # degrees between; unrelated is rolled
    for name, degrees in expected.items():
        np.testing.assert_allclose(found[name], np.cos(np.deg2rad(degrees)), atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["difference"], found["text"] - found["baseline"])


def test_one_caption_has_no_unrelated_one_and_the_report_says_none() -> None:
    found = quintet(at(60), at(90), at(0))
    assert np.isnan(found["unrelated"]).all()
    row = with_intervals(found, seed=0)
    assert row["unrelated"] is None
    assert "unrelated" not in row["intervals"]
    assert row["intervals"]["text"] == pytest.approx([0.5, 0.5])


def test_a_prior_that_knows_the_mean_alone_has_a_high_cosine_and_no_centred_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 300, 8)) + 3.0
    store = write_store(tmp_path, images, texts, [str(row) for row in range(300)], ["train"] * 300, parts=2)
    training = read_training(store)
    rows = Rows(["a"] * 100, ["a"] * 100, images[:100].astype(np.float32), texts[:100].astype(np.float32))
    found = cosines(np.repeat(training.image_mean[None], 100, axis=0) * 7, rows, training)
    assert found["image_cosine"].mean() > 0.9  # why the raw cosine is not to be trusted
    assert found["centred_image_cosine"].mean() == pytest.approx(0.0, abs=0.05)
    perfect = cosines(rows.true_emb, rows, training)
    np.testing.assert_allclose(perfect["centred_image_cosine"], 1.0, atol=1e-5)


def test_the_spread_of_draws_is_within_captions() -> None:
    same = np.repeat(np.eye(4)[:, None], 3, axis=1)  # each caption draws one thing three times
    np.testing.assert_allclose(spreads(same), 0.0, atol=1e-7)
    assert spread(np.eye(4)) == pytest.approx(1.0)
    assert spread(np.eye(4)[:1]) is None
    np.testing.assert_allclose(spreads(np.stack([at(0, 60), at(10, 100)])), [0.5, 1.0], atol=1e-6)


def test_real_images_of_one_caption_are_found_over_all_parts_of_the_store(tmp_path: Path) -> None:
    images = at(0, 50, 60, 90, 120)
    store = write_store(tmp_path, images, images, ["a cat", "a dog", "a cat", "a fish", "a dog"], ["train", "test", "test", "test", "train"], parts=3)
    found, groups = real_spreads(store, ["a fish", "a cat", "a dog", "a cat"], world="")
    np.testing.assert_allclose(found, [np.nan, 0.5, 1 - np.cos(np.deg2rad(70)), 0.5], atol=1e-3)
    assert groups == {"scenes": 2, "images": 4}


def test_in_the_shapes_world_it_is_the_scene_that_images_share(tmp_path: Path) -> None:
    images = at(0, 60, 80)
    captions = ["a small red circle on a white background", "on a white background, a small red circle", "a small red circle on a grey background"]
    store = write_store(tmp_path, images, images, captions, ["test"] * 3)
    assert real_spreads(store, captions[:1], world="shapes")[0] == pytest.approx([0.5], abs=1e-3)
    assert np.isnan(real_spreads(store, captions[:1], world="")[0]).all()


def test_draws_that_vary_half_as_much_as_real_images_have_the_ratio_one_half() -> None:
    real = np.array([0.4, np.nan, 0.2, np.nan])
    draws = np.stack([at(0, float(np.rad2deg(np.arccos(1 - value)))) for value in (0.2, 0.9, 0.1, 0.7)])
    found = conditional_spread(draws, real, seed=0)
    assert found["draw_spread"] == pytest.approx(np.mean([0.2, 0.9, 0.1, 0.7]), abs=1e-6)
    assert found["draw_spread_ratio"] == pytest.approx(0.5, abs=1e-5)  # over the captions that have real images
    assert found["draw_spread_ratio_interval"] == pytest.approx([0.5, 0.5], abs=1e-5)  # it is 0.5 for each of them
    assert conditional_spread(draws, np.full(4, np.nan), seed=0)["draw_spread_ratio"] is None
    assert conditional_spread(draws[:, :1], real, seed=0)["draw_spread"] is None
    assert conditional_spread(None, real, seed=0)["draw_spread_ratio"] is None
