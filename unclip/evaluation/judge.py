"""Do the pictures show what was asked? The judges that fit the data, and what they say of every way to make a picture.

No judge was trained on what a model made, nor any model with a judge. Each world has its own: shapes are read back by a
program and by a network (`unclip.evaluation.judge_scenes`), emoji are looked up among all glyphs and classified
(`judge_glyphs`), any other picture is looked up among the others (`identify`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unclip.evaluation.intervals import mean_with_interval

Judged = dict[str, dict[str, np.ndarray]]  # row -> metric -> (p,) values, NaN where a metric does not apply


@dataclass(frozen=True)
class Judge:
    """One judge and what it said.

    Attributes:
        name, about: for the reader of the report.
        metrics: in the order of its tables.
        judged: what it said of each split.
        gallery: how many pictures it sought among in each split, where it did.
        chance: what luck gives in each split, where that is known.
        checked: how well it reads real pictures that it was not trained on (`accuracy`, `confusion`); {} where that is the row of real pictures.
    """

    name: str
    about: str
    metrics: Sequence[str]
    judged: Mapping[str, Judged]
    gallery: Mapping[str, int] = field(default_factory=dict)
    chance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    checked: Mapping[str, Any] = field(default_factory=dict)


def report_of(judge: Judge, *, seed: int) -> dict[str, Any]:
    """A judge as the report holds it: means with their intervals."""
    splits = {
        split: {
            "pictures": len(next(iter(next(iter(rows.values())).values()))),
            "gallery": judge.gallery.get(split),
            "chance": judge.chance.get(split),
            "rows": {row: summarise(values, seed=seed) for row, values in rows.items()},
        }
        for split, rows in judge.judged.items()
    }
    return {"name": judge.name, "about": judge.about, "metrics": list(judge.metrics), "checked": dict(judge.checked), "splits": splits}


def summarise(values: Mapping[str, np.ndarray], *, seed: int) -> dict[str, dict[str, float]]:
    """Mean, interval and number of pictures of each metric that applies to any picture."""
    applying = {name: column[~np.isnan(column)] for name, column in values.items()}
    return {name: mean_with_interval(column, seed=seed) for name, column in applying.items() if len(column)}


def confusion_of(true: Sequence[int], said: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix as the report holds it: `true` and `said` name its rows and columns."""
    counts = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts, (np.asarray(true, int), np.asarray(said, int)), 1)
    return {"true": list(labels), "said": list(labels), "counts": counts.tolist()}
