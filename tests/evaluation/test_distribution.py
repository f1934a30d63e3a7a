"""Fréchet distance and MMD where their values are known, and what each is blind to."""

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.stores import write_store
from unclip.data.store import normalised
from unclip.evaluation.distribution import CMMD_SIGMA, Training, frechet, frechet_of_rows, measure_distribution, median_distance, mmd, read_training

WIDTH = 12


def training(axes: int = 4) -> Training:
    return Training(np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32), np.eye(WIDTH)[:axes], np.full(axes, 1 / WIDTH))


def crowd(num: int, *, seed: int, rank: int = WIDTH) -> np.ndarray:
    """Rows around one direction, varying in `rank` of the others, all of which have the same mean."""
    values = np.random.default_rng(seed).normal(size=(num, WIDTH))
    values[:, rank:] = 0.0
    return normalised(values + 2.0)


def test_frechet_of_gaussians_that_share_their_axes_is_a_sum_over_axes() -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    first, second = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.25])
    mean = np.array([1.0, -2.0, 0.5])
    expected = np.square(mean).sum() + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet(mean, rotation @ np.diag(first) @ rotation.T, np.zeros(3), rotation @ np.diag(second) @ rotation.T) == pytest.approx(expected)
    assert frechet(mean, np.diag(first), mean, np.diag(first)) == pytest.approx(0.0, abs=1e-9)


def test_frechet_of_many_rows_is_that_of_the_gaussians_they_come_from() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(20_000, 2)) * [1.0, 3.0], rng.normal(size=(20_000, 2)) * [2.0, 1.0] + [1.0, 0.0]
    assert frechet_of_rows(first, second) == pytest.approx(1.0 + 1.0 + 4.0, rel=0.03)
    assert frechet_of_rows(first[:, :1], second[:, :1]) == pytest.approx(1.0 + 1.0, rel=0.03)


def test_mmd_is_the_double_loop() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 1.0

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (2 * 0.7**2)))

    def mean(xs: np.ndarray, ys: np.ndarray) -> float:
        return sum(kernel(x, y) for x in xs for y in ys) / (len(xs) * len(ys))

    assert mmd(first, second, sigma=0.7) == pytest.approx(mean(first, first) + mean(second, second) - 2 * mean(first, second))
    assert mmd(first, first, sigma=0.7) == pytest.approx(0.0, abs=1e-12)


def test_the_median_distance_is_over_pairs() -> None:
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)


def test_sigma_10_is_blind_to_collapse_and_the_median_is_not() -> None:
    real, again = crowd(400, seed=0), crowd(400, seed=1)
    # half the spread around the same mean, a collapse; and a shift of the mean with the spread left as it was
    collapsed = real.mean(axis=0) + 0.2 * (crowd(400, seed=2) - real.mean(axis=0))
    sigma = median_distance(real)
    wide, narrow = ({name: mmd(rows, real, sigma=width) for name, rows in (("floor", again), ("collapsed", collapsed))} for width in (CMMD_SIGMA, sigma))
    assert wide["collapsed"] < 2 * wide["floor"]
    assert narrow["collapsed"] > 10 * narrow["floor"]
    shifted = again + 0.1 * np.eye(WIDTH)[0]
    assert mmd(shifted, real, sigma=CMMD_SIGMA) == pytest.approx(np.square(shifted.mean(0) - real.mean(0)).sum() / CMMD_SIGMA**2, rel=0.02)
    assert frechet_of_rows(collapsed, real) > 10 * frechet_of_rows(again, real)


def test_a_perfect_prior_lies_at_the_floor_and_a_collapsed_one_far_above() -> None:
    truth = crowd(400, seed=0)
    ladder = {"true": truth, "perfect": crowd(400, seed=1), "collapsed": np.repeat(truth.mean(axis=0)[None], 400, axis=0), "doubled": 2.0 * truth}
    found = measure_distribution(ladder, truth, training())
    assert (found["n"], found["axes"], found["share"]) == (200, 4, pytest.approx(4 / WIDTH))
    for metric in ("frechet", "mmd", "cmmd"):
        floor = found["rows"]["true"][metric]
        assert floor > 0
        assert found["rows"]["doubled"][metric] == pytest.approx(floor)  # lengths do not count
        assert found["rows"]["perfect"][metric] < 3 * floor
    for metric in ("frechet", "mmd"):
        assert found["rows"]["collapsed"][metric] > 10 * found["rows"]["true"][metric]


def test_few_rows_get_few_axes_and_one_none() -> None:
    truth = crowd(50, seed=0)
    assert measure_distribution({"true": truth}, truth, training())["axes"] == 2  # 25 rows a side
    assert measure_distribution({"true": truth[:4]}, truth[:4], training())["rows"]["true"]["frechet"] >= 0.0
    assert measure_distribution({"true": truth[:3]}, truth[:3], training())["rows"]["true"] == {"frechet": None, "cmmd": None, "mmd": None}


def test_training_rows_give_means_and_axes_and_held_out_rows_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    images = normalised(rng.normal(size=(600, 5)) * [0.1, 0.5, 0.1, 0.02, 0.1] + [3.0, 0, 0, 0, 0]).astype(np.float64)
    splits = ["train"] * 500 + ["test"] * 100
    images[500:] = [0, 0, 0, 0, 1]
    found = read_training(write_store(tmp_path, images, 2 * images, [""] * 600, splits, parts=3))
    np.testing.assert_allclose(found.image_mean, images[:500].mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(found.text_mean, found.image_mean, atol=1e-3)  # of unit vectors, whatever their length
    variances = np.linalg.eigvalsh(np.cov(images[:500].T, bias=True))[::-1]
    np.testing.assert_allclose(found.shares, variances / variances.sum(), atol=1e-3)
    assert abs(found.axes[0, 1]) > 0.99
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(5), atol=1e-9)
