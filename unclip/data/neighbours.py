"""Which embeddings are neighbours? Pairs above a threshold by FAISS, and the clusters that they make.

Up to `exact_rows` all pairs are compared. Beyond, k-means cuts the space into cells; each vector is stored in the cell
nearest to it and compared with all that are stored in its `probes` nearest ones. Cells are worked on one by one from
disk, so memory holds one cell, and some numbers for each row.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from unclip.data.grouped import Grouped, runs
from unclip.data.store import normalised
from unclip.files import remove, replacing
from unclip.progress import progress

Read = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]  # batches of rows (b,) int64 and raw vectors (b, E), the same each time

QUERIES_AT_ONCE = 512  # a thousand copies of one picture make a million pairs; this bounds those in memory
TRAINING_ROWS_A_CELL = 64
KMEANS_ITERATIONS = 10
ROWS_A_LINK_FILE = 200_000  # what a kill may cost
CENTROIDS, LINKS = "centroids.npy", "links-{number:05d}.npy"


@dataclass(frozen=True)
class Search:
    """How neighbours are looked for.

    Attributes:
        threshold: two vectors with at least this cosine are neighbours.
        exact_rows: up to so many, every pair is compared.
        probes: cells that a vector is compared with beyond.
    """

    threshold: float
    exact_rows: int
    probes: int


def find_links(read: Read, is_new: np.ndarray, num: int, width: int, search: Search, scratch: Path) -> np.ndarray:
    """Links (m, 2) int64 between neighbouring rows: two rows of which one is new hang together by links where they are neighbours.

    Not every pair is a link: of n rows that are all neighbours, n - 1 links are kept. Pairs of old rows are not looked for.

    Args:
        read: batches of the rows that take part, of numbers below len(is_new).
        is_new: (n,) bool, for every row number.
        num, width: how many rows take part, and E.
        scratch: a folder of just these rows and settings. What stands there is not done again: kill it, and go on.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    num_cells = 1 if num <= search.exact_rows else math.isqrt(num)
    centroids = _centroids(read, num, width, num_cells, scratch)
    probes = min(search.probes, num_cells)
    stored, visiting = (np.zeros(num_cells, np.int64) for _ in range(2))
    for _, vectors in read():
        cells = _nearest_cells(vectors, centroids, probes)
        stored += np.bincount(cells[:, 0], minlength=num_cells)
        visiting += np.bincount(cells[:, 1:].ravel(), minlength=num_cells)
    groups = [range(first, first + count) for first, count in runs(stored + visiting, ROWS_A_LINK_FILE)]
    missing = [number for number in range(len(groups)) if not (scratch / LINKS.format(number=number)).is_file()]
    # of cell c, group 2c holds the rows that are stored there, 2c + 1 those that only look into it
    in_cells = Grouped(scratch / "cells.bin", np.stack([stored, visiting], axis=1).ravel(), width=width)
    if missing:
        in_cells.write(_by_cell(read, centroids, probes))
    with progress("neighbours", num_cells, unit="cell", done=sum(len(groups[number]) for number in range(len(groups)) if number not in missing)) as bar:
        for number in missing:
            found = []
            for cell in groups[number]:
                found.append(_links_of_cell(*in_cells.read(2 * cell), *in_cells.read(2 * cell + 1), is_new, search.threshold))
                bar.advance()
            with replacing(scratch / LINKS.format(number=number)) as aside, aside.open("wb") as file:
                np.save(file, np.concatenate(found))
    remove(scratch / "cells.bin")
    return np.concatenate([np.load(scratch / LINKS.format(number=number)) for number in range(len(groups))])


