"""Variations measured in closed form, what is edited into what, and the round trip of a real root."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.conftest import SECTION, Root
from unclip.evaluation.heldout import read_held_out, read_seen
from unclip.evaluation.manipulations import edits_of, measure_variations
from unclip.generate import Models


class ColourClip:
    """Embeds a picture as its mean colour."""

    def encode_pictures(self, pictures: list[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.asarray(picture, np.float32).mean(axis=(0, 1))) for picture in pictures])


def plain(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3)) for colour in colours])


def test_variations_are_held_against_their_source_and_each_other() -> None:
    models = Models(ColourClip(), None, None)  # type: ignore[arg-type]
    source = np.array([[1.0, 0.0, 0.0]])
    same = measure_variations(models, plain((200, 0, 0), (200, 0, 0))[None], source)
    assert same == {"similarity": pytest.approx(1.0), "diversity": 0.0, "number": 2}
    apart = measure_variations(models, plain((255, 0, 0), (0, 255, 0))[None], source)
    assert apart["similarity"] == pytest.approx(0.5)
    assert apart["diversity"] == pytest.approx(np.sqrt(2 / 3))
    assert measure_variations(models, plain((255, 0, 0))[None], source)["diversity"] is None


def test_an_edit_changes_one_colour_or_goes_to_the_next_caption() -> None:
    captions = ["a small red circle above a large red star, white background", "one small blue ring on grey"]
    before, after = edits_of(captions, "shapes")[0]
    assert before == captions[0]
    assert after.count("red") == 1
    assert after.startswith("a small ")
    assert after.endswith("circle above a large red star, white background")
    assert edits_of(["a", "b"], "") == {0: ("a", "b"), 1: ("b", "a")}
    assert edits_of(["a"], "") == {}


def test_rows_seen_in_training_are_drawn_by_the_seed_from_training_alone(root: Root) -> None:
    store: Path = root.paths.embeddings
    first, again, other = (read_seen(store, 7, seed=seed) for seed in (0, 0, 1))
    assert first.rows.keys == again.rows.keys
    assert first.rows.keys != other.rows.keys
    held_out = {key for held in read_held_out(store, SECTION.evaluate, seed=0) for key in held.pairs.keys}
    assert len(set(first.rows.keys)) == 7
    assert not held_out & set(first.rows.keys)
    every = read_seen(store, 1000, seed=0)
    assert len(every.rows) == 40
    row = every.rows.keys.index(first.rows.keys[3])
    assert first.rows.captions[3] == every.rows.captions[row]
    assert (first.rows.true_emb[3] == every.rows.true_emb[row]).all()
