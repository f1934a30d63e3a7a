"""How good is CLIP? Finds held-out pictures by their captions, from the stored embeddings alone."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from unclip.data.store import normalised
from unclip.evaluation.heldout import HeldOut, scene_of

RECALLED = (1, 5)
ROWS_AT_ONCE = 1024


def measure_clip(splits: Sequence[HeldOut], *, world: str, seed: int) -> dict[str, dict[str, Any]]:
    """Recall from caption to picture for each held-out split; the gallery is all pictures of that split."""
    measured = {}
    for held in splits:
        scenes = [scene_of(str(caption), world) for caption in held.pairs.captions]
        measured[held.split] = measure_pairs(held.pairs.image_emb, held.pairs.text_emb, scenes, seed=seed)
    return measured


def measure_pairs(image_emb: np.ndarray, text_emb: np.ndarray, scenes: Sequence[Hashable], *, seed: int) -> dict[str, Any]:
    """Recall and similarities of n pairs, embeddings (n, E) of any norm.

    A hit is the very picture of the caption, or (`scene_recall`) any picture whose caption describes the same scene.
    `similarity` is the mean cosine of pairs, `shuffled_similarity` that of captions with another row's picture, None
    where there is one pair.
    """
    images, texts, scene = normalised(image_emb), normalised(text_emb), numbered(scenes)
    num = len(images)
    hits = {name: np.zeros(num, bool) for k in RECALLED for name in (f"recall_at_{k}", f"scene_recall_at_{k}")}
    for start in range(0, num, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, num))
        found = np.argsort(-(texts[rows] @ images.T), axis=1, kind="stable")[:, : max(RECALLED)]
        for k in RECALLED:
            hits[f"recall_at_{k}"][rows] = (found[:, :k] == rows[:, None]).any(axis=1)
            hits[f"scene_recall_at_{k}"][rows] = (scene[found[:, :k]] == scene[rows][:, None]).any(axis=1)
    # a random cyclic order: every caption meets another row's picture, each picture once
    order = np.random.default_rng(seed).permutation(num)
    shuffled = float((texts[order] * images[np.roll(order, 1)]).sum(axis=1).mean()) if num > 1 else None
    return {
        "gallery": num,
        "scenes": int(scene.max()) + 1,
        **{name: float(hit.mean()) for name, hit in hits.items()},
        "similarity": float((texts * images).sum(axis=1).mean()),
        "shuffled_similarity": shuffled,
    }


def numbered(scenes: Sequence[Hashable]) -> np.ndarray:
    """(n,) a number for each scene, the same for the same, from 0 in the order of first appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(scene, len(known)) for scene in scenes], dtype=np.int64)
