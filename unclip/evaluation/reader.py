"""A second judge of the shapes world: a small network trained on fresh renders alone, which no model has seen.

It reads a picture as a whole, so it errs differently from the program of `unclip.worlds.judge`, which unmixes colours and
fits outlines. What both say of further fresh renders is published beside what they say of pictures (`unclip.evaluation.confusion`).
"""

from itertools import islice
from typing import get_args

import numpy as np

from unclip.evaluation.classifier import BATCH_SIZE, MAX_SIDE, Classifier, classify, train_classifier
from unclip.evaluation.scene_labels import HEADS, labels_of, seen_of
from unclip.progress import progress
from unclip.worlds.judge import Seen
from unclip.worlds.shapes import Scene, Split, render, scenes

NUM_RENDERS = 6000
LEARNING, CHECKING = 5, 6  # streams of the seed; others have other uses

Reading = tuple[str, list[Seen]]  # the background and the objects, as `unclip.worlds.judge.compare` takes them


def fresh_renders(num: int, *, image_size: int, seed: int, stream: int) -> tuple[np.ndarray, list[Scene]]:
    """Pictures (n, H, H, 3) uint8 of scenes drawn anew, equally many of every split: a judge must know all that can be asked for."""
    rng = np.random.default_rng([seed, stream])
    splits = get_args(Split)
    drawn = [scene for split in splits for scene in islice(scenes(split, rng), max(1, num // len(splits)))]
    with progress("renders", len(drawn), unit="picture") as bar:
        pictures = []
        for scene in drawn:
            pictures.append(render(scene, size=image_size, rng=rng))
            bar.advance()
    return np.stack(pictures), drawn


def train_reader(*, image_size: int, num_steps: int, seed: int) -> Classifier:
    """Trains the judge for pictures of this size.

    Args:
        num_steps: optimizer steps of 64 renders.
    """
    num = min(NUM_RENDERS, num_steps * BATCH_SIZE)  # no more than it will see
    pictures, drawn = fresh_renders(num, image_size=min(image_size, MAX_SIDE), seed=seed, stream=LEARNING)
    return train_classifier(pictures, np.array([labels_of(scene) for scene in drawn]), HEADS, num_steps=num_steps, seed=seed, name="second judge")


def read_pictures(network: Classifier, pictures: np.ndarray) -> list[Reading]:
    """What the judge sees in each picture, (n, H, H, 3) uint8 of any size."""
    return [seen_of(labels) for labels in classify(network, pictures).tolist()]
