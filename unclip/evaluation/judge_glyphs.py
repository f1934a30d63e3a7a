"""The judges of the emoji world: which glyph is a picture nearest to, and which skin tone and kind of person does it show?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip.evaluation.classifier import UNSAID, classify, train_classifier
from unclip.evaluation.heldout import Asked
from unclip.evaluation.identify import PIXEL_SIDE, squared_errors, thumbnails
from unclip.evaluation.judge import Judge, Judged, confusion_of
from unclip.evaluation.real_pictures import TrainingPictures
from unclip.evaluation.ways import SHUFFLED
from unclip.worlds.emoji import PERSONS, TONES, family_of, person_of, tones_of

NEAREST = (1, 5)
FAMILY_METRICS = tuple(f"family_top_{k}" for k in NEAREST)
TONE_CLASSES = ("none", *TONES)
HEADS = {"skin_tone": TONE_CLASSES, "person": PERSONS}

ABOUT_FAMILY = (
    f"Each picture is reduced to {PIXEL_SIDE}x{PIXEL_SIDE} and looked up by mean squared error among all glyphs, those of training included: "
    "is one of the same family (the same emoji, whatever its skin tone) the nearest, or among the five nearest? Nothing here was trained."
)
ABOUT_CLASSES = (
    "A small network that was trained for this report on the real glyphs of the training split alone names the skin tone (or none) and whether a man, a woman "
    "or a person is shown. It can fail: what it says of real held-out glyphs, the first row, is the most that a picture can reach."
)


def judge_glyphs(
    asked: Sequence[Asked], pictures: Sequence[Mapping[str, np.ndarray]], held_out: Mapping[str, tuple[Sequence[str], np.ndarray]],
    training: TrainingPictures, chosen: str, *, judge_steps: int, seed: int,
) -> list[Judge]:  # fmt: skip
    """The families, and after `judge_steps` of training (0: without it) the classes.

    Args:
        pictures: of each split, a row -> (p, H, H, 3) uint8.
        held_out: a split -> all its captions that are measured, and their real pictures (c, H, H, 3) uint8.
        training: the glyphs of the training split.
        chosen: the row that is held against other captions for the floor.
    """
    families = [family_of(caption) for caption in [*training.captions, *(text for captions, _ in held_out.values() for text in captions)]]
    gallery = np.concatenate([thumbnails(training.pictures), *(thumbnails(real) for _, real in held_out.values())])
    judged = {one.split: judge_families(made, one.rows.captions, gallery, families, chosen) for one, made in zip(asked, pictures, strict=True)}
    chance = {one.split: family_chance(one.rows.captions, families) for one in asked}
    judges = [Judge("glyph family by pixels", ABOUT_FAMILY, FAMILY_METRICS, judged, {one.split: len(gallery) for one in asked}, chance)]
    if judge_steps:
        judges.append(_classes(asked, pictures, held_out, training, chosen, judge_steps=judge_steps, seed=seed))
    return judges


def judge_families(pictures: Mapping[str, np.ndarray], captions: Sequence[str], gallery: np.ndarray, families: Sequence[str], chosen: str) -> Judged:
    """Whether a glyph of the family asked for is among the nearest of the gallery (g, D), whose families are given."""
    names = np.array(families)
    asked = np.array([family_of(caption) for caption in captions])
    nearest = {row: names[np.argsort(squared_errors(thumbnails(made), gallery), axis=1, kind="stable")[:, : max(NEAREST)]] for row, made in pictures.items()}
    judged = {row: _family_hits(found, asked) for row, found in nearest.items()}
    if len(asked) > 1:
        judged[SHUFFLED] = _family_hits(nearest[chosen], np.roll(asked, -1))
    return judged


def _family_hits(nearest: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    return {f"family_top_{k}": (nearest[:, :k] == asked[:, None]).any(axis=1).astype(np.float64) for k in NEAREST}


def family_chance(captions: Sequence[str], families: Sequence[str]) -> dict[str, float]:
    """What luck gives: the mean share of draws of k glyphs, each with replacement, that hold one of the family asked for."""
    names = np.array(families)
    share = np.array([(names == family_of(caption)).mean() for caption in captions])
    return {f"family_top_{k}": float((1.0 - (1.0 - share) ** k).mean()) for k in NEAREST}


def labels_of(caption: str) -> list[int]:
    """The class of each head that a caption names, UNSAID where it names none, or several."""
    tones, person = tones_of(caption), person_of(caption)
    tone = UNSAID if len(tones) > 1 else TONE_CLASSES.index(tones[0]) if tones else 0
    return [tone, PERSONS.index(person) if person else UNSAID]


def _classes(
    asked: Sequence[Asked], pictures: Sequence[Mapping[str, np.ndarray]], held_out: Mapping[str, tuple[Sequence[str], np.ndarray]],
    training: TrainingPictures, chosen: str, *, judge_steps: int, seed: int,
) -> Judge:  # fmt: skip
    sizes = [len(classes) for classes in HEADS.values()]
    labels = np.array([labels_of(caption) for caption in training.captions])
    network = train_classifier(training.pictures, labels, sizes, num_steps=judge_steps, seed=seed, name="skin tones and persons")
    judged = {}
    for one, made in zip(asked, pictures, strict=True):
        true = np.array([labels_of(caption) for caption in one.rows.captions])
        said = {row: classify(network, some) for row, some in made.items()}
        judged[one.split] = {row: _agreement(classes, true) for row, classes in said.items()}
        if len(true) > 1:
            judged[one.split][SHUFFLED] = _agreement(said[chosen], np.roll(true, -1, axis=0))
    true = np.array([labels_of(caption) for captions, _ in held_out.values() for caption in captions])
    said_of_real = np.concatenate([classify(network, real) for _, real in held_out.values()])
    checked: dict[str, Any] = {"pictures": len(true), "accuracy": {}, "confusion": {}}
    for head, (name, classes) in enumerate(HEADS.items()):
        rows = true[:, head] != UNSAID
        if rows.any():
            checked["accuracy"][name] = float((said_of_real[rows, head] == true[rows, head]).mean())
            checked["confusion"][name] = confusion_of(true[rows, head], said_of_real[rows, head], classes)
    chance = {one.split: _most_frequent(one.rows.captions) for one in asked}
    return Judge("skin tone and person", ABOUT_CLASSES, tuple(HEADS), judged, chance=chance, checked=checked)


def _agreement(said: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.where(true[:, head] == UNSAID, np.nan, said[:, head] == true[:, head]) for head, name in enumerate(HEADS)}


def _most_frequent(captions: Sequence[str]) -> dict[str, float]:
    """What it would give to name the same class every time, the most frequent one."""
    labels = np.array([labels_of(caption) for caption in captions])
    known = {name: labels[labels[:, head] != UNSAID, head] for head, name in enumerate(HEADS)}
    return {name: float(np.bincount(column).max() / len(column)) for name, column in known.items() if len(column)}
