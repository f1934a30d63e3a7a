"""Embedding stores written by hand, of what the measurements read and no more."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write_store(folder: Path, image_emb: np.ndarray, text_emb: np.ndarray, captions: Sequence[str], splits: Sequence[str], *, parts: int = 1) -> Path:
    """One Parquet file a part; embeddings (n, E), stored as float16 as always."""
    folder.mkdir(parents=True, exist_ok=True)

    def vectors(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values, np.float16).reshape(-1)), values.shape[1])

    rows = np.array_split(np.arange(len(image_emb)), parts)
    for number, chosen in enumerate(rows):
        table = pa.table({
            "key": [f"k{row}" for row in chosen], "caption": [captions[row] for row in chosen], "split": [splits[row] for row in chosen],
            "image_emb": vectors(image_emb[chosen]), "text_emb": vectors(text_emb[chosen]),
        })  # fmt: skip
        pq.write_table(table.replace_schema_metadata({"text_width": "1"}), folder / f"{number:05d}.parquet")
    return folder
