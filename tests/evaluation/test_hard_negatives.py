"""Captions with words on the wrong objects: what is exchanged, and what a CLIP that reads in order, or not, makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch

from unclip.evaluation.hard_negatives import EVERYTHING, exchanged, measure_hard_negatives
from unclip.evaluation.heldout import Asked, Rows
from unclip.worlds.shapes import caption, parse_caption, scenes

SENTENCE = "a small red circle left of a large blue circle, white background"


def test_one_attribute_changes_places_and_the_sentence_stays() -> None:
    assert exchanged(SENTENCE, "colour") == "a small blue circle left of a large red circle, white background"
    assert exchanged(SENTENCE, "size") == "a large red circle left of a small blue circle, white background"
    assert exchanged(SENTENCE, "shape") is None  # both are circles
    assert exchanged(SENTENCE, EVERYTHING) == "a large blue circle left of a small red circle, white background"
    assert exchanged("one small red circle on white", "colour") is None


def test_every_exchange_is_another_scene_of_the_same_words() -> None:
    rng = np.random.default_rng(0)
    for scene in islice(scenes("train", rng), 60):
        text = caption(scene, rng)
        for attribute in ("size", "colour", "shape", EVERYTHING):
            if (other := exchanged(text, attribute)) is not None:
                assert sorted(other.split()) == sorted(text.split()) or "," in text
                assert parse_caption(other).objects != parse_caption(text).objects


@dataclass
class Text:
    text_emb: torch.Tensor


class WordClip:
    """Embeds a caption by its words; with `ordered` the first half of the words weighs differently from the second."""

    def __init__(self, *, ordered: bool) -> None:
        self.ordered = ordered

    def encode_texts(self, captions: Sequence[str]) -> Text:
        return Text(torch.tensor(np.stack([self.embed(text) for text in captions])))

    def embed(self, text: str) -> np.ndarray:
        words = text.replace(",", "").split()
        weights = [1.0 + self.ordered * number / len(words) for number in range(len(words))]
        out = np.zeros(256)
        for word, weight in zip(words, weights, strict=True):
            out[sum(map(ord, word)) % 256] += weight
        return out


@pytest.mark.parametrize(("ordered", "wanted"), [(True, 1.0), (False, 0.5)])
def test_a_bag_of_words_is_at_chance_and_one_that_reads_in_order_is_right(ordered: bool, wanted: float) -> None:
    clip, rng = WordClip(ordered=ordered), np.random.default_rng(1)
    captions = [caption(scene, rng) for scene in islice(scenes("train", rng), 40)]
    emb = np.stack([clip.embed(text) for text in captions])
    asked = Asked("a", Rows([""] * 40, captions, emb, emb))
    found = measure_hard_negatives([asked], clip, batch_size=7, seed=0)["a"]  # type: ignore[arg-type]
    assert found["colour"]["mean"] == pytest.approx(wanted)
    assert found[EVERYTHING]["number"] == sum(len(parse_caption(text).objects) == 2 for text in captions)
