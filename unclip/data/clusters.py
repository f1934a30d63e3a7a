"""Clusters of near duplicates: what hangs together by neighbours, what of it stays, and in which split."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.duplicates import leaders, nearest
from unclip.data.grouped import Grouped, runs
from unclip.data.neighbours import Read, Search, components, find_links
from unclip.data.store import normalised
from unclip.data.verdicts import CROSSING, DUPLICATE, KEPT, UNDECIDED, Crossing, Verdicts, part_splits, priority
from unclip.files import replacing

CLUSTERS = "clusters.parquet"
ROWS_AT_ONCE = 16_384  # of small clusters, together in memory
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
    _, group = np.unique(cluster[chosen], return_inverse=True)
    group_of = np.full(len(rows), -1, np.int64)
    group_of[chosen] = group
    grouped, sizes = Grouped(scratch / "clusters.bin", np.bincount(group), width=width), np.bincount(group)
    grouped.write((numbers[chosen[numbers]], vectors[chosen[numbers]], group_of[numbers[chosen[numbers]]]) for numbers, vectors in read())
    for first, count in runs(sizes, ROWS_AT_ONCE):
        members, vectors = grouped.read(first, count)
        unit, training = normalised(vectors), rows.split[members] == train
        stays = np.isin(rows.status[members], (KEPT, UNDECIDED))
        for own, opposite in ((training, ~training), (~training, training)):
            crossing = own & (rows.status[members] == CROSSING)
            for number in np.unique(group_of[members[crossing]]):
                in_group = group_of[members] == number
                yields = np.flatnonzero(crossing & in_group)
                found, cosine = nearest(unit, yields, np.flatnonzero(opposite & stays & in_group))
                rows.drop(members[yields], CROSSING, cosine, threshold, members[found])
            if drop:
                _drop_duplicates(rows, members[own & stays], unit[own & stays], group_of[members[own & stays]], threshold)


def _drop_duplicates(rows: Verdicts, members: np.ndarray, unit: np.ndarray, group: np.ndarray, threshold: float) -> None:
    """Drops near duplicates among some rows (m,) of whole clusters, which `group` (m,) tells apart."""
    order = priority(rows, members)
    order = order[np.argsort(group[order], kind="stable")]
    members, unit, group = members[order], unit[order], group[order]
    _, best, place, size = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    cosine = np.einsum("ne,ne->n", unit, unit[best[place]])  # with the best row of its cluster
    decided = np.bincount(place, rows.status[members] == KEPT)
    is_plain = (np.bincount(place, cosine < threshold) == 0) & (decided <= 1)  # all are near to the best row, as in most clusters
    follows = is_plain[place] & (np.arange(len(members)) != best[place])
    rows.drop(members[follows], DUPLICATE, cosine[follows], threshold, members[best[place]][follows])
    for number in np.flatnonzero(~is_plain):
        part = slice(best[number], best[number] + size[number])
        own, is_decided = members[part], rows.status[members[part]] == KEPT
        leader, cosine_with = leaders(unit[part], np.arange(len(own)), is_decided, threshold)
        yields = np.flatnonzero(leader != np.arange(len(own)))
        rows.drop(own[yields], DUPLICATE, cosine_with[yields], threshold, own[leader[yields]])


def write_clusters(out: Path, rows: Verdicts) -> None:
    """Writes the largest clusters with their first rows, as examples."""
    members = np.flatnonzero(rows.cluster >= 0)
    names, sizes = np.unique(rows.cluster[members], return_counts=True)
    shown = []
    for place in np.lexsort((names, -sizes))[:NUM_SHOWN]:
        own = members[rows.cluster[members] == names[place]]
        kept = rows.status[own] == KEPT
        keys = rows.keys.take(pa.array(own[np.argsort(~kept, kind="stable")][:NUM_KEYS])).to_pylist()
        shown.append({"cluster": rows.keys[int(names[place])].as_py(), "rows": len(own), "kept": int(kept.sum()), "keys": keys})
    with replacing(out / CLUSTERS) as aside:
        pq.write_table(pa.Table.from_pylist(shown, schema=CLUSTER), aside, compression="zstd")
