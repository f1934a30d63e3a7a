"""A picture is found among others by pixels: noisy copies are, strangers are not, and places are counted from the nearest."""

import numpy as np
import pytest

from unclip.evaluation.identify import chances, identify_by_pixels, squared_errors, thumbnails


def test_pixels_identify_noisy_copies_and_not_strangers() -> None:
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    noisy = np.clip(real[:20] + rng.normal(0, 20, real[:20].shape), 0, 255).astype(np.uint8)
    strangers = rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    found = identify_by_pixels({"real": real[:20], "decoded": noisy, "prior": strangers}, real)
    assert found["real"]["top_1"].mean() == 1.0
    assert found["decoded"]["top_1"].mean() == 1.0
    assert found["prior"]["top_5"].mean() < 0.5  # chance is 1 in 8


def test_the_place_by_pixels_is_counted_from_the_nearest() -> None:
    def grey(*levels: int) -> np.ndarray:
        return np.stack([np.full((16, 16, 3), level, np.uint8) for level in levels])

    # 0 is asked for and 10, 20, 30, 40, 50 stand nearer and nearer: second nearest, sixth nearest
    real = grey(0, 10, 20, 30, 40, 50)
    found = identify_by_pixels({"a": grey(6), "b": grey(50), "c": grey(4)}, real)
    assert {kind: (values["top_1"][0], values["top_5"][0]) for kind, values in found.items()} == {"a": (0, 1), "b": (0, 0), "c": (1, 1)}


def test_thumbnails_are_area_means() -> None:
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[0, :2, :2] = [[[200, 0, 0], [100, 0, 0]], [[100, 0, 0], [0, 0, 0]]]
    small = thumbnails(picture)
    assert small.shape == (1, 16 * 16 * 3)
    assert small[0, 0] == 100
    assert small[0, 1:].max() == 0


def test_squared_errors_are_exact_and_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (5, 768)).astype(np.uint8), rng.integers(0, 256, (3000, 768)).astype(np.uint8)
    second[2500] = first[3]
    found = squared_errors(first, second)
    assert found[3, 2500] == 0.0
    wanted = np.square(first[0] / 255.0 - second[7] / 255.0).mean()
    assert found[0, 7] == pytest.approx(wanted, rel=1e-6)


def test_luck_finds_one_in_as_many() -> None:
    assert chances({"a": 20, "b": 3}) == {"a": {"top_1": 0.05, "top_5": 0.25}, "b": {"top_1": 1 / 3, "top_5": 1.0}}
