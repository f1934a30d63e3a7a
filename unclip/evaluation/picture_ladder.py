"""The ladder that mirrors the paper's ablations, in one table: every way to make a picture, and how far each prior goes.

The way is that from the text embedding in the place of the image's (0) to the true image's embedding (1), with the same
decoder, the same captions and the same noise, so that rows are compared picture by picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip.evaluation.heldout import TEXT, TRAIN, TRUE
from unclip.evaluation.intervals import mean_with_interval, percentiles, resampled
from unclip.evaluation.judge import Judge
from unclip.evaluation.ways import GROUPS, REAL, SHUFFLED, Way, hidden_name

TOGETHER = "all held out"
BINDING = "binding"


def measure_picture_ladder(ways: Sequence[Way], judge: Judge, metric: str, fidelity: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Every way by one judge and one of its metrics.

    Args:
        fidelity: of the report, for the Fréchet distances of each way.

    Returns:
        `judge`, `metric`, `splits` (names; `TOGETHER` is those that are held out as one, where there are several), `main`, the
        one that holds the most that is held out, and `rows`, one for each way in
        their order: what it sees, of each split the share that is right (`mean`, `low`, `high`, `number`) and how much of
        the way it closes (`closed`, with `closed_low` and `closed_high`; None where the two ends can't be told apart, or
        where the way has no prior), the `binding` over all held-out splits where the judge has one, and the distances.
    """
    splits = list(judge.judged)
    held_out = [split for split in splits if split != TRAIN]
    values = {split: {row: found[metric] for row, found in rows.items()} for split, rows in judge.judged.items()}
    if len(held_out) > 1:
        together = {row: np.concatenate([values[split][row] for split in held_out]) for row in values[held_out[0]] if row != SHUFFLED}
        values = {split: values[split] for split in held_out} | {TOGETHER: together} | {split: values[split] for split in splits if split not in held_out}
    rows = []
    for way in [None, *ways]:
        name = REAL if way is None else way.name
        row: dict[str, Any] = {"name": name, "sees": None if way is None else GROUPS[way.hidden], "splits": {}}
        for split, found in values.items():
            row["splits"][split] = mean_with_interval(found[name], seed=seed) | (closed_by(way, found, seed=seed) if way else NOTHING)
        row[BINDING] = _binding([judge.judged[split][name] for split in held_out], seed=seed)
        row |= {f"frechet_{space}": value for space, value in fidelity["rows"][name].items()}
        rows.append(row)
    return {"judge": judge.name, "metric": metric, "splits": list(values), "main": TOGETHER if TOGETHER in values else held_out[0], "rows": rows}


NOTHING: dict[str, Any] = {"closed": None, "closed_low": None, "closed_high": None}


def closed_by(way: Way, values: Mapping[str, np.ndarray], *, seed: int) -> dict[str, Any]:
    """How much of the way from the text embedding to the true one a way closes, with its bootstrap interval over captions.

    The two ends are those that see the same of the condition. All None for the ends themselves, for a way through another
    decoder or without an embedding, and where the interval of the ends' difference takes in 0: then there is no way to go.
    """
    top, bottom = (hidden_name(end) if way.hidden == "text" else end for end in (TRUE, TEXT))
    if way.decoder != "own" or way.hidden == "image" or way.name in (top, bottom):
        return dict(NOTHING)
    weights = resampled(len(values[top]), seed)
    apart = weights @ (values[top] - values[bottom])
    if percentiles(apart)[0] <= 0.0:
        return dict(NOTHING)
    gained = weights @ (values[way.name] - values[bottom])
    low, high = percentiles(gained[apart > 0] / apart[apart > 0]).tolist()
    closed = float((values[way.name] - values[bottom]).sum() / (values[top] - values[bottom]).sum())
    return {"closed": closed, "closed_low": low, "closed_high": high}


def _binding(found: Sequence[Mapping[str, np.ndarray]], *, seed: int) -> dict[str, float] | None:
    """Binding given the right attributes, over several splits; None where the judge knows none, or no picture has the right ones."""
    if any(BINDING not in metrics for metrics in found):
        return None
    applying = np.concatenate([metrics[BINDING] for metrics in found])
    applying = applying[~np.isnan(applying)]
    return mean_with_interval(applying, seed=seed) if len(applying) else None
