"""A look at near duplicates: the largest clusters that `select` found, one a line, with what stayed and what went."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unclip.data.clusters import CLUSTERS, NUM_KEYS
from unclip.data.selection import ROWS
from unclip.evaluation.pictures import PAPER, contact_sheet, save_png
from unclip.files import remove
from unclip.search import pictures_of

SHEET = "clusters.png"
SIDE = 96  # pixels of a picture
LINES = 12


def is_drawn(selected: Path) -> bool:
    """Whether the sheet is there, where there is anything to draw."""
    return (selected / SHEET).is_file() or not len(pq.read_table(selected / CLUSTERS, columns=["cluster"]))


def draw_clusters(shards: Path, selected: Path) -> None:
    """Leaves `clusters.png` beside what `select` left; nothing where no cluster was found.

    Raises:
        UnclipError: the shards hold other pictures.
    """
    remove(selected / SHEET)  # that of an earlier run
    clusters = pq.read_table(selected / CLUSTERS).to_pylist()[:LINES]
    if not clusters:
        return
    keys = [key for cluster in clusters for key in cluster["keys"]]
    rows = pq.read_table(selected / ROWS, columns=["key", "split", "status", "value"])
    of_key = {row["key"]: row for row in rows.filter(pc.is_in(rows["key"], value_set=pa.array(keys))).to_pylist()}
    pictures = dict(zip(keys, pictures_of(shards, keys, SIDE), strict=True))
    blank = np.full((SIDE, SIDE, 3), PAPER, np.uint8)
    shown, labels = [], []
    for cluster in clusters:
        for key in cluster["keys"]:
            row = of_key[key]
            cosine = "" if row["value"] is None else f" {row['value']:.3f}"
            shown.append(pictures[key])
            labels.append(f"{row['status']}{cosine}, {row['split']} {key}")
        labels[-len(cluster["keys"])] += f" ({cluster['rows']} alike, {cluster['kept']} kept)"
        missing = NUM_KEYS - len(cluster["keys"])
        shown, labels = shown + missing * [blank], labels + missing * [""]
    save_png(selected / SHEET, contact_sheet(np.stack(shown), labels, columns=NUM_KEYS))