def components(num: int, links: np.ndarray) -> np.ndarray:
    """(num,) int64: for each row the smallest row that hangs together with it by links (m, 2)."""
    return _firsts(coo_matrix((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(num, num)))


def _centroids(read: Read, num: int, width: int, num_cells: int, scratch: Path) -> np.ndarray:
    """(K, E) unit vectors; kept, since k-means on another number of threads would cut elsewhere."""
    path = scratch / CENTROIDS
    if num_cells == 1:
        return np.zeros((1, width), np.float32)
    if not path.is_file():
        chosen = np.random.default_rng(0).choice(num, min(num, TRAINING_ROWS_A_CELL * num_cells), replace=False)
        is_chosen = np.zeros(num, bool)
        is_chosen[chosen] = True
        sample, at = [], 0
        for _, vectors in read():
            sample.append(normalised(vectors[is_chosen[at : at + len(vectors)]]))
            at += len(vectors)
        trained = faiss.Kmeans(width, num_cells, niter=KMEANS_ITERATIONS, spherical=True, seed=0, max_points_per_centroid=TRAINING_ROWS_A_CELL)
        trained.train(np.concatenate(sample))
        with replacing(path) as aside, aside.open("wb") as file:
            np.save(file, np.asarray(trained.centroids))
    out: np.ndarray = np.load(path)
    return out


def _nearest_cells(vectors: np.ndarray, centroids: np.ndarray, probes: int) -> np.ndarray:
    """(b, probes) int64, the nearest first."""
    if len(centroids) == 1:
        return np.zeros((len(vectors), 1), np.int64)
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    cells: np.ndarray = index.search(normalised(vectors), probes)[1]
    return cells


def _by_cell(read: Read, centroids: np.ndarray, probes: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for rows, vectors in read():
        cells = _nearest_cells(vectors, centroids, probes)
        groups = 2 * cells
        groups[:, 1:] += 1
        yield np.repeat(rows, cells.shape[1]), np.repeat(vectors, cells.shape[1], axis=0), groups.ravel()


def _links_of_cell(rows: np.ndarray, vectors: np.ndarray, visitors: np.ndarray, visiting: np.ndarray, is_new: np.ndarray, threshold: float) -> np.ndarray:
    """Links among the rows stored in a cell, and between them and those that look into it; at least one of two is new."""
    everyone, among = np.concatenate([rows, visitors]), normalised(np.concatenate([vectors, visiting]))
    new = is_new[everyone]
    stored = np.arange(len(rows))
    links = [
        _neighbour_links(among, np.flatnonzero(new), stored, threshold),
        _neighbour_links(among, np.flatnonzero(~new), stored[new[: len(rows)]], threshold),
    ]
    return _to_first(everyone, components(len(everyone), np.concatenate(links)))


def _neighbour_links(vectors: np.ndarray, queries: np.ndarray, stored: np.ndarray, threshold: float) -> np.ndarray:
    """Links (m, 2) between places in `vectors` (n, E): each of `queries` with those of `stored` that lie near it."""
    if not len(queries) or not len(stored):
        return np.zeros((0, 2), np.int64)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors[stored])
    radius = float(np.nextafter(np.float32(threshold), np.float32(-1)))  # FAISS wants more than it, we want at least
    found = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        chunk = queries[start : start + QUERIES_AT_ONCE]
        limits, _, places = index.range_search(vectors[chunk], radius)
        # the graph of the chunk and all that is stored, whose row r names the neighbours of query r
        names = np.concatenate([chunk, stored])
        begins = np.concatenate([limits, np.full(len(stored), limits[-1])]).astype(np.int64)
        graph = csr_matrix((np.ones(len(places), np.int8), places + len(chunk), begins), shape=(len(names), len(names)))
        found.append(_to_first(names, _firsts(graph)))
    return np.concatenate(found)


def _firsts(graph: Any) -> np.ndarray:
    """(n,) the first node of each node's component in a sparse (n, n) graph."""
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    return first[label].astype(np.int64)


def _to_first(names: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Links (m, 2) from the name of each node (n,) to that of the first (n,) of its component, but not to itself."""
    links = np.stack([names, names[first]], axis=1)
    return links[links[:, 0] != links[:, 1]].astype(np.int64)
