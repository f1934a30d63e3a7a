"""What the rules on embeddings decide, on rows written by hand: limits of similarity, and clusters on both sides of a split."""

import numpy as np
import pyarrow as pa
import pytest

from unclip.data.verdicts import CROSSING, KEPT, LOW, UNDECIDED, Verdicts, drop_low, part_splits, priority, similarity_limit

SPLITS = ["train", "heldout", "other"]


def make(split: list[int], *, status: list[int] | None = None, similarity: list[float] | None = None, side: list[int] | None = None) -> Verdicts:
    num = len(split)
    return Verdicts(
        keys=pa.array([f"{row:05d}" for row in range(num)]), splits=list(SPLITS), came=np.array(split), split=np.array(split),
        similarity=np.array(similarity or [0.5] * num, np.float32), side=np.array(side or [64] * num),
        status=np.array(status or [UNDECIDED] * num, np.int8), value=np.full(num, np.nan), limit=np.full(num, np.nan),
        other=np.full(num, -1), cluster=np.full(num, -1),
    )  # fmt: skip


@pytest.mark.parametrize(("fraction", "kept"), [(1.0, 10), (0.95, 10), (0.9, 9), (0.3, 3), (0.25, 3), (0.01, 1)])
def test_a_fraction_keeps_that_many_or_the_next_more(fraction: float, kept: int) -> None:
    similarity = np.random.default_rng(0).permutation(10).astype(np.float32) / 10
    limit = similarity_limit(similarity, least=-1.0, fraction=fraction)
    assert (similarity >= limit).sum() == kept
    assert similarity_limit(similarity, least=0.75, fraction=fraction) == pytest.approx(max(0.75, limit))


def test_low_rows_go_with_their_similarity_and_the_limit_and_decided_ones_stay() -> None:
    rows = make([0, 0, 1, 0], similarity=[0.1, 0.3, 0.2, 0.1], status=[UNDECIDED, UNDECIDED, UNDECIDED, KEPT])
    drop_low(rows, 0.25)
    assert rows.status.tolist() == [LOW, UNDECIDED, LOW, KEPT]
    assert rows.value[[0, 2]] == pytest.approx([0.1, 0.2])
    assert rows.rejected() == {"similarity too low": 2}
    drop_low(rows, -np.inf)
    assert rows.status.tolist() == [LOW, UNDECIDED, LOW, KEPT]


def parted(rows: Verdicts, cluster: list[int], crossing: str) -> tuple[list[int], list[int]]:
    part_splits(rows, np.array(cluster), 0, crossing)  # type: ignore[arg-type]
    return rows.status.tolist(), rows.split.tolist()


U, K, C = UNDECIDED, KEPT, CROSSING


def test_of_new_rows_training_yields_or_evaluation_moves() -> None:
    split, cluster = [0, 1, 0, 0, 1, 2], [0, 0, 2, 3, 3, 3]  # the third row has no neighbour
    assert parted(make(split), cluster, "drop") == ([C, U, U, C, U, U], split)
    assert parted(make(split), cluster, "move") == ([U] * 6, [0, 0, 0, 0, 0, 0])


def test_a_cluster_on_one_side_is_left_alone() -> None:
    for crossing in ("drop", "move"):
        assert parted(make([0, 0, 1, 2]), [0, 0, 2, 2], crossing) == ([U] * 4, [0, 0, 1, 2])


def test_new_rows_yield_to_decided_ones() -> None:
    split, status = [0, 1, 0, 2], [K, U, U, U]
    assert parted(make(split, status=status), [0, 0, 0, 0], "drop") == ([K, C, U, C], split)
    assert parted(make(split, status=status), [0, 0, 0, 0], "move") == ([K, U, U, U], [0, 0, 0, 0])
    split, status = [2, 0, 1], [K, U, U]
    assert parted(make(split, status=status), [0, 0, 0], "drop") == ([K, C, U], split)
    assert parted(make(split, status=status), [0, 0, 0], "move") == ([K, U, U], [2, 2, 1])


def test_rows_between_two_decided_sides_are_dropped_and_their_cluster_is_named() -> None:
    for crossing in ("drop", "move"):
        rows = make([0, 1, 0, 1, 0], status=[K, K, U, U, U])
        dropped, between = part_splits(rows, np.array([0, 0, 0, 0, 4]), 0, crossing)  # type: ignore[arg-type]
        assert rows.status.tolist() == [K, K, C, C, U]
        assert dropped.tolist() == [False, False, True, True, False]
        assert between.tolist() == [True, True, True, True, False]


def test_the_best_picture_is_the_larger_then_the_more_alike_then_the_first() -> None:
    rows = make([0] * 5, side=[64, 128, 128, 128, 32], similarity=[0.9, 0.2, 0.3, 0.3, 0.9], status=[U, U, U, U, K])
    chosen = np.array([3, 2, 1, 0, 4])
    assert chosen[priority(rows, chosen)].tolist() == [4, 2, 3, 1, 0]
