"""Does the model draw what was asked, or does it copy what it was trained on? The nearest training picture of each picture made.

Two pictures of one thing are alike without being copies, so how near is too near is read off real pictures: held-out ones
were not copied from the training pictures, and yet each has a nearest one. A generated picture that lies nearer to a
training picture than all but one in a hundred held-out pictures do is flagged. By this rule one real picture in a hundred
is flagged too, which is what to hold the share of flagged pictures against.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unclip.evaluation.identify import squared_errors, thumbnails
from unclip.evaluation.intervals import mean_with_interval
from unclip.evaluation.real_pictures import TrainingPictures

TAIL = 0.01  # of real held-out pictures lie nearer to a training picture than the threshold
MIN_REAL = 20  # from fewer real pictures the tail of their distances is not known


@dataclass(frozen=True)
class Nearest:
    """For some pictures the nearest training picture: its number (p,), and the distance to it (p,), 1 being black to white."""

    number: np.ndarray
    distance: np.ndarray


def nearest_training_pictures(pictures: np.ndarray, training: TrainingPictures) -> Nearest:
    """The nearest by the root mean squared error over 16 x 16 thumbnails of pictures (p, H, H, 3) uint8."""
    errors = squared_errors(thumbnails(pictures), thumbnails(training.pictures))
    number = errors.argmin(axis=1)
    return Nearest(number, np.sqrt(np.maximum(errors[np.arange(len(errors)), number], 0.0)))


def measure_copies(
    made: Mapping[str, np.ndarray], real: Sequence[np.ndarray], training: TrainingPictures, *, seed: int
) -> tuple[dict[str, Any], dict[str, Nearest]]:
    """How many of several rows of pictures, a name -> (p, H, H, 3) uint8, are copies.

    Args:
        real: held-out real pictures, (c, H, H, 3) uint8 a split.

    Returns:
        the section of the report: `training` and `total` pictures, `real`, `threshold` and `tail` (None where there are too few
        real pictures to say), `real_median`, and `rows`: the median and least distance and the share that is flagged, with its interval;
        and for each row the nearest training pictures.
    """
    theirs = np.concatenate([nearest_training_pictures(some, training).distance for some in real])
    found = {name: nearest_training_pictures(pictures, training) for name, pictures in made.items()}
    threshold = float(np.quantile(theirs, TAIL)) if len(theirs) >= MIN_REAL else None
    rows = {}
    for name, nearest in found.items():
        flagged = None if threshold is None else mean_with_interval(is_copy(nearest, threshold).astype(np.float64), seed=seed)
        rows[name] = {"median": float(np.median(nearest.distance)), "least": float(nearest.distance.min()), "flagged": flagged}
    report = {
        "training": len(training.pictures), "total": training.total, "real": len(theirs), "real_median": float(np.median(theirs)),
        "threshold": threshold, "tail": None if threshold is None else TAIL, "rows": rows,
    }  # fmt: skip
    return report, found


def is_copy(nearest: Nearest, threshold: float) -> np.ndarray:
    """(p,) bool: at least as near to a training picture as the threshold says."""
    copied: np.ndarray = nearest.distance <= threshold
    return copied
