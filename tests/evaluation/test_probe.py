"""The linear probe: it reads what stands linearly in an embedding, and no more."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.stores import write_store
from unclip.evaluation.classifier import UNSAID
from unclip.evaluation.probe import fit_probe, read_embeddings
from unclip.evaluation.scene_labels import HEADS, labels_of, seen_of
from unclip.worlds.judge import compare
from unclip.worlds.shapes import Scene, caption, scenes


def drawn(num: int, seed: int) -> list[Scene]:
    return list(islice(scenes("train", np.random.default_rng(seed)), num))


def one_hot(scene: Scene) -> np.ndarray:
    """A scene as ones and zeros, one group a head."""
    return np.concatenate([np.eye(classes)[label] if label != UNSAID else np.zeros(classes) for classes, label in zip(HEADS, labels_of(scene), strict=True)])


def test_labels_and_what_is_seen_are_each_others_inverse() -> None:
    for scene in drawn(50, 1):
        assert compare(*seen_of(labels_of(scene)), scene)["all_right"] == 1.0


def test_a_linear_embedding_is_read_wholly_and_noise_by_luck(tmp_path: Path) -> None:
    rng, asked = np.random.default_rng(0), drawn(1200, 2)
    mixing = rng.standard_normal((sum(HEADS), 64))
    emb = np.stack([one_hot(scene) for scene in asked]) @ mixing
    noise = rng.standard_normal(emb.shape)
    captions, splits = [caption(scene, rng) for scene in asked], ["train"] * 1000 + ["heldout-scene"] * 200
    right = {}
    for name, image_emb in {"linear": emb, "noise": noise}.items():
        store = write_store(tmp_path / name, image_emb, image_emb, captions, splits, parts=2)
        read = read_embeddings(fit_probe(store, split="train"), image_emb[1000:])
        scored = [compare(background, seen, scene) for (background, seen), scene in zip(read, asked[1000:], strict=True)]
        right[name] = np.mean([one["all_right"] or 0.0 for one in scored])
    assert right["linear"] > 0.95
    assert right["noise"] < 0.02


def test_rows_of_other_splits_teach_nothing(tmp_path: Path) -> None:
    rng, asked = np.random.default_rng(0), drawn(200, 3)
    emb, captions = rng.standard_normal((200, 16)), [caption(scene, rng) for scene in asked]
    half = write_store(tmp_path / "half", emb[:100], emb[:100], captions[:100], ["train"] * 100)
    whole = write_store(tmp_path / "whole", emb, emb, captions, ["train"] * 100 + ["heldout-scene"] * 100)
    assert fit_probe(whole, split="train") == pytest.approx(fit_probe(half, split="train"), abs=1e-9)
