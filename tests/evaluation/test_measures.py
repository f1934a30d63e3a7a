"""CLIP and intervals on embeddings whose answers are known, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from unclip.data.store import normalised
from unclip.evaluation.clip import measure_pairs, numbered
from unclip.evaluation.heldout import scene_of
from unclip.evaluation.intervals import interval, mean_with_interval


def test_recall_counts_the_very_picture_and_the_same_scene_apart() -> None:
    # caption 0 lies on picture 1, which shows the same scene; 1 and 2 lie on their own
    images = np.eye(3)
    texts = np.array([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    found = measure_pairs(images, texts, ["a", "a", "b"], seed=0)
    assert found["recall_at_1"] == pytest.approx(2 / 3)
    assert found["scene_recall_at_1"] == 1.0
    assert found["recall_at_5"] == 1.0
    assert (found["gallery"], found["scenes"]) == (3, 2)
    assert found["similarity"] == pytest.approx((0.6 + 1 + 1) / 3)
    # the only two ways to shuffle three in a circle: 0->1, 1->2, 2->0 gives 0.8, and the other gives 0
    assert found["shuffled_similarity"] == pytest.approx(0.8 / 3) or found["shuffled_similarity"] == pytest.approx(0.0)


def test_recall_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(60, 8))
    texts = images + 1.5 * rng.normal(size=(60, 8))
    found = measure_pairs(images, texts, list(range(60)), seed=0)
    similarity = cosine_similarity(texts, images)
    for k in (1, 5):
        assert found[f"recall_at_{k}"] == pytest.approx(top_k_accuracy_score(np.arange(60), similarity, k=k))
        assert found[f"scene_recall_at_{k}"] == found[f"recall_at_{k}"]
    assert 0 < found["recall_at_1"] < found["recall_at_5"] < 1


def test_one_pair_has_no_shuffled_pair() -> None:
    found = measure_pairs(np.ones((1, 4)), np.ones((1, 4)), ["a"], seed=0)
    assert found["shuffled_similarity"] is None
    assert found["recall_at_1"] == 1.0


def test_scenes_are_told_by_what_a_shapes_caption_means_and_elsewhere_by_the_words() -> None:
    first = "a small red circle left of a large blue star, white background"
    second = "on a white background, a small red circle left of a large blue star"
    assert scene_of(first, "shapes") == scene_of(second, "shapes")
    assert scene_of(first, "") != scene_of(second, "")
    assert numbered(["b", "a", "b"]).tolist() == [0, 1, 0]


def test_the_interval_is_that_of_a_known_share_and_seeded() -> None:
    values = np.array([1.0] * 30 + [0.0] * 70)
    low, high = interval(values, seed=0)
    assert (low, high) == interval(values, seed=0)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 100)  # normal approximation
    assert low == pytest.approx(0.3 - half, abs=0.025)
    assert high == pytest.approx(0.3 + half, abs=0.025)
    assert interval(np.array([0.5]), seed=0) == (0.5, 0.5)
    assert mean_with_interval(np.ones(4), seed=0) == {"mean": 1.0, "low": 1.0, "high": 1.0, "number": 4}
    with pytest.raises(ValueError, match="at least one value"):
        interval(np.zeros(0), seed=0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    inside = [low <= 0.4 <= high for low, high in (interval((rng.random(60) < 0.4).astype(float), seed=seed) for seed in range(100))]
    assert np.mean(inside) > 0.88


def test_normalising_for_cosines_keeps_the_caller_s_array() -> None:
    values = np.full((2, 3), 2.0, np.float32)
    normalised(values)
    assert (values == 2.0).all()
