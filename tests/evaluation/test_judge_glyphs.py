"""The emoji judges on hand-made glyphs: families found by pixels, classes learned from real ones alone, and failures shown."""

import numpy as np
import pytest

from unclip.evaluation.classifier import UNSAID
from unclip.evaluation.heldout import Asked, Rows
from unclip.evaluation.judge_glyphs import TONE_CLASSES, family_chance, judge_glyphs, labels_of
from unclip.evaluation.real_pictures import TrainingPictures
from unclip.evaluation.ways import REAL, SHUFFLED
from unclip.worlds.emoji import PERSONS, TONES

KINDS = tuple(f"{person} {job}" for job in ("singer", "pilot", "cook") for person in PERSONS)


def glyph(caption: str, rng: np.random.Generator) -> np.ndarray:
    """A square whose place tells the kind of person and whose level tells the tone, on a ground that tells the job."""
    base, _, tone = caption.partition(": ")
    number = KINDS.index(base)
    picture = np.full((32, 32, 3), 60 * (number // 3) + 60, np.int64)
    left = 3 + 10 * (number % 3)
    picture[8:24, left : left + 7, 0] = 40 * TONE_CLASSES.index(tone or "none")
    picture[8:24, left : left + 7, 1:] = 250
    return np.clip(picture + rng.integers(-6, 7, picture.shape), 0, 255).astype(np.uint8)


def glyphs(captions: list[str], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([glyph(caption, rng) for caption in captions])


EVERY = [caption for kind in KINDS for caption in (kind, *(f"{kind}: {tone}" for tone in TONES))]
HELD_OUT = EVERY[3::7]
TRAINED = [caption for caption in EVERY if caption not in HELD_OUT]


def test_a_caption_names_classes_or_leaves_them_open() -> None:
    assert labels_of("woman firefighter: dark skin tone") == [TONE_CLASSES.index("dark skin tone"), PERSONS.index("woman")]
    assert labels_of("red heart") == [0, UNSAID]
    assert labels_of("kiss: woman, man, light skin tone, dark skin tone") == [UNSAID, UNSAID]


def test_families_and_classes_are_found_where_they_are_drawn_and_not_elsewhere() -> None:
    training = TrainingPictures(TRAINED, glyphs(TRAINED, 0), len(TRAINED))
    real = glyphs(HELD_OUT, 1)
    grey = np.full_like(real, 128)
    wrong_tone = glyphs([f"{caption.partition(':')[0]}: {TONES[2]}" for caption in HELD_OUT], 2)
    asked = Asked("heldout-combination", Rows([""] * len(HELD_OUT), HELD_OUT, np.zeros((len(HELD_OUT), 1)), np.zeros((len(HELD_OUT), 1))))
    pictures = {REAL: real, "perfect": glyphs(HELD_OUT, 3), "wrong tone": wrong_tone, "grey": grey}
    family, classes = judge_glyphs([asked], [pictures], {asked.split: (HELD_OUT, real)}, training, "perfect", judge_steps=70, seed=0)
    mean = {row: {metric: np.nanmean(column) for metric, column in found.items()} for row, found in family.judged[asked.split].items()}
    assert mean[REAL]["family_top_1"] == 1.0  # it finds itself
    assert mean["perfect"]["family_top_1"] > 0.9
    assert mean["wrong tone"]["family_top_5"] == 1.0  # a family is whatever the skin tone
    assert mean["grey"]["family_top_1"] < 0.3
    assert mean[SHUFFLED]["family_top_1"] < 0.3
    assert family.gallery == {asked.split: len(EVERY)}
    said = {row: {metric: np.nanmean(column) for metric, column in found.items()} for row, found in classes.judged[asked.split].items()}
    assert said["perfect"]["person"] > 0.9
    assert said["perfect"]["skin_tone"] > 0.6
    assert said["wrong tone"]["skin_tone"] < 0.4
    assert said[SHUFFLED]["skin_tone"] < 0.5
    assert classes.checked["pictures"] == len(HELD_OUT)
    assert classes.checked["accuracy"]["person"] == said[REAL]["person"]
    matrix = np.array(classes.checked["confusion"]["person"]["counts"])
    assert matrix.sum() == len(HELD_OUT)
    assert np.trace(matrix) / matrix.sum() == pytest.approx(said[REAL]["person"])


def test_luck_finds_a_family_by_its_share() -> None:
    found = family_chance(["a", "b"], ["a", "a", "b", "c"])
    assert found["family_top_1"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["family_top_5"] == pytest.approx((1 - 0.5**5 + 1 - 0.75**5) / 2)
