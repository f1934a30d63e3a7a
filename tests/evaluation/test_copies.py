"""Copies are flagged, fresh pictures are not, and the threshold is what real pictures say."""

import numpy as np

from unclip.evaluation.copies import MIN_REAL, TAIL, is_copy, measure_copies, nearest_training_pictures
from unclip.evaluation.real_pictures import TrainingPictures


def noise(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 32, 32, 3)).astype(np.uint8)


TRAINING = TrainingPictures([f"caption {number}" for number in range(50)], noise(50, 0), 80)


def test_a_copy_is_flagged_and_a_fresh_picture_is_not() -> None:
    rough = np.clip(TRAINING.pictures[7].astype(int) + np.random.default_rng(1).integers(-9, 10, (32, 32, 3)), 0, 255).astype(np.uint8)
    made = np.concatenate([noise(3, 2), TRAINING.pictures[[4]], rough[None]])
    found, nearest = measure_copies({"made": made}, [noise(200, 3)], TRAINING, seed=0)
    assert is_copy(nearest["made"], found["threshold"]).tolist() == [False, False, False, True, True]
    assert nearest["made"].number[3:].tolist() == [4, 7]
    assert nearest["made"].distance[3] == 0.0
    row = found["rows"]["made"]
    assert row["flagged"]["mean"] == 0.4
    assert row["least"] == 0.0
    assert (found["training"], found["total"], found["real"]) == (50, 80, 200)


def test_of_real_pictures_as_many_are_flagged_as_the_tail_says() -> None:
    real = noise(400, 4)
    found, nearest = measure_copies({"real again": real}, [real[:150], real[150:]], TRAINING, seed=0)
    assert is_copy(nearest["real again"], found["threshold"]).mean() <= TAIL + 1 / 400
    assert is_copy(nearest["real again"], found["threshold"]).any()


def test_few_real_pictures_say_nothing() -> None:
    found, _ = measure_copies({"made": TRAINING.pictures[:2]}, [noise(MIN_REAL - 1, 5)], TRAINING, seed=0)
    assert found["threshold"] is None
    assert found["rows"]["made"]["flagged"] is None


def test_the_distance_is_the_root_of_the_mean_square() -> None:
    black = TrainingPictures([""], np.zeros((1, 16, 16, 3), np.uint8), 1)
    assert nearest_training_pictures(np.full((1, 16, 16, 3), 51, np.uint8), black).distance[0] == np.float32(0.2)
