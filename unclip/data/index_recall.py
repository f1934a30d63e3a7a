"""Does an index find what is there? Recall@10 against exact search, for pictures and captions that it did not learn from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unclip.data.store import emb_width, iter_batches, normalised

TOP = 10
ROUNDING = 1e-5  # of a float32 product; vectors nearer than this to the tenth are a tie, and ties count as found
KEPT = 100  # neighbours that are remembered, so that ties with the tenth are among them
STREAM = 6  # of the seed

Search = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Queries:
    """Rows of the store that an index is tried with, q of them, and others that it may learn from.

    Attributes:
        rows: (q,) row numbers, none of them in the sample unless the store is too small to keep them apart.
        vectors: by `picture` and by `caption`, (q, E) unit rows each.
        neighbours: for each of the two a set of row numbers a query: its true ten nearest, and all that tie with the tenth.
            A picture is no neighbour of itself.
        sample: (s, E) unit rows, drawn at random over the whole store, whose rows may lie in the order of time.
    """

    rows: np.ndarray
    vectors: dict[str, np.ndarray]
    neighbours: dict[str, list[set[int]]]
    sample: np.ndarray


def read_queries(store: Path, num_rows: int, *, num: int, training_rows: int, seed: int) -> Queries:
    """Draws queries and sample in one pass over the store, and finds the true neighbours of the queries in another."""
    order = np.random.default_rng([seed, STREAM]).choice(num_rows, size=min(num_rows, num + training_rows), replace=False)
    rows, sampled = np.sort(order[:num]), np.sort(order[num:])
    if len(sampled) < training_rows:
        sampled = np.arange(num_rows)
    drawn = {"picture": _rows_of(store, "image_emb", rows), "caption": _rows_of(store, "text_emb", rows)}
    sample = _rows_of(store, "image_emb", sampled if training_rows else sampled[:0])
    return Queries(rows, drawn, _neighbours(store, rows, drawn), sample)


def _rows_of(store: Path, column: str, rows: np.ndarray) -> np.ndarray:
    """Unit rows (r, E) of a store by their numbers, which rise."""
    found = np.empty((len(rows), emb_width(store)), np.float32)
    start = 0
    for batch in iter_batches(store, [column]) if len(rows) else ():
        first, last = np.searchsorted(rows, [start, start + len(batch[column])])
        found[first:last] = normalised(batch[column][rows[first:last] - start])
        start += len(batch[column])
    return found


def _neighbours(store: Path, rows: np.ndarray, drawn: dict[str, np.ndarray]) -> dict[str, list[set[int]]]:
    cosines = {name: np.full((len(rows), KEPT), -np.inf, np.float32) for name in drawn}
    numbers = {name: np.full((len(rows), KEPT), -1, np.int64) for name in drawn}
    start = 0
    for batch in iter_batches(store, ["image_emb"]):
        block = normalised(batch["image_emb"])
        own = np.flatnonzero((rows >= start) & (rows < start + len(block)))
        for name, queries in drawn.items():
            of_block = queries @ block.T  # (q, b)
            if name == "picture":
                of_block[own, rows[own] - start] = -np.inf
            joined = np.concatenate([cosines[name], of_block], axis=1)
            here = np.broadcast_to(np.arange(start, start + len(block)), of_block.shape)
            best = np.argpartition(joined, -KEPT, axis=1)[:, -KEPT:]
            cosines[name] = np.take_along_axis(joined, best, axis=1)
            numbers[name] = np.take_along_axis(np.concatenate([numbers[name], here], axis=1), best, axis=1)
        start += len(block)
    return {name: [_tied(*found) for found in zip(cosines[name], numbers[name], strict=True)] for name in drawn}


def _tied(cosines: np.ndarray, numbers: np.ndarray) -> set[int]:
    """The ten nearest of those kept, and those that tie with the tenth."""
    real = np.isfinite(cosines)
    if not real.any():
        return set()
    tenth = np.sort(cosines[real])[-TOP:][0]
    return set(numbers[real & (cosines >= tenth - ROUNDING)].tolist())


def measure_recall(search: Search, queries: Queries) -> dict[str, float]:
    """The share of their true ten nearest that a search finds, by `picture` and by `caption`, and the `worst` of the two.

    Args:
        search: (queries (q, E), k) -> row numbers (q, k), best first.
    """
    recall: dict[str, float] = {}
    for name, vectors in queries.vectors.items():
        shares = []
        found = search(vectors, TOP + 1)
        for own, numbers, true in zip(queries.rows, found, queries.neighbours[name], strict=True):
            others = [number for number in numbers.tolist() if name == "caption" or number != own][:TOP]
            shares.append(len(true.intersection(others)) / min(TOP, len(true)) if true else 1.0)
        recall[name] = float(np.mean(shares))
    return recall | {"worst": min(recall.values())}
