"""How near do predicted embeddings lie, and how far apart? The cosine quintet, and spread."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unclip.data.store import iter_batches, normalised
from unclip.evaluation.clip import numbered
from unclip.evaluation.heldout import scene_of

QUINTET = ("baseline", "text", "image", "unrelated", "difference")


def quintet(emb: np.ndarray, true_emb: np.ndarray, text_emb: np.ndarray) -> dict[str, np.ndarray]:
    """The five cosines that prior trainers report, for each caption, (c,) each, from embeddings (c, E).

    `baseline` of caption and true image, `text` of caption and prediction, `image` of true image and prediction,
    `unrelated` of the caption and the prediction for the caption before it (NaN where there is one caption), and
    `difference`, text - baseline: above 0 the prediction flatters the caption more than a real image does.
    """
    predicted, images, texts = normalised(emb), normalised(true_emb), normalised(text_emb)
    baseline, text = _paired(texts, images), _paired(texts, predicted)
    unrelated = _paired(texts, np.roll(predicted, 1, axis=0)) if len(emb) > 1 else np.full(len(emb), np.nan)
    return {"baseline": baseline, "text": text, "image": _paired(images, predicted), "unrelated": unrelated, "difference": text - baseline}


def _paired(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    cosines: np.ndarray = (first * second).sum(axis=1, dtype=np.float64)
    return cosines


def spread(emb: np.ndarray) -> float | None:
    """The mean of 1 - cosine over all pairs of n rows (n, E); None where n is 1."""
    return None if len(emb) < 2 else float(spreads(emb[None])[0])


def spreads(draws: np.ndarray) -> np.ndarray:
    """(c,) the mean of 1 - cosine over all pairs of the n draws (c, n, E) of each caption, n being at least 2."""
    captions, num, width = draws.shape
    sums = normalised(draws.reshape(-1, width)).reshape(captions, num, width).sum(axis=1, dtype=np.float64)
    return _spread_of_sums(sums, np.full(captions, num))


def _spread_of_sums(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The same from the sums (s, E) of unit rows and their numbers (s,).

    The cosines of all ordered pairs, a row with itself included, add up to the squared norm of the sum.
    """
    out: np.ndarray = 1.0 - (np.square(sums).sum(axis=1) - counts) / (counts * (counts - 1))
    return out


def real_spreads(store: Path, captions: Sequence[str], *, world: str) -> tuple[np.ndarray, dict[str, int]]:
    """The spread of the real images that share each caption (or, in the shapes world, its scene), in one pass.

    Returns:
        (c,), NaN where the store has fewer than two such images; and how many different `scenes` had them, with how many `images`.
    """
    scenes = [scene_of(caption, world) for caption in captions]
    number = numbered(scenes)
    number_of = dict(zip(scenes, number.tolist(), strict=True))
    counts = np.zeros(len(number_of))
    sums: np.ndarray = np.zeros((len(counts), 0))
    for batch in iter_batches(store, ["caption", "image_emb"]):
        sums = sums if sums.shape[1] else np.zeros((len(counts), batch["image_emb"].shape[1]))
        scene = np.array([number_of.get(scene_of(str(caption), world), -1) for caption in batch["caption"]])
        shared = scene >= 0
        np.add.at(sums, scene[shared], normalised(batch["image_emb"][shared]))
        np.add.at(counts, scene[shared], 1)
    several = counts >= 2
    found = np.full(len(counts), np.nan)
    found[several] = _spread_of_sums(sums[several], counts[several])
    return found[number], {"scenes": int(several.sum()), "images": int(counts[several].sum())}
