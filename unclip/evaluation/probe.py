"""What a linear probe can read from the CLIP embedding of a picture: a ceiling for any decoder that sees nothing else.

For each thing that a caption of the shapes world says there is a ridge regression from the embedding to one-hot answers,
fitted on the training rows in closed form and read by its largest answer. What it can't tell is not in the embedding in a
form that a first layer could take; a decoder that does better has it from the caption.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unclip.data.store import emb_width, iter_batches, normalised
from unclip.evaluation.classifier import UNSAID
from unclip.evaluation.heldout import TRAIN, Asked
from unclip.evaluation.judge import Judge
from unclip.evaluation.judge_scenes import METRICS, compare_all
from unclip.evaluation.scene_labels import HEADS, labels_of, seen_of
from unclip.worlds.judge import Seen
from unclip.worlds.shapes import parse_caption

RIDGE = 1e-3  # of the mean variance of a feature

ABOUT = (
    "A ridge regression that was fitted on the training pictures' embeddings reads each attribute from an embedding; no picture is made. "
    "It is the ceiling of a decoder that sees the embedding alone, as far as what an embedding says can be read linearly: better than it, a decoder either "
    "reads more than a straight line can, or has it from the caption. Under it, the decoder loses what the embedding holds."
)


def probe_embeddings(store: Path, asked: Sequence[Asked], rows: Sequence[Mapping[str, np.ndarray]]) -> Judge:
    """What the probe reads from several rows of embeddings, (c, E) each, of each split, as a judge of the captions asked."""
    weights = fit_probe(store, split=TRAIN)
    judged = {}
    for one, of_split in zip(asked, rows, strict=True):
        scenes = [parse_caption(caption) for caption in one.rows.captions]
        judged[one.split] = {name: compare_all(read_embeddings(weights, emb[: len(scenes)]), scenes) for name, emb in of_split.items()}
    return Judge("linear probe", ABOUT, METRICS, judged)


def fit_probe(store: Path, *, split: str) -> np.ndarray:
    """One pass over the rows of a split: weights (E + 1, sum of HEADS), the last row for a constant.

    Rows whose caption leaves something out (the background, a second object) do not count for that head.
    """
    width = emb_width(store) + 1
    grams = np.zeros((len(HEADS), width, width))
    targets = np.zeros((width, sum(HEADS)))
    ends = np.cumsum(HEADS)
    for batch in iter_batches(store, ["split", "caption", "image_emb"]):
        rows = np.flatnonzero(batch["split"] == split)
        x = _with_constant(batch["image_emb"][rows])
        labels = np.array([labels_of(parse_caption(str(caption))) for caption in batch["caption"][rows]], int).reshape(len(rows), len(HEADS))
        for head, (classes, end) in enumerate(zip(HEADS, ends, strict=True)):
            known = labels[:, head] != UNSAID
            grams[head] += x[known].T @ x[known]
            targets[:, end - classes : end] += x[known].T @ np.eye(classes)[labels[known, head]]
    weights = np.zeros_like(targets)
    for gram, classes, end in zip(grams, HEADS, ends, strict=True):
        ridge = RIDGE * np.trace(gram) / width * np.eye(width)
        ridge[-1, -1] = 0.0  # the constant is free
        weights[:, end - classes : end] = np.linalg.lstsq(gram + ridge, targets[:, end - classes : end], rcond=None)[0]
    return weights


def read_embeddings(weights: np.ndarray, image_emb: np.ndarray) -> list[tuple[str, list[Seen]]]:
    """The background and the objects that the probe reads from raw embeddings (n, E), as `compare` takes them."""
    parts = np.split(_with_constant(image_emb) @ weights, np.cumsum(HEADS)[:-1], axis=1)
    return [seen_of(labels) for labels in np.stack([part.argmax(axis=1) for part in parts], axis=1).tolist()]


def _with_constant(image_emb: np.ndarray) -> np.ndarray:
    unit = normalised(image_emb).astype(np.float64)
    return np.concatenate([unit, np.ones((len(unit), 1))], axis=1)
