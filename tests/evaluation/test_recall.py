"""Recall and ranks against a sorted list of all cosines."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from tests.evaluation.stores import write_store
from unclip.data.index import Index
from unclip.data.store import normalised
from unclip.evaluation.heldout import nearest_training
from unclip.evaluation.recall import Gallery, ranks
from unclip.files import UnclipError


def index_of(images: np.ndarray, captions: list[str]) -> Index:
    flat = faiss.IndexFlatIP(images.shape[1])
    flat.add(normalised(images))
    return Index(flat, pa.table({"key": [f"k{row}" for row in range(len(images))], "caption": captions}))


def test_recall_and_rank_are_those_of_the_sorted_cosines(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 6)).astype(np.float16).astype(np.float32)
    guesses = images[:50] + rng.normal(size=(50, 6)).astype(np.float32)
    store = write_store(tmp_path, images, images, [""] * 200, ["test"] * 200, parts=3)
    order = np.argsort(-(normalised(guesses) @ normalised(images).T), axis=1)
    place = (order == np.arange(50)[:, None]).argmax(axis=1) + 1
    np.testing.assert_array_equal(ranks(guesses, images[:50], store), place)
    gallery = Gallery(index_of(images, [f"caption {row // 2}" for row in range(200)]), world="")
    hits = gallery.hits(guesses, gallery.places([f"k{row}" for row in range(50)]))
    for k in (1, 5, 10):
        np.testing.assert_array_equal(hits[f"recall_at_{k}"], place <= k)
        np.testing.assert_array_equal(hits[f"scene_recall_at_{k}"], (order[:, :k] // 2 == np.arange(50)[:, None] // 2).any(axis=1))
    assert 0 < hits["recall_at_1"].mean() < hits["recall_at_10"].mean() < 1
    assert gallery.chance() == {"recall_at_1": 1 / 200, "recall_at_5": 5 / 200, "recall_at_10": 10 / 200}


def test_a_row_that_the_index_lacks_is_refused() -> None:
    with pytest.raises(UnclipError, match=r"2 held-out rows are not in the index, the first is x.*unclip index"):
        Gallery(index_of(np.eye(2), ["a", "b"]), world="").places(["k1", "x", "y"])


def test_ties_count_for_the_true_image(tmp_path: Path) -> None:
    angles = np.deg2rad([0, 10, 20, 30, 40])
    stored = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    store = write_store(tmp_path, stored, stored, [""] * 5, ["test"] * 5)
    query = 7 * np.array([[1.0, 0.0]] * 5, np.float32)  # at 0 degrees
    assert ranks(query, stored.astype(np.float32), store).tolist() == [1, 2, 3, 4, 5]
    assert ranks(stored.astype(np.float32), stored.astype(np.float32), store).tolist() == [1] * 5


def test_the_nearest_training_caption_gives_its_image_and_a_held_out_one_never(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts, images = rng.normal(size=(2, 60, 4))
    splits = ["train" if row % 3 else "test" for row in range(60)]
    store = write_store(tmp_path, images, texts, [""] * 60, splits, parts=4)
    asked = texts[::3]  # the held-out rows' own captions
    trained = np.array([split == "train" for split in splits])
    nearest = np.flatnonzero(trained)[(normalised(asked) @ normalised(texts[trained]).T).argmax(axis=1)]
    np.testing.assert_allclose(nearest_training(store, asked), images[nearest], atol=1e-2)
