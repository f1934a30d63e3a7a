"""How well does a judge of shapes read? Its accuracy on fresh real renders, and what it takes for what."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unclip.evaluation.reader import Reading
from unclip.worlds.judge import SCORES, Seen, compare
from unclip.worlds.shapes import BACKGROUNDS, COLOURS, EXTENTS, SHAPES, Scene

CLASSES = {"background": list(BACKGROUNDS), "shape": list(SHAPES), "colour": list(COLOURS), "size": list(EXTENTS)}
MISSED = "not found"


def measure_confusion(readings: Sequence[Reading], asked: Sequence[Scene]) -> dict[str, Any]:
    """What a judge said of real renders, held against their scenes.

    Returns:
        `pictures`, how many; `accuracy`, the mean of each score; and `confusion`, for each of CLASSES `true` and `said` (labels of
        rows and columns, the last column for objects in pictures where not as many were seen) and `counts`.
    """
    scored = [compare(background, seen, scene) for (background, seen), scene in zip(readings, asked, strict=True)]
    accuracy = {name: float(np.mean([one[name] for one in scored if one[name] is not None])) for name in SCORES}
    counts = {name: np.zeros((len(classes), len(classes) + 1), int) for name, classes in CLASSES.items()}
    for (background, seen), scene in zip(readings, asked, strict=True):
        _count(counts, "background", str(scene.background), background)
        standing = in_order(seen, scene.relation)
        for place, thing in enumerate(scene.objects):
            found = standing[place].kind if len(standing) == len(scene.objects) else None
            for name in ("shape", "colour", "size"):
                _count(counts, name, getattr(thing, name), MISSED if found is None else getattr(found, name))
    confusion = {name: {"true": classes, "said": [*classes, MISSED], "counts": counts[name].tolist()} for name, classes in CLASSES.items()}
    return {"pictures": len(asked), "accuracy": accuracy, "confusion": confusion}


def in_order(seen: Sequence[Seen], relation: str | None) -> list[Seen]:
    """What was seen, in the order in which a scene names its objects: by where they stand, not by what they look like."""
    axis = 1 if relation == "above" else 0
    return sorted(seen, key=lambda one: one.centre[axis])


def _count(counts: dict[str, np.ndarray], name: str, true: str, said: str) -> None:
    classes = CLASSES[name]
    counts[name][classes.index(true), len(classes) if said == MISSED else classes.index(said)] += 1
