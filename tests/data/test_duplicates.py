"""Who stays of a cluster: as if rows were looked at one by one, and never one that is near to another that stays."""

import numpy as np
import pytest

from unclip.data import duplicates
from unclip.data.duplicates import leaders, nearest
from unclip.data.store import normalised


def one_by_one(vectors: np.ndarray, priority: np.ndarray, is_fixed: np.ndarray, threshold: float) -> np.ndarray:
    kept: list[int] = []
    leader = np.full(len(vectors), -1)
    for row in priority:
        near = [other for other in kept if vectors[row] @ vectors[other] >= threshold]
        leader[row] = row if is_fixed[row] or not near else near[0]
        if leader[row] == row:
            kept.append(int(row))
    return leader


@pytest.mark.parametrize("at_once", [1, 3, 256])
@pytest.mark.parametrize("num_fixed", [0, 7])
def test_it_is_the_same_as_one_by_one(at_once: int, num_fixed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "LEADERS_AT_ONCE", at_once)
    generator = np.random.default_rng(num_fixed)
    vectors = normalised(generator.normal(size=(80, 3)))
    priority = generator.permutation(80)
    is_fixed = np.zeros(80, bool)
    is_fixed[priority[:num_fixed]] = True
    leader, cosine = leaders(vectors, priority, is_fixed, 0.8)
    assert np.array_equal(leader, one_by_one(vectors, priority, is_fixed, 0.8))
    np.testing.assert_allclose(cosine, (vectors * vectors[leader]).sum(1), atol=1e-6)
    stays = leader == np.arange(80)
    assert 5 < stays.sum() < 70
    assert (cosine[~stays] >= 0.8).all()
    free = vectors[stays & ~is_fixed]
    assert (np.triu(free @ free.T, 1) < 0.8).all()


def test_a_chain_keeps_both_ends() -> None:
    angles = 0.4 * np.arange(3)  # neighbours lie at cosine 0.92, the ends at 0.70
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    leader, _ = leaders(vectors, np.array([0, 1, 2]), np.zeros(3, bool), 0.9)
    assert leader.tolist() == [0, 0, 2]
    assert leaders(vectors, np.array([1, 0, 2]), np.zeros(3, bool), 0.9)[0].tolist() == [1, 1, 1]


def test_the_nearest_of_some_rows() -> None:
    vectors = normalised(np.random.default_rng(0).normal(size=(600, 4)))
    queries, among = np.arange(0, 400), np.arange(400, 600)
    found, cosine = nearest(vectors, queries, among)
    truth = vectors[queries] @ vectors[among].T
    assert np.array_equal(found, among[truth.argmax(1)])
    np.testing.assert_allclose(cosine, truth.max(1), atol=1e-6)
