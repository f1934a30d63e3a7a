"""Fréchet distances of pictures: their floor, their order, and features that are the same everywhere."""

from itertools import islice

import numpy as np
import pytest
from PIL import Image

from unclip.evaluation.distribution import Training
from unclip.evaluation.fidelity import measure_fidelity, random_features
from unclip.worlds.shapes import render, scenes


class PixelClip:
    """Embeds a picture as its mean colour and brightness in four corners."""

    def encode_pictures(self, pictures: list[Image.Image]) -> "object":
        import torch

        return torch.stack([torch.from_numpy(np.asarray(picture.resize((2, 2)), np.float32).reshape(-1) + 1.0) for picture in pictures])


def rendered(num: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([render(scene, size=32, rng=rng) for scene in islice(scenes("train", rng), num)])


TRAINING = Training(np.zeros(12, np.float32), np.zeros(12, np.float32), np.eye(12), np.full(12, 1 / 12))


def test_worse_pictures_are_further_away_and_equal_ones_stand_at_the_floor() -> None:
    real, rng = rendered(60, 0), np.random.default_rng(1)
    noisy = np.clip(real + rng.normal(0, 60, real.shape), 0, 255).astype(np.uint8)
    grey = np.full_like(real, 128)
    found = measure_fidelity({"real": real, "same": real, "noisy": noisy, "grey": grey}, PixelClip(), TRAINING, real="real")["rows"]  # type: ignore[arg-type]
    assert found["same"] == found["real"]
    for space in ("clip", "random"):
        assert found["real"][space] < found["grey"][space]
    assert found["real"]["random"] < found["noisy"]["random"] < found["grey"]["random"]


def test_random_features_are_the_same_in_every_run() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (1, 32, 32, 3)).copy()
    assert random_features(ramp)[0, :3].tolist() == pytest.approx([0.2438, 0.0561, 0.1512], abs=1e-4)


def test_one_picture_has_no_distance() -> None:
    one = rendered(1, 0)
    assert measure_fidelity({"real": one}, PixelClip(), TRAINING, real="real")["rows"] == {"real": {"clip": None, "random": None}}  # type: ignore[arg-type]
