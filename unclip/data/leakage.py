"""Leakage: how near does each evaluation row come to a training row? Before the curation, and after it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from unclip.data.store import normalised

TRAIN = "train"
QUERIES_AT_ONCE = 1024

LEAKAGE = pa.schema([
    pa.field("key", pa.string(), nullable=False),  # of the evaluation row
    pa.field("split", pa.string(), nullable=False),  # as it came
    pa.field("similarity_before", pa.float32()),  # cosine with the nearest training row, among all that came in; null where there was none
    pa.field("nearest_before", pa.string()),
    pa.field("similarity_after", pa.float32()),  # among those that were kept; null where the row is no evaluation row any more
    pa.field("nearest_after", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class Sides:
    """Which rows are measured against which, at one time.

    Attributes:
        queries: (q,) the evaluation rows, in order.
        is_training: (n,) bool.
    """

    queries: np.ndarray
    is_training: np.ndarray


@dataclass(frozen=True)
class Nearest:
    """For each query the nearest training row, -1 where there is none, and their cosine, -inf there."""

    rows: np.ndarray
    cosines: np.ndarray


def chosen_queries(is_evaluation: np.ndarray, most: int) -> np.ndarray:
    """The numbers of the evaluation rows, drawn evenly where there are more than `most`."""
    rows = np.flatnonzero(is_evaluation)
    return rows if len(rows) <= most else np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def nearest_training(read: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], width: int, sides: list[Sides]) -> list[Nearest]:
    """Exact, in two passes over the rows; memory holds the queries and a batch.

    Args:
        read: batches of rows (b,) and raw vectors (b, E).
        width: E.
        sides: what is asked, answered one by one.
    """
    wanted = np.unique(np.concatenate([side.queries for side in sides]))
    vectors = np.zeros((len(wanted), width), np.float32)
    for rows, batch in read():
        places = np.searchsorted(wanted, rows)
        found = np.flatnonzero((places < len(wanted)) & (wanted[np.minimum(places, len(wanted) - 1)] == rows)) if len(wanted) else places[:0]
        vectors[places[found]] = normalised(batch[found])
    answers = [Nearest(np.full(len(side.queries), -1, np.int64), np.full(len(side.queries), -np.inf, np.float32)) for side in sides]
    queries = [np.searchsorted(wanted, side.queries) for side in sides]
    if not len(wanted):
        return answers
    for rows, batch in read():
        unit = normalised(batch)
        for side, places, answer in zip(sides, queries, answers, strict=True):
            training = side.is_training[rows]
            if training.any():
                _improve(answer, vectors, places, rows[training], unit[training])
    return answers


def _improve(answer: Nearest, vectors: np.ndarray, places: np.ndarray, rows: np.ndarray, training: np.ndarray) -> None:
    for start in range(0, len(places), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        cosines = vectors[places[part]] @ training.T
        best = cosines.argmax(axis=1)
        highest = np.take_along_axis(cosines, best[:, None], axis=1)[:, 0]
        nearer = highest > answer.cosines[part]
        answer.rows[part][nearer], answer.cosines[part][nearer] = rows[best[nearer]], highest[nearer]


def summary(cosines: np.ndarray, threshold: float) -> dict[str, Any]:
    """Of the cosines (q,) of evaluation rows with their nearest training rows: how they lie, and how many are at the threshold or above."""
    held = cosines[np.isfinite(cosines)]
    numbers: Mapping[str, Any] = (
        {
            "median": float(np.median(held)),
            "largest": float(held.max()),
            "near": int((held >= threshold).sum()),
            "share_near": float((held >= threshold).mean()),
        }
        if len(held)
        else {"median": None, "largest": None, "near": 0, "share_near": 0.0}
    )
    return {"rows": len(cosines), **numbers}
