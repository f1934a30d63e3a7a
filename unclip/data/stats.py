"""Mean and standard deviation of the store's embeddings, over its training rows, for whitening."""

from pathlib import Path
from typing import Any

import numpy as np

from unclip.data.store import iter_batches
from unclip.files import UnclipError, read_json, write_json
from unclip.layout import SELECTED

STATS = "stats.json"
MIN_STD = 1e-4  # a dimension that never changes must not be divided by zero


def read_stats(store: Path) -> dict[str, Any]:
    """The statistics of the training rows that readers of the store get: those that `select` left, or else of all that was embedded."""
    selected = store / SELECTED / STATS
    content: dict[str, Any] = read_json(selected if selected.is_file() else store / STATS)
    return content


def write_stats(store: Path, *, selected: bool = False) -> None:
    """One pass over the store: count, mean and std (E,) of both embeddings and of their similarity, in float64.

    Over the rows that `select` kept, beside what it left, or over all of them.

    Raises:
        UnclipError: the store has fewer than two training rows.
    """
    count, similarity = 0, 0.0
    sums = {name: [np.zeros(()), np.zeros(())] for name in ("image_emb", "text_emb")}
    for batch in iter_batches(store, ["split", "similarity", *sums], selected=selected):
        training = batch["split"] == "train"
        count += int(training.sum())
        similarity += float(batch["similarity"][training].sum(dtype=np.float64))
        for name, (first, second) in sums.items():
            values = batch[name][training].astype(np.float64)
            sums[name] = [first + values.sum(0), second + np.square(values).sum(0)]
    if count < 2:
        raise UnclipError(f"{store} has {count} rows for training, expected at least 2; give more pairs, or hold fewer out")
    content: dict[str, object] = {"count": count, "mean_similarity": similarity / count}
    for name, (first, second) in sums.items():
        mean = first / count
        content[name] = {"mean": mean.tolist(), "std": np.sqrt(np.maximum(second / count - mean**2, MIN_STD**2)).tolist()}
    write_json((store / SELECTED if selected else store) / STATS, content)
