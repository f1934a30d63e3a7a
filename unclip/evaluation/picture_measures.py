"""Everything that is measured on pictures, in one go over the same pictures: judges, ladder, distances, copies, ceilings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from unclip.clip import Clip
from unclip.data.index import Index
from unclip.evaluation.classifier import MAX_SIDE, shrunk
from unclip.evaluation.config import EvaluateSection
from unclip.evaluation.copies import Nearest, is_copy, measure_copies
from unclip.evaluation.distribution import read_training
from unclip.evaluation.fidelity import measure_fidelity
from unclip.evaluation.hard_negatives import measure_hard_negatives
from unclip.evaluation.heldout import EMOJI, NEAREST, SHAPES, TRAIN, TRUE, Asked, HeldOut, Predictions
from unclip.evaluation.identify import IDENTIFIED, identify
from unclip.evaluation.judge import Judge, report_of
from unclip.evaluation.judge_glyphs import judge_glyphs
from unclip.evaluation.judge_scenes import judge_shapes
from unclip.evaluation.picture_ladder import measure_picture_ladder
from unclip.evaluation.probe import probe_embeddings
from unclip.evaluation.real_pictures import TrainingPictures, read_training_pictures
from unclip.evaluation.targets import measure_targets
from unclip.evaluation.ways import REAL, Way
from unclip.layout import Paths

COPIES_SHOWN = 16


@dataclass(frozen=True)
class Made:
    """The pictures of an evaluation.

    Attributes:
        asked: the splits, held-out ones first; what was seen in training, if any, is the last.
        predictions, pictures: of each of them; pictures are a row -> (p, H, H, 3) uint8.
        ways: the rows that were made, in order.
        originals: the first pictures of the first split, of any size, that everything is done to which starts from a picture.
        real: of each split the real pictures of all rows that are measured, (c, H, H, 3) uint8, the first p being those asked for.
    """

    asked: Sequence[Asked]
    predictions: Sequence[Predictions]
    pictures: Sequence[Mapping[str, np.ndarray]]
    ways: Sequence[Way]
    real: Sequence[np.ndarray]
    originals: Sequence[Image.Image]

    @property
    def chosen(self) -> str:
        """The row of the prior that pictures are made with."""
        return self.predictions[0].chosen

    @property
    def shown(self) -> str:
        """The row of the pictures that a user gets: those of the chosen prior, upsampled where there are upsamplers."""
        return next((way.name for way in self.ways if way.upsampled), self.chosen)


@dataclass(frozen=True)
class CopySheet:
    """The generated pictures that lie nearest to a training picture, (n, S, S, 3) uint8 each, the nearest first, and a label for each."""

    generated: np.ndarray
    training: np.ndarray
    labels: list[str]


def measure_pictures(
    paths: Paths, made: Made, splits: Sequence[HeldOut], clip: Clip, index: Index, section: EvaluateSection
) -> tuple[dict[str, Any], CopySheet | None]:
    """The sections `judge`, `ladder`, `embedding`, `copies`, `targets` and `chosen` of the report; and what the sheet of copies shows.

    Raises:
        UnclipError: the shards do not hold what the store says.
    """
    config, seed, world = section.evaluate, section.generate.seed, section.world
    image_size = made.real[0].shape[1]
    training = read_training_pictures(paths.shards, paths.embeddings, image_size=image_size, side=min(image_size, MAX_SIDE), limit=config.max_training_pictures)
    judges, main, metric = judges_of(made, splits, training, clip, index, section)
    held_out = [number for number, one in enumerate(made.asked) if one.split != TRAIN]
    together = {row: np.concatenate([made.pictures[number][row] for number in held_out]) for row in made.pictures[0]}
    fidelity = measure_fidelity(together, clip, read_training(paths.embeddings), real=REAL)
    judged = {"judges": [report_of(judge, seed=seed) for judge in judges]}
    sections: dict[str, Any] = {
        "chosen": made.chosen,
        "judge": judged,
        "targets": measure_targets(world, judged, made.chosen),
        "ladder": measure_picture_ladder(made.ways, main, metric, fidelity, seed=seed)
        | {"distances": {name: fidelity[name] for name in ("n", "axes")}, "baseline": made.predictions[0].baseline},
        "embedding": {"probe": None, "hard_negatives": {}},
        "copies": None,
    }
    if world == SHAPES:
        asked = [*(Asked(held.split, held.test) for held in splits), *(one for one in made.asked if one.split == TRAIN)]
        rows = [{name: emb for name, emb in predicted.rows.items() if name != NEAREST} for predicted in made.predictions]
        sections["embedding"] = {
            "probe": report_of(probe_embeddings(paths.embeddings, asked, rows), seed=seed),
            "hard_negatives": measure_hard_negatives(asked, clip, batch_size=config.batch_size, seed=seed),
        }
    if not len(training.pictures):
        return sections, None
    rows_of = {f"{made.chosen}, held-out captions": together[made.chosen]}
    for one, pictures in zip(made.asked, made.pictures, strict=True):
        if one.split == TRAIN:
            rows_of |= {f"{made.chosen}, captions of training": pictures[made.chosen], "true embedding of training pictures": pictures[TRUE]}
    sections["copies"], nearest = measure_copies(rows_of, [made.real[number] for number in held_out], training, seed=seed)
    name = next(iter(rows_of))
    return sections, _sheet(rows_of[name], nearest[name], training, sections["copies"]["threshold"])


def judges_of(
    made: Made, splits: Sequence[HeldOut], training: TrainingPictures, clip: Clip, index: Index, section: EvaluateSection
) -> tuple[list[Judge], Judge, str]:
    """The judges that fit the data; and which of them, and which of its metrics, the ladder is measured by."""
    config, seed = section.evaluate, section.generate.seed
    if section.world == SHAPES:
        judges = judge_shapes(made.asked, made.pictures, made.chosen, image_size=made.real[0].shape[1], judge_steps=config.judge_steps, seed=seed)
        return judges, judges[0], "all_right"
    general = identify(made.asked, made.pictures, made.real, clip, index)
    if section.world != EMOJI:
        return general, general[-1], f"top_{IDENTIFIED[-1]}"
    held_out = {held.split: (held.test.captions, real) for held, real in zip(splits, made.real, strict=False)}
    of_glyphs = judge_glyphs(made.asked, made.pictures, held_out, training, made.chosen, judge_steps=config.judge_steps, seed=seed)
    return [*of_glyphs, *general], of_glyphs[0], "family_top_5"


def _sheet(pictures: np.ndarray, nearest: Nearest, training: TrainingPictures, threshold: float | None) -> CopySheet:
    order = np.argsort(nearest.distance, kind="stable")[:COPIES_SHOWN]
    flagged = np.zeros(len(pictures), bool) if threshold is None else is_copy(nearest, threshold)
    labels = [f"{nearest.distance[row]:.3f}{' COPY?' if flagged[row] else ''} {training.captions[nearest.number[row]]}" for row in order]
    return CopySheet(shrunk(pictures[order], training.pictures.shape[1]), training.pictures[nearest.number[order]], labels)
