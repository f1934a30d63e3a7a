"""What becomes of each row of the store: rules on their similarity and on their clusters, as arrays over all rows.

Rows that were decided before keep their place; new ones yield to them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from unclip.data.contracts import Reason

UNDECIDED, KEPT, LOW, CROSSING, DUPLICATE = -1, 0, 1, 2, 3
LOW_REASON: Reason = "similarity too low"
CROSSING_REASON: Reason = "near a row of another split"
DUPLICATE_REASON: Reason = "near duplicate"
STATUSES = ("kept", LOW_REASON, CROSSING_REASON, DUPLICATE_REASON)  # the name of each code

Crossing = Literal["allow", "drop", "move"]


@dataclass
class Verdicts:
    """What is known of n rows, and what is decided.

    Attributes:
        keys: (n,) strings.
        splits: the names that `came` and `split` number.
        came, split: (n,) the split that the store says, and the final one.
        similarity: (n,) float32, of picture and caption.
        side: (n,) of the picture, its shorter side in pixels.
        status: (n,) a code of this module.
        value, limit: (n,) float64, what a rule measured and allows; NaN where there is none.
        other: (n,) the number of a row that is named besides, -1 for none.
        cluster: (n,) the number of a row that names the cluster, -1 for a row without neighbours.
    """

    keys: pa.StringArray
    splits: list[str]
    came: np.ndarray
    split: np.ndarray
    similarity: np.ndarray
    side: np.ndarray
    status: np.ndarray
    value: np.ndarray
    limit: np.ndarray
    other: np.ndarray
    cluster: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def drop(self, rows: np.ndarray, status: int, value: np.ndarray, limit: float, other: np.ndarray | None = None) -> None:
        """Drops rows for one reason; `other` (m,) are the rows that are named besides."""
        self.status[rows], self.value[rows], self.limit[rows] = status, value, limit
        if other is not None:
            self.other[rows] = other

    def rejected(self) -> dict[str, int]:
        """How many rows each reason took."""
        return {name: num for code, name in enumerate(STATUSES) if code != KEPT and (num := int((self.status == code).sum()))}


def similarity_limit(similarity: np.ndarray, *, least: float, fraction: float) -> float:
    """The least similarity that stays, where at least this fraction of rows (n,) is to stay and none under `least`; -inf is no rule."""
    limit = least if least > -1.0 else -np.inf
    num_dropped = int(np.floor((1 - fraction) * len(similarity) + 1e-9))
    return float(max(limit, np.partition(similarity, num_dropped)[num_dropped])) if num_dropped else limit


def drop_low(rows: Verdicts, limit: float) -> None:
    """Drops the undecided rows under the limit."""
    low = np.flatnonzero((rows.status == UNDECIDED) & ~(rows.similarity >= limit)) if limit > -np.inf else np.zeros(0, np.int64)
    rows.drop(low, LOW, rows.similarity[low], limit)


def part_splits(rows: Verdicts, cluster: np.ndarray, train: int, crossing: Crossing) -> tuple[np.ndarray, np.ndarray]:
    """Makes sure that no cluster (n,) holds both training and evaluation rows: undecided ones are moved, or dropped.

    Where all of a cluster is new, "drop" drops its training rows, so that evaluation sets stay as they are, and "move"
    makes its evaluation rows training rows, so that nothing is lost. Where rows of one side were decided before, new
    rows of the other side are dropped, or moved to the decided ones. New rows between two decided clusters, one on each
    side, are dropped.

    Returns:
        (n,) bool: the rows that were dropped, whose value and other are left to be filled in; and (n,) bool: the rows of
        clusters that only hung together by rows between two decided ones.
    """
    old, new = rows.status == KEPT, rows.status == UNDECIDED
    training = rows.split == train

    def holds(mask: np.ndarray) -> np.ndarray:
        """(n,) bool: whether the row's cluster has a row of the mask."""
        out: np.ndarray = (np.bincount(cluster[mask], minlength=len(rows)) > 0)[cluster]
        return out

    old_training, old_evaluation = holds(old & training), holds(old & ~training)
    new_training, new_evaluation = holds(new & training), holds(new & ~training)
    crosses = new & (old_training | new_training) & (old_evaluation | new_evaluation)
    between = crosses & old_training & old_evaluation
    to_training = crosses & ~between & ~training & (old_training | ((crossing == "move") & ~old_evaluation))  # evaluation rows that yield
    to_evaluation = crosses & ~between & training & (old_evaluation | ((crossing == "drop") & ~old_training))  # training rows that yield
    if crossing == "drop":
        dropped = between | to_training | to_evaluation
    else:
        dropped = between
        decided = np.flatnonzero(old & ~training)
        split_of = np.full(len(rows), -1, rows.split.dtype)
        split_of[cluster[decided[::-1]]] = rows.split[decided[::-1]]  # of the first decided evaluation row of each cluster
        rows.split[to_training], rows.split[to_evaluation] = train, split_of[cluster[to_evaluation]]
    rows.status[dropped] = CROSSING
    return dropped, holds(between)


def priority(rows: Verdicts, chosen: np.ndarray) -> np.ndarray:
    """Places in `chosen` (m,), the best row first: decided ones, then by side, similarity and key, which rises with the row."""
    undecided = rows.status[chosen] == UNDECIDED
    return np.lexsort((chosen, -rows.similarity[chosen], -rows.side[chosen], undecided))
