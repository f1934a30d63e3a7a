"""Searching: FAISS against a plain matrix product, and indexes that do not fit."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from unclip.data.index import Index, normalised
from unclip.files import UnclipError


def make_index(num: int = 50, width: int = 8) -> tuple[Index, np.ndarray]:
    vectors = np.random.default_rng(0).normal(size=(num, width)).astype(np.float16) * 3
    index = faiss.IndexFlatIP(width)
    index.add(normalised(vectors))
    return Index(index, pa.table({"key": [f"{row:010d}" for row in range(num)]})), vectors


def test_scores_are_cosines_and_neighbours_the_true_ones() -> None:
    index, vectors = make_index()
    queries = np.random.default_rng(1).normal(size=(7, 8)).astype(np.float32)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        vectors.astype(np.float32) / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    ).T
    scores, rows = index.search(queries, 5)
    assert np.array_equal(rows, np.argsort(-cosines, axis=1)[:, :5])
    np.testing.assert_allclose(scores, np.sort(cosines, axis=1)[:, ::-1][:, :5], atol=1e-5)


def test_asking_for_more_than_there_is_gives_all() -> None:
    index, vectors = make_index(num=3)
    scores, rows = index.search(vectors[:1].astype(np.float32), 10)
    assert rows.shape == scores.shape == (1, 3)
    assert rows[0, 0] == 0


def test_a_query_of_another_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnclipError, match="width 8, the query has 4; it was embedded by another CLIP"):
        make_index()[0].search(np.zeros((1, 4), np.float32), 1)


def test_a_zero_vector_is_not_divided_by_nothing() -> None:
    assert np.isfinite(normalised(np.zeros((1, 4)))).all()
