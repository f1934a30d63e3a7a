"""The trained judge: it learns from renders, the same ones from a seed, and says how well it reads."""

import numpy as np
import pytest
import torch

from unclip.evaluation import reader
from unclip.evaluation.reader import Reader, read_pictures, train_reader


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "NUM_RENDERS", 300)
    monkeypatch.setattr(reader, "NUM_CHECKED", 90)


@pytest.mark.usefixtures("few")
def test_it_learns_what_is_easy_first_and_the_same_from_the_same_seed() -> None:
    state = torch.get_rng_state()
    trained, again = (train_reader(image_size=16, num_steps=60, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)  # nothing else draws differently because of it
    assert trained.accuracy == again.accuracy
    assert trained.accuracy["background"] > 0.9
    assert trained.accuracy["count"] > 0.9
    untrained = read_pictures(Reader(16).eval(), np.zeros((3, 16, 16, 3), np.uint8))
    assert len(untrained) == 3
