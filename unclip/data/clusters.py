"""Clusters of near duplicates: what hangs together by neighbours, what of it stays, and in which split."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.duplicates import leaders, nearest
from unclip.data.grouped import Grouped
from unclip.data.index import normalised
from unclip.data.neighbours import Read, Search, components, find_links
from unclip.data.verdicts import CROSSING, DUPLICATE, KEPT, UNDECIDED, Crossing, Verdicts, part_splits, priority
from unclip.files import replacing

CLUSTERS = "clusters.parquet"
NUM_SHOWN, NUM_KEYS = 24, 8  # examples: the largest clusters, and of each its first rows

CLUSTER = pa.schema([
    pa.field("cluster", pa.string(), nullable=False),
    pa.field("rows", pa.int64(), nullable=False),
    pa.field("kept", pa.int64(), nullable=False),
    pa.field("keys", pa.list_(pa.string()), nullable=False),  # kept ones first
])  # fmt: skip


def decide_clusters(
    rows: Verdicts, read: Read, takes_part: np.ndarray, width: int, search: Search, *, train: int, crossing: Crossing, drop: bool, scratch: Path
) -> None:
    """Finds the clusters of the rows that take part (n,) and decides on the undecided ones, in place.

    Args:
        read: batches of the rows that take part, with their raw embeddings of this width.
        train: the number of the training split.
        drop: whether near duplicates are dropped.
        scratch: a folder for the search (see `find_links`).
    """
    links = find_links(read, rows.status == UNDECIDED, int(takes_part.sum()), width, search, scratch)
    before = np.flatnonzero((rows.cluster >= 0) & takes_part)
    known = np.stack([before, rows.cluster[before]], axis=1)
    cluster = components(len(rows), np.concatenate([known, links]))
    dropped = between = np.zeros(len(rows), bool)
    if crossing != "allow":
        dropped, between = part_splits(rows, cluster, train, crossing)
    size = np.bincount(cluster, minlength=len(rows))[cluster]
    looked_at = takes_part & (size > 1) & (drop | (np.bincount(cluster[dropped], minlength=len(rows)) > 0)[cluster])
    if looked_at.any():
        _name_others(rows, cluster, looked_at, read, width, search.threshold, train=train, drop=drop, scratch=scratch)
    # what only rows that are gone held together lies apart again
    cluster = np.where(between, components(len(rows), known), cluster)
    size = np.bincount(cluster, minlength=len(rows))[cluster]
    rows.cluster = np.where(takes_part & (size > 1), cluster, -1)


def _name_others(
    rows: Verdicts, cluster: np.ndarray, chosen: np.ndarray, read: Read, width: int, threshold: float, *, train: int, drop: bool, scratch: Path
) -> None:
    """Drops what is near to a better row of its side, and says of each dropped row which one it yielded to; cluster by cluster from disk."""
    names, group = np.unique(cluster[chosen], return_inverse=True)
    group_of = np.full(len(rows), -1, np.int64)
    group_of[chosen] = group
    grouped = Grouped(scratch / "clusters.bin", np.bincount(group), width=width)
    grouped.write((numbers[chosen[numbers]], vectors[chosen[numbers]], group_of[numbers[chosen[numbers]]]) for numbers, vectors in read())
    for number in range(len(names)):
        members, vectors = grouped.read(number)
        unit = normalised(vectors)
        sides = (rows.split[members] == train, rows.split[members] != train)
        stays = np.isin(rows.status[members], (KEPT, UNDECIDED))
        for own, opposite in (sides, sides[::-1]):
            crossing = np.flatnonzero(own & (rows.status[members] == CROSSING))
            if len(crossing):
                found, cosine = nearest(unit, crossing, np.flatnonzero(opposite & stays))
                rows.drop(members[crossing], CROSSING, cosine, threshold, members[found])
            if drop:
                _drop_duplicates(rows, members[own & stays], unit[own & stays], threshold)


def _drop_duplicates(rows: Verdicts, members: np.ndarray, unit: np.ndarray, threshold: float) -> None:
    if len(members) < 2:
        return
    leader, cosine = leaders(unit, priority(rows, members), rows.status[members] == KEPT, threshold)
    follows = np.flatnonzero(leader != np.arange(len(members)))
    rows.drop(members[follows], DUPLICATE, cosine[follows], threshold, members[leader[follows]])


def write_clusters(out: Path, rows: Verdicts) -> None:
    """Writes the largest clusters with their first rows, as examples."""
    members = np.flatnonzero(rows.cluster >= 0)
    names, sizes = np.unique(rows.cluster[members], return_counts=True)
    shown = []
    for place in np.lexsort((names, -sizes))[:NUM_SHOWN]:
        own = members[rows.cluster[members] == names[place]]
        kept = rows.status[own] == KEPT
        keys = rows.keys[own[np.argsort(~kept, kind="stable")][:NUM_KEYS]].tolist()
        shown.append({"cluster": str(rows.keys[names[place]]), "rows": len(own), "kept": int(kept.sum()), "keys": keys})
    with replacing(out / CLUSTERS) as aside:
        pq.write_table(pa.Table.from_pylist(shown, schema=CLUSTER), aside, compression="zstd")
