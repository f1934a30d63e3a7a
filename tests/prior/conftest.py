"""A store of embeddings made up for a test, without pictures and without a CLIP."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unclip.data.contracts import embedding_schema
from unclip.data.stats import write_stats

TEXT_WIDTH = 6
Store = Callable[[np.ndarray, np.ndarray], Path]


@pytest.fixture
def make_store(tmp_path: Path) -> Store:
    """(image_emb, text_emb) -> a store of training rows, whose text states are two tokens made from the text embedding."""

    def write(image_emb: np.ndarray, text_emb: np.ndarray) -> Path:
        num, width = image_emb.shape
        schema = embedding_schema(width, text_tokens=True).with_metadata({"text_width": str(TEXT_WIDTH)})
        states = np.tile(text_emb, (1, TEXT_WIDTH * 2))[:, : TEXT_WIDTH * 2]
        similarity = (image_emb * text_emb).sum(1) / np.linalg.norm(image_emb, axis=1) / np.linalg.norm(text_emb, axis=1)
        columns = {
            "key": [f"{row:09d}" for row in range(num)], "caption": ["a caption"] * num, "url": [""] * num, "sha256": [""] * num,
            "width": [1] * num, "height": [1] * num, "split": ["train"] * num, "image_emb": list(image_emb.astype(np.float16)),
            "text_emb": list(text_emb.astype(np.float16)), "similarity": similarity, "token_ids": [[1, 2]] * num,
            "text_tokens": list(states.astype(np.float16)),
        }  # fmt: skip
        store = tmp_path / "store"
        store.mkdir()
        pq.write_table(pa.table(columns, schema=schema), store / "00000.parquet", write_page_checksum=True)
        write_stats(store)
        return store

    return write
