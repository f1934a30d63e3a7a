"""Who wins, the prior that pictures are made with or the best of the baselines? Says no more than the intervals carry."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip.data.store import normalised
from unclip.evaluation.cosine import spreads
from unclip.evaluation.heldout import NEAREST, TEXT, TRUE, Predictions
from unclip.evaluation.intervals import percentiles, resampled

BASELINES = ("linear", "regression", TEXT, NEAREST)
MIN_CAPTIONS = 20  # the bootstrap of fewer knows too little of what it has not seen to name a winner


def give_verdict(split: str, hits: Mapping[str, np.ndarray], predicted: Predictions, real: np.ndarray, *, seed: int) -> dict[str, Any]:
    """The chosen prior against the best baseline in recall@10, and in spread; `sentence` says both.

    The best baseline is chosen on these very rows, which is to its advantage.

    Args:
        hits: a row of the ladder -> (c,) whether the true image is among the ten nearest.
        real: (c,) the spread of the real images that share a caption, NaN where there are not two.
    """
    recall = compare_recall(hits, predicted.chosen, seed=seed)
    in_spread = compare_draws(predicted, real, seed=seed) or compare_spread(predicted.rows, predicted.chosen, seed=seed)
    sentences = [recall["sentence"], *([in_spread["sentence"]] if in_spread else [])]
    return {"recall": recall, "spread": in_spread, "sentence": f"{split}: {' '.join(sentences)}"}


def compare_recall(hits: Mapping[str, np.ndarray], chosen: str, *, seed: int) -> dict[str, Any]:
    """Recall@10 of the chosen row and of the best baseline, on the same captions."""
    rival = max((name for name in BASELINES if name in hits and name != chosen), key=lambda name: hits[name].mean())
    ours, theirs = hits[chosen].astype(np.float64), hits[rival].astype(np.float64)
    num, difference = len(ours), float(ours.mean() - theirs.mean())
    low, high = percentiles(resampled(num, seed) @ (ours - theirs) / num).tolist()
    winner = _winner(chosen, rival, low, high, num)
    sentence = (
        f"In recall@10 {_said(winner)}: {chosen} finds the true image among the ten nearest for {ours.mean():.1%} of {num} captions, "
        f"the best baseline ({rival}) for {theirs.mean():.1%}. "
        f"The difference is {difference:+.1%} (95 % interval {low:+.1%} to {high:+.1%}{_why(winner, num)})."
    )
    return {"winner": winner, "rival": rival, "captions": num, "difference": difference, "low": low, "high": high, "sentence": sentence}


def compare_draws(predicted: Predictions, real: np.ndarray, *, seed: int) -> dict[str, Any] | None:
    """How far apart the chosen prior's draws of one caption lie, as a share of real images' distance; every baseline has one answer, so 0.

    None where the prior draws one answer too, or no real images share a caption.
    """
    kind = predicted.chosen.split(" ", 1)[0]
    draws, shared = next((drawn for name, drawn in predicted.draws.items() if name.startswith(f"{kind} ")), None), ~np.isnan(real)
    if draws is None or draws.shape[1] < 2 or not shared.any() or real[shared].mean() <= 0:
        return None
    drawn, theirs, num = spreads(draws)[shared], real[shared], int(shared.sum())
    weights = resampled(num, seed)
    ratio = float(drawn.mean() / theirs.mean())
    ratios = (weights @ drawn) / np.maximum(weights @ theirs, np.finfo(np.float64).tiny)
    # a prior with one answer misses 1 by 1
    low, high = percentiles(1.0 - np.abs(1.0 - ratios)).tolist()
    winner = _winner(predicted.chosen, "every baseline", low, high, num)
    ends = percentiles(ratios).tolist()
    sentence = (
        f"In spread {_said(winner)}: two draws of the {kind} prior for one caption lie {ratio:.2f} times ({ends[0]:.2f} to {ends[1]:.2f}) as far apart "
        f"as two real images of it, where 1 is right and a baseline's one answer gives 0. "
        f"In distance from 1 it gains {1 - abs(1 - ratio):+.2f} (95 % interval {low:+.2f} to {high:+.2f}{_why(winner, num)}; "
        f"{num} captions have several images)."
    )
    return {"winner": winner, "rival": None, "ratio": ratio, "low": low, "high": high, "captions": num, "sentence": sentence}


def compare_spread(rows: Mapping[str, np.ndarray], chosen: str, *, seed: int) -> dict[str, Any] | None:
    """How far apart the answers to different captions lie, as a share of the true images' distance, of the chosen row and the best baseline.

    None where there is one caption.
    """
    num = len(rows[TRUE])
    if num < 2:
        return None
    truth, truths = spread_resampled(rows[TRUE], seed=seed)
    ratios = {}
    for name in (chosen, *(name for name in BASELINES if name in rows and name != chosen)):
        value, values = spread_resampled(rows[name], seed=seed)
        ratios[name] = value / truth, values / truths
    rival = min((name for name in ratios if name != chosen), key=lambda name: abs(1.0 - ratios[name][0]))
    (ours, our_values), (theirs, their_values) = ratios[chosen], ratios[rival]
    low, high = percentiles(np.abs(1.0 - their_values) - np.abs(1.0 - our_values)).tolist()
    winner = _winner(chosen, rival, low, high, num)
    sentence = (
        f"In spread over captions (no real images share one, or one answer is all there is) {_said(winner)}: "
        f"the answers of {chosen} lie {ours:.2f} times as far apart as the true embeddings, those of the best baseline ({rival}) {theirs:.2f} times. "
        f"In distance from 1 it gains {abs(1 - theirs) - abs(1 - ours):+.2f} (95 % interval {low:+.2f} to {high:+.2f}{_why(winner, num)})."
    )
    return {"winner": winner, "rival": rival, "ratio": ours, "low": low, "high": high, "captions": num, "sentence": sentence}


def spread_resampled(emb: np.ndarray, *, seed: int) -> tuple[float, np.ndarray]:
    """The mean of 1 - cosine over all pairs of c rows (c, E), and the same of each resample (1000,), pairs of one row with itself left out."""
    unit = normalised(emb).astype(np.float64)
    # how often two different rows meet: the square of the sum of weights, less a row's meetings with itself
    weights = np.concatenate([np.ones((1, len(unit))), resampled(len(unit), seed)])
    itself = np.square(weights).sum(axis=1)
    total = np.square(weights @ unit).sum(axis=1) - itself
    values = 1.0 - total / np.maximum(len(unit) ** 2 - itself, 1.0)
    return float(values[0]), np.maximum(values[1:], np.finfo(np.float32).eps)


def _winner(chosen: str, rival: str, low: float, high: float, num: int) -> str | None:
    if num < MIN_CAPTIONS or low <= 0.0 <= high:
        return None
    return chosen if low > 0.0 else rival


def _said(winner: str | None) -> str:
    return "nobody wins" if winner is None else f"{winner} wins"


def _why(winner: str | None, num: int) -> str:
    if winner is not None:
        return ""
    return f"; fewer than {MIN_CAPTIONS} captions carry no verdict" if num < MIN_CAPTIONS else ", which holds 0: this may be chance"
