"""Is the diffusion prior worth anything? The ladder of image embeddings: truth, diffusion, linear, plain text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unclip.data.index import Index, normalised
from unclip.data.stats import STATS
from unclip.data.store import iter_batches
from unclip.evaluation.clip import numbered
from unclip.evaluation.heldout import LINEAR, HeldOut, Predictions, scene_of
from unclip.evaluation.intervals import interval
from unclip.files import UnclipError, read_json

RECALLED = (1, 10)
TIE = 1e-6  # cosines nearer than this are a tie; float32 products differ so much with their order


def measure_prior(splits: Sequence[HeldOut], predictions: Sequence[Predictions], index: Index, store: Path, *, world: str, seed: int) -> dict[str, Any]:
    """The ladder of each held-out split, and whether the diffusion prior beats the linear one.

    Raises:
        UnclipError: a held-out row is not in the index.
    """
    emb_mean = np.array(read_json(store / STATS)["image_emb"]["mean"], np.float32)
    row_of = {str(key): row for row, key in enumerate(index.keys["key"].to_pylist())}
    captions = index.keys["caption"].to_pylist()
    scene_of_row = numbered([scene_of(str(caption), world) for caption in captions])
    measured: dict[str, Any] = {}
    for held, predicted in zip(splits, predictions, strict=True):
        if missing := [key for key in held.keys if key not in row_of]:
            raise UnclipError(f"{len(missing)} held-out rows are not in the index, the first is {missing[0]}; run `unclip index` again")
        wanted = np.array([row_of[key] for key in held.keys])
        rows, hits = {}, {}
        for name, emb in predicted.rows.items():
            _, found = index.search(emb, max(RECALLED))
            found_scenes = np.where(found >= 0, scene_of_row[found], -1)
            hits[name] = {k: (found[:, :k] == wanted[:, None]).any(axis=1) for k in RECALLED}
            same = {k: (found_scenes[:, :k] == scene_of_row[wanted][:, None]).any(axis=1) for k in RECALLED}
            rows[name] = {
                **compare(emb, held.true_emb, held.text_emb, emb_mean),
                **{f"recall_at_{k}": float(hits[name][k].mean()) for k in RECALLED},
                **{f"scene_recall_at_{k}": float(same[k].mean()) for k in RECALLED},
                "median_rank": float(np.median(ranks(emb, held.true_emb, store))),
                "draw_spread": draw_spread(predicted.draws) if name == predicted.diffusion else None,
            }
        verdict = compare_recall(hits[predicted.diffusion][10], hits[LINEAR][10], best=predicted.diffusion, split=held.split, seed=seed)
        chance = {f"recall_at_{k}": min(1.0, k / len(captions)) for k in RECALLED}
        measured[held.split] = {"captions": len(wanted), "gallery": len(captions), "rows": rows, "chance": chance, "verdict": verdict}
    return measured


def compare(emb: np.ndarray, true_emb: np.ndarray, text_emb: np.ndarray, emb_mean: np.ndarray) -> dict[str, float | None]:
    """Mean cosines of predicted embeddings (c, E), and their spread.

    `cosine` to the truth; `centred_cosine` to it after the training mean (E,) is taken off both, because what all
    pictures share says nothing of this one; `text_cosine` to the caption. `spread` is the mean of 1 - cosine over all
    pairs of rows: far under that of the truth, the prior says much the same whatever it is asked.
    """
    return {
        "cosine": _mean_cosine(emb, true_emb),
        "centred_cosine": _mean_cosine(emb - emb_mean, true_emb - emb_mean),
        "text_cosine": _mean_cosine(emb, text_emb),
        "spread": spread(emb),
    }


def _mean_cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float((normalised(first) * normalised(second)).sum(axis=1).mean())


def spread(emb: np.ndarray) -> float | None:
    """The mean of 1 - cosine over all pairs of n rows (n, E); None where n is 1."""
    num = len(emb)
    if num < 2:
        return None
    # the cosines of all ordered pairs, a row with itself included, add up to the square of the sum of unit vectors
    total = float(np.square(normalised(emb).sum(axis=0, dtype=np.float64)).sum())
    return 1.0 - (total - num) / (num * (num - 1))


def draw_spread(draws: np.ndarray) -> float | None:
    """The mean of 1 - cosine between the draws (c, n, E) of one caption; None where there is one draw a caption."""
    each = [spread(of_caption) for of_caption in draws]
    return None if draws.shape[1] < 2 else float(np.mean([value for value in each if value is not None]))


def ranks(emb: np.ndarray, true_emb: np.ndarray, store: Path) -> np.ndarray:
    """(c,) the place of the true picture, from 1, among all of the store by cosine to the prediction; ties count for it."""
    queries = normalised(emb)
    wanted = (queries * normalised(true_emb)).sum(axis=1)
    nearer = np.zeros(len(queries), np.int64)
    for batch in iter_batches(store, ["image_emb"]):
        nearer += (queries @ normalised(batch["image_emb"]).T > wanted[:, None] + TIE).sum(axis=1)
    return nearer + 1


def compare_recall(diffusion: np.ndarray, linear: np.ndarray, *, best: str, split: str, seed: int) -> dict[str, Any]:
    """Recall@10 of both priors from their hits (c,) on the same captions, and a plain sentence on who is ahead."""
    difference = diffusion.astype(np.float64) - linear
    low, high = interval(difference, seed=seed)
    ours, theirs = float(diffusion.mean()), float(linear.mean())
    says = "beats the linear prior" if ours > theirs else "does not beat the linear prior" if ours < theirs else "is level with the linear prior"
    leaves_out_zero = low > 0 or high < 0
    sure = "zero is outside, so more captions would most likely say the same" if leaves_out_zero else "zero is inside, so this may be chance"
    sentence = (
        f"{split}: the diffusion prior ({best.removeprefix('diffusion ')}) {says}: "
        f"it finds the true picture among the ten nearest for {ours:.1%} of {len(difference)} captions, "
        f"the linear prior for {theirs:.1%}. The difference is {ours - theirs:+.1%} (95 % interval {low:+.1%} to {high:+.1%}); {sure}."
    )
    return {"beats_linear": ours > theirs, "difference": ours - theirs, "low": low, "high": high, "sentence": sentence}
