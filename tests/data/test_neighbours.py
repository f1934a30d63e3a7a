"""Clusters of neighbours: FAISS and cells against brute force and SciPy, new rows alone, and the search going on after a kill."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from unclip.data import neighbours
from unclip.data.grouped import Grouped
from unclip.data.neighbours import Read, Search, components, find_links
from unclip.data.store import normalised

EXACT = Search(threshold=0.9, exact_rows=10**9, probes=1)


def reader(vectors: np.ndarray, rows: np.ndarray | None = None, batch: int = 37) -> Read:
    """Batches of the rows with these numbers, all without."""
    numbers = np.arange(len(vectors)) if rows is None else rows

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(numbers), batch):
            yield numbers[start : start + batch], vectors[numbers[start : start + batch]]

    return read


def brute_force(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """For each row the first of its component, from the full matrix."""
    unit = normalised(vectors)
    _, label = connected_components(unit @ unit.T >= threshold, directed=False)
    return np.unique(label, return_index=True)[1][label]


def groups_of_copies(num: int, width: int, seed: int, *, noise: float = 0.02, copies: int = 3) -> np.ndarray:
    """Random directions, each with a few rows near it, in random order and of any norm."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(-(-num // copies), width))
    rows = np.repeat(centres, copies, axis=0)[:num] + noise * generator.normal(size=(num, width))
    return (generator.permutation(rows) * generator.uniform(0.5, 9, (num, 1))).astype(np.float16)


def test_clusters_are_those_of_the_full_matrix(tmp_path: Path) -> None:
    vectors = groups_of_copies(700, 8, 0)
    links = find_links(reader(vectors), np.ones(700, bool), 700, 8, EXACT, tmp_path)
    found = components(700, links)
    assert np.array_equal(found, brute_force(vectors, 0.9))
    assert 100 < len(np.unique(found)) < 400
    assert len(links) < 700, "as few links as hold the clusters together"


def test_thousands_of_copies_of_one_picture_are_one_cluster_of_few_links(tmp_path: Path) -> None:
    vectors = np.ones((3000, 4), np.float16)
    links = find_links(reader(vectors), np.ones(3000, bool), 3000, 4, EXACT, tmp_path)
    assert (components(3000, links) == 0).all()
    assert len(links) == 2999


def test_a_threshold_is_where_it_says_and_a_chain_hangs_together(tmp_path: Path) -> None:
    angles = 0.45 * np.arange(5)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    unit = normalised(vectors)
    cosines = (unit[1:] * unit[:-1]).sum(axis=1)  # of neighbours; float16 makes them differ a little
    for number, (threshold, expected) in enumerate([(cosines.min() - 1e-6, 1), (np.sort(cosines)[1] - 1e-6, 2), (cosines.max() + 1e-6, 5)]):
        links = find_links(reader(vectors), np.ones(5, bool), 5, 2, Search(float(threshold), 10**9, 1), tmp_path / str(number))
        assert len(np.unique(components(5, links))) == expected


def test_cells_find_nearly_all_that_the_full_matrix_finds(tmp_path: Path) -> None:
    vectors = groups_of_copies(4000, 16, 1, noise=0.04)
    truth = brute_force(vectors, 0.9)
    found = components(4000, find_links(reader(vectors), np.ones(4000, bool), 4000, 16, Search(0.9, exact_rows=100, probes=4), tmp_path))
    multiple = np.bincount(truth, minlength=4000)[truth] > 1
    assert multiple.mean() > 0.9
    assert (truth[found] == truth).all(), "cells never join what does not hang together"
    assert (found == truth)[multiple].mean() > 0.98
    one = components(4000, find_links(reader(vectors), np.ones(4000, bool), 4000, 16, Search(0.9, exact_rows=100, probes=1), tmp_path / "one"))
    assert (one == truth)[multiple].mean() < (found == truth)[multiple].mean()


@pytest.mark.parametrize("exact_rows", [10**9, 50])
def test_new_rows_are_linked_to_all_and_old_ones_are_not_compared_again(tmp_path: Path, exact_rows: int) -> None:
    vectors = groups_of_copies(600, 8, 2)
    search, is_new = Search(0.9, exact_rows, 24), np.arange(600) >= 450
    links = find_links(reader(vectors), is_new, 600, 8, search, tmp_path)
    unit = normalised(vectors)
    near = (unit @ unit.T >= 0.9) & (is_new[:, None] | is_new[None])
    _, label = connected_components(near, directed=False)
    assert np.array_equal(components(600, links), np.unique(label, return_index=True)[1][label])


def test_rows_that_take_no_part_have_no_neighbours(tmp_path: Path) -> None:
    vectors = np.ones((90, 4), np.float16)
    chosen = np.arange(0, 90, 3)
    found = components(90, find_links(reader(vectors, chosen), np.ones(90, bool), 30, 4, EXACT, tmp_path))
    assert (found[chosen] == 0).all()
    assert np.array_equal(np.delete(found, chosen), np.delete(np.arange(90), chosen))


def test_a_killed_search_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS_A_LINK_FILE", 500)
    vectors = groups_of_copies(2000, 8, 3)
    search, real = Search(0.9, exact_rows=100, probes=2), neighbours._links_of_cell
    whole = find_links(reader(vectors), np.ones(2000, bool), 2000, 8, search, tmp_path / "whole")
    worked: list[int] = []

    def dies(rows: np.ndarray, *rest: object) -> np.ndarray:
        worked.append(len(rows))
        if len(worked) == 30:
            raise KeyboardInterrupt
        return real(rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(neighbours, "_links_of_cell", dies)
    with pytest.raises(KeyboardInterrupt):
        find_links(reader(vectors), np.ones(2000, bool), 2000, 8, search, tmp_path / "killed")
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.npy")}
    assert len(done) > 2
    monkeypatch.setattr(neighbours, "_links_of_cell", real)
    again = find_links(reader(vectors), np.ones(2000, bool), 2000, 8, search, tmp_path / "killed")
    assert np.array_equal(again, whole)
    assert done == {name: (tmp_path / "killed" / name).stat().st_mtime_ns for name in done}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_spanning_links_hold_together_the_same_and_are_few(pairs: list[tuple[int, int]]) -> None:
    given_pairs = np.array(pairs, np.int64).reshape(-1, 2)
    joined = components(20, given_pairs)
    links = neighbours._to_first(np.arange(20), joined)
    assert np.array_equal(components(20, links), joined)
    assert len(links) == 20 - len(np.unique(joined))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=6))
def test_groups_on_disk_hold_their_rows_in_the_order_of_writing(tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("grouped") / "groups.bin"
    groups = np.array([group for batch in batches for group in batch], np.int64)
    vectors = np.arange(2 * len(groups), dtype=np.float16).reshape(-1, 2)
    grouped, at = Grouped(path, np.bincount(groups, minlength=5), width=2), 0
    parts = []
    for batch in batches:
        parts.append(slice(at, at + len(batch)))
        at += len(batch)
    grouped.write((np.arange(part.start, part.stop), vectors[part], groups[part]) for part in parts)
    for group in range(5):
        rows, held = grouped.read(group)
        assert np.array_equal(rows, np.flatnonzero(groups == group))
        assert np.array_equal(held, vectors[rows])
