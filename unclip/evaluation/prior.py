"""Is the prior worth anything? The ladder of image embeddings: truth, every prior, and what costs nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unclip.data.index import Index
from unclip.data.store import normalised
from unclip.evaluation.cosine import QUINTET, quintet, real_spreads, spread, spreads
from unclip.evaluation.distribution import Training, measure_distribution, read_training
from unclip.evaluation.heldout import HeldOut, Predictions, Rows
from unclip.evaluation.intervals import percentiles, resampled
from unclip.evaluation.recall import Gallery, ranks
from unclip.evaluation.reranking import measure_reranking
from unclip.evaluation.verdict import give_verdict


def measure_prior(splits: Sequence[HeldOut], predictions: Sequence[Predictions], index: Index, store: Path, *, world: str, seed: int) -> dict[str, Any]:
    """The ladder of each held-out split, and whether the prior that pictures are made with beats the baselines.

    Raises:
        UnclipError: a held-out row is not in the index.
    """
    gallery, training = Gallery(index, world=world), read_training(store)
    return {
        held.split: measure_ladder(held.split, held.test, predicted, gallery, training, store, world=world, seed=seed)
        for held, predicted in zip(splits, predictions, strict=True)
    }


def measure_ladder(
    split: str, rows: Rows, predicted: Predictions, gallery: Gallery, training: Training, store: Path, *, world: str, seed: int
) -> dict[str, Any]:
    """Every number of every row of one split, with the bootstrap interval of those that are means over captions."""
    wanted = gallery.places(rows.keys)
    real, groups = real_spreads(store, rows.captions, world=world)
    distribution = measure_distribution(predicted.rows, rows.true_emb, training)
    measured: dict[str, dict[str, Any]] = {}
    hits: dict[str, np.ndarray] = {}
    placed: dict[str, np.ndarray] = {}
    for name, emb in predicted.rows.items():
        found = gallery.hits(emb, wanted)
        hits[name] = found["recall_at_10"]
        placed[name] = ranks(emb, rows.true_emb, store)
        measured[name] = {
            **with_intervals(found | cosines(emb, rows, training), seed=seed),
            "median_rank": float(np.median(placed[name])),
            "spread": spread(emb),
            **conditional_spread(predicted.draws.get(name), real, seed=seed),
            **distribution["rows"][name],
        }
    shared = real[~np.isnan(real)]
    return {
        "captions": len(rows),
        "gallery": len(gallery),
        "chosen": predicted.chosen,
        "rows": measured,
        "chance": gallery.chance(),
        "real_spread": {"value": float(shared.mean()) if len(shared) else None, "captions": len(shared), **groups},
        "distribution": {name: value for name, value in distribution.items() if name != "rows"},
        "reranking": measure_reranking(predicted, placed, rows, store, split=split, world=world, seed=seed),
        "verdict": give_verdict(split, hits, predicted, real, seed=seed),
    }


def cosines(emb: np.ndarray, rows: Rows, training: Training) -> dict[str, np.ndarray]:
    """The quintet of predicted embeddings (c, E), raw and centred, (c,) each.

    Centred: after the mean of the training images (of the training captions) is taken off the unit vectors, because
    what all pictures share says nothing of this one.
    """
    raw = quintet(emb, rows.true_emb, rows.text_emb)
    taken_off = [(emb, training.image_mean), (rows.true_emb, training.image_mean), (rows.text_emb, training.text_mean)]
    centred = quintet(*(normalised(values) - mean for values, mean in taken_off))
    named = {_named(name): raw[name] for name in QUINTET}
    return named | {f"centred_{_named(name)}": centred[name] for name in QUINTET}


def _named(name: str) -> str:
    return name if name == "difference" else f"{name}_cosine"


def with_intervals(values: Mapping[str, np.ndarray], *, seed: int) -> dict[str, Any]:
    """The mean of each of several values (c,), None where it is not defined, and under `intervals` [low, high] of each that is."""
    table = np.stack([column.astype(np.float64) for column in values.values()], axis=1)  # (c, metrics)
    means = table.mean(axis=0)
    low, high = percentiles(resampled(len(table), seed) @ table / len(table))
    defined = {name: (mean, [float(a), float(b)]) for name, mean, a, b in zip(values, means.tolist(), low, high, strict=True) if mean == mean}
    return {name: defined[name][0] if name in defined else None for name in values} | {"intervals": {name: ends for name, (_, ends) in defined.items()}}


def conditional_spread(draws: np.ndarray | None, real: np.ndarray, *, seed: int) -> dict[str, Any]:
    """How far apart the draws (c, n, E) of one caption lie, and the ratio to the real images that share it, with its interval.

    `real` (c,) is NaN where there are not two such images; the ratio is over the captions that have them, of the two
    means. None where there are no draws, one a caption, or no caption with two images.
    """
    if draws is None or draws.shape[1] < 2:
        return {"draw_spread": None, "draw_spread_ratio": None, "draw_spread_ratio_interval": None}
    drawn, shared = spreads(draws), ~np.isnan(real)
    ratio, ends = None, None
    if shared.any() and real[shared].mean() > 0:
        ratio = float(drawn[shared].mean() / real[shared].mean())
        resamples = resampled(int(shared.sum()), seed)
        ends = percentiles((resamples @ drawn[shared]) / np.maximum(resamples @ real[shared], np.finfo(np.float64).tiny)).tolist()
    return {"draw_spread": float(drawn.mean()), "draw_spread_ratio": ratio, "draw_spread_ratio_interval": ends}
