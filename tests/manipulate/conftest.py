"""Small models with random weights, and pictures to begin with."""

import numpy as np
import pytest
from PIL import Image

from tests.small_models import SIDE, small_clip, small_models
from unclip.clip import Clip
from unclip.generate import GenerateConfig, Models


@pytest.fixture(scope="package")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def models(clip: Clip) -> Models:
    return small_models(clip, scale=0.05)


@pytest.fixture
def config() -> GenerateConfig:
    return GenerateConfig(decoder_steps=6)


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(2)]
