"""Vectors put in order of their group on disk, so that groups are read one by one and memory does not grow with the rows."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows (b,) int64, vectors (b, E), the group of each (b,) int64


def runs(sizes: np.ndarray, about: int) -> list[tuple[int, int]]:
    """Groups of these sizes (G,) in runs of about so many rows: the first group of each run, and how many groups it has."""
    _, first, counts = np.unique(np.cumsum(sizes) // about, return_index=True, return_counts=True)
    return list(zip(first.tolist(), counts.tolist(), strict=True))


class Grouped:
    """Rows of vectors by group. A row may be in several groups; within one, rows are in the order in which they were written.

    Args:
        path: the file that is written.
        sizes: (G,) how many rows each group will get.
        width, dtype: of the vectors.
    """

    def __init__(self, path: Path, sizes: np.ndarray, *, width: int, dtype: Any = np.float16) -> None:
        self._path, self._width = path, width
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._dtype = np.dtype([("row", np.int64), ("vector", dtype, (width,))])

    def write(self, batches: Iterable[Batch]) -> None:
        """Writes all rows, one batch in memory at a time; whoever reads must have written before.

        Raises:
            AssertionError: a group got another number of rows than it was made for.
        """
        ends = self._starts[:-1].copy()  # how far each group is filled
        with self._path.open("wb") as file:
            file.truncate(int(self._starts[-1]) * self._dtype.itemsize)
            for rows, vectors, groups in batches:
                order = np.argsort(groups, kind="stable")
                entries = np.empty(len(rows), self._dtype)
                entries["row"], entries["vector"] = rows[order], vectors[order]
                found, begins, counts = np.unique(groups[order], return_index=True, return_counts=True)
                for group, begin, count in zip(found, begins, counts, strict=True):
                    file.seek(int(ends[group]) * self._dtype.itemsize)
                    file.write(entries[begin : begin + count].tobytes())
                ends[found] += counts
        if not np.array_equal(ends, self._starts[1:]):
            raise AssertionError("the groups of vectors were given other numbers of rows than they were made for")

    def read(self, group: int, num_groups: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The rows (n,) of a group, or of several in order, and their vectors (n, E)."""
        begin, end = int(self._starts[group]), int(self._starts[group + num_groups])
        entries = np.fromfile(self._path, self._dtype, end - begin, offset=begin * self._dtype.itemsize)
        return entries["row"], np.ascontiguousarray(entries["vector"])
