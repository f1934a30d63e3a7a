"""What does choosing among draws gain, and how far is it from what a draw can reach?

The ceiling of a draw is a second real picture of the same caption, asked as if it were a guess: it is what a prior draws that
knows just what pictures of the caption are like. A guess that is none of them but their mean may come nearer to each, and so
may a prior that draws too much alike; their spread tells these apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unclip.data.store import iter_batches, normalised
from unclip.evaluation.clip import numbered
from unclip.evaluation.heldout import SHAPES, Predictions, Rows, scene_of
from unclip.evaluation.intervals import mean_with_interval, percentiles, resampled
from unclip.evaluation.recall import RECALLED, TIE, ranks

SECOND = "second real picture of the caption"
FOUND = 10  # the true picture is found where it is among so many


def second_pictures(store: Path, rows: Rows, *, world: str) -> np.ndarray:
    """(c, E) the embedding of another picture of the store with each row's caption (in the shapes world, its scene), the first that there is.

    NaN where there is none.
    """
    scenes = [scene_of(caption, world) for caption in rows.captions]
    numbers = numbered(scenes)
    number_of = dict(zip(scenes, numbers.tolist(), strict=True))
    found = np.full(rows.true_emb.shape, np.nan, np.float32)
    for batch in iter_batches(store, ["key", "caption", "image_emb"]):
        for place, caption in enumerate(batch["caption"]):
            number = number_of.get(scene_of(str(caption), world))
            for row in np.flatnonzero(numbers == number) if number is not None else ():
                if np.isnan(found[row, 0]) and rows.keys[row] != batch["key"][place]:
                    found[row] = batch["image_emb"][place]
    return found


def measure_reranking(
    predicted: Predictions, placed: Mapping[str, np.ndarray], rows: Rows, store: Path, *, split: str, world: str, seed: int
) -> dict[str, Any]:
    """The best of n draws against one draw, on all captions, and both against the ceiling, on those that have two pictures.

    Args:
        placed: a row of the ladder -> (c,) the place of the true picture among all, from 1.

    Returns:
        `gains`, for each prior that is sampled in recall@10 with its interval; `ceiling`, None where no caption has two
        pictures (with its `rows`, and in `closed` the share of the way from one draw to the ceiling that the best goes, None
        where that says nothing); and `sentence`, which says both.
    """
    kinds = [name.split(" ", 1)[0] for name in predicted.draws]
    first_and_best = {kind: (f"{kind} x1", predicted.answers[kind]) for kind in kinds if predicted.draws[f"{kind} x1"].shape[1] > 1}
    gains = {}
    for kind, (first, best) in first_and_best.items():
        difference = (placed[best] <= FOUND).astype(np.float64) - (placed[first] <= FOUND)
        gains[kind] = {"first": first, "best": best, "recall_at_10": mean_with_interval(difference, seed=seed)}
    compared = [name for pair in first_and_best.values() for name in pair] or [predicted.chosen]
    ceiling = _measure_ceiling(predicted, placed, compared, rows, store, world=world, seed=seed)
    said = [_said_of_gain(gain) for gain in gains.values()] + [_said_of_ceiling(ceiling, world)]
    return {"gains": gains, "ceiling": ceiling, "sentence": f"{split}: {' '.join(said)}"}


def _measure_ceiling(
    predicted: Predictions, placed: Mapping[str, np.ndarray], compared: Sequence[str], rows: Rows, store: Path, *, world: str, seed: int
) -> dict[str, Any] | None:
    second = second_pictures(store, rows, world=world)
    shared = np.flatnonzero(~np.isnan(second[:, 0]))
    if not len(shared):
        return None
    truth, real = rows.true_emb[shared], second[shared]
    true_cosine = (normalised(real) * normalised(truth)).sum(axis=1)
    # the picture that asks is among all, too, and would find itself first
    places = {SECOND: ranks(real, truth, store) - (true_cosine + TIE < 1.0)} | {name: placed[name][shared] for name in compared}
    emb = {SECOND: real} | {name: predicted.rows[name][shared] for name in compared}
    measured = {}
    for name, place in places.items():
        cosine = (normalised(emb[name]) * normalised(truth)).sum(axis=1)
        recalls = {f"recall_at_{k}": mean_with_interval((place <= k).astype(np.float64), seed=seed) for k in RECALLED}
        measured[name] = {**recalls, "median_rank": float(np.median(place)), "image_cosine": mean_with_interval(cosine, seed=seed)}
    hits = {name: (place <= FOUND).astype(np.float64) for name, place in places.items()}
    closed = dict.fromkeys(places) | {
        name: share_closed(hits[first], hits[name], hits[SECOND], seed=seed) for first, name in zip(compared[::2], compared[1::2], strict=False)
    }
    return {"captions": len(shared), "rows": measured, "closed": closed}


def share_closed(first: np.ndarray, best: np.ndarray, ceiling: np.ndarray, *, seed: int) -> dict[str, float] | None:
    """Of the way from the mean of `first` to that of `ceiling`, (c,) each, the share that `best` goes, with its interval.

    None where there is no such way: one draw is as near as another real picture already.
    """
    way = float(ceiling.mean() - first.mean())
    if way <= 0:
        return None
    weights = resampled(len(first), seed)
    ways = weights @ (ceiling - first)
    # a resample without a way has no share of it
    shares = (weights @ (best - first))[ways > 0] / ways[ways > 0]
    low, high = percentiles(shares).tolist()
    return {"mean": float(best.mean() - first.mean()) / way, "low": low, "high": high}


def _said_of_gain(gain: Mapping[str, Any]) -> str:
    found = gain["recall_at_10"]
    return (
        f"{gain['best']} finds the true picture among the ten nearest for {found['mean']:+.1%} more of {found['number']} captions than one draw "
        f"(95 % interval {found['low']:+.1%} to {found['high']:+.1%})."
    )


def _said_of_ceiling(ceiling: Mapping[str, Any] | None, world: str) -> str:
    what = "scene" if world == SHAPES else "caption"
    if ceiling is None:
        return f"No other picture of the store has the {what} of one of these, so there is no ceiling of a draw to hold it against."
    values = ", ".join(f"{name} {row['recall_at_10']['mean']:.1%}" for name, row in ceiling["rows"].items() if name != SECOND)
    return (
        f"Of the {ceiling['captions']} captions with another real picture of their {what}, "
        f"that picture finds the true one for {ceiling['rows'][SECOND]['recall_at_10']['mean']:.1%}: {values}."
    )
