"""The best picture of each cluster of near duplicates stays, and what is near to it goes.

A cluster hangs together by neighbours, so its ends may look nothing alike: a row goes only if it is near to one that
stays, and of those that stay no two are near. So a threshold that is too low never leaves one picture of a whole world.
"""

import numpy as np

LEADERS_AT_ONCE = 256


def leaders(vectors: np.ndarray, priority: np.ndarray, is_fixed: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Who stays for whom among the rows of a cluster.

    Rows are looked at in order of priority: one that is near to none that stays, stays itself.

    Args:
        vectors: (n, E) float32, unit.
        priority: (n,) the rows in order, the best first.
        is_fixed: (n,) bool: rows that stay whatever is near them; they come before all others.
        threshold: two rows of at least this cosine are near.

    Returns:
        (n,) int64, the row that stays for each, itself or the first in order that is near to it; and (n,) float32, their cosine.
    """
    leader, cosine = np.full(len(vectors), -1, np.int64), np.ones(len(vectors), np.float32)
    fixed = priority[is_fixed[priority]]
    leader[fixed] = fixed
    waiting = priority[~is_fixed[priority]]
    for start in range(0, len(fixed), LEADERS_AT_ONCE):
        waiting = _taken(vectors, fixed[start : start + LEADERS_AT_ONCE], waiting, threshold, leader, cosine)
    while len(waiting):
        chunk, waiting = waiting[:LEADERS_AT_ONCE], waiting[LEADERS_AT_ONCE:]
        near = vectors[chunk] @ vectors[chunk].T
        for place, row in enumerate(chunk):
            if leader[row] < 0:
                leader[row] = row
                follows = chunk[place + 1 :][(near[place, place + 1 :] >= threshold) & (leader[chunk[place + 1 :]] < 0)]
                leader[follows] = row
        follows = leader[chunk] != chunk
        cosine[chunk[follows]] = (vectors[chunk[follows]] * vectors[leader[chunk[follows]]]).sum(axis=1)
        waiting = _taken(vectors, chunk[~follows], waiting, threshold, leader, cosine)
    return leader, cosine


def _taken(vectors: np.ndarray, leading: np.ndarray, waiting: np.ndarray, threshold: float, leader: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Gives the waiting rows near to a leader to the first such one; returns those that still wait, in their order."""
    if not len(leading) or not len(waiting):
        return waiting
    near = vectors[waiting] @ vectors[leading].T  # (w, l)
    is_near = near >= threshold
    first, follows = is_near.argmax(axis=1), is_near.any(axis=1)
    leader[waiting[follows]] = leading[first[follows]]
    cosine[waiting[follows]] = near[follows, first[follows]]
    return waiting[~follows]


def nearest(vectors: np.ndarray, queries: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of the rows `queries` (q,) the nearest of the rows `among` (a,), and their cosine; vectors (n, E) are unit."""
    found, cosine = np.zeros(len(queries), np.int64), np.zeros(len(queries), np.float32)
    for start in range(0, len(queries), LEADERS_AT_ONCE):
        rows = slice(start, start + LEADERS_AT_ONCE)
        near = vectors[queries[rows]] @ vectors[among].T
        found[rows], cosine[rows] = among[near.argmax(axis=1)], near.max(axis=1)
    return found, cosine
