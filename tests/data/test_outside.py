"""The store as other people's readers see it: pyarrow's datasets and embedding-reader (DuckDB, Polars and pandas: tests/test_readme.py)."""

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from embedding_reader import EmbeddingReader

from tests.data.synthetic import vectors, write_part_of
from unclip.data.cache import open_pairs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for number in range(2):
        write_part_of(tmp_path / "store", number, vectors(100, seed=number))
    open_pairs(tmp_path / "store", split="train", text_tokens=False)  # leaves its cache beside the parts
    return tmp_path / "store"


def test_a_dataset_of_pyarrow_filters_and_reads_all_parts(store: Path) -> None:
    dataset = ds.dataset([str(path) for path in sorted(store.glob("*.parquet"))])
    assert dataset.count_rows() == 200
    table = dataset.to_table(columns=["key", "image_emb"], filter=ds.field("split") == "heldout")
    assert table["key"].to_pylist()[:2] == ["0000000000", "0000000010"]
    found = np.stack(table["image_emb"].combine_chunks().to_numpy(zero_copy_only=False))
    assert np.array_equal(found[:10], vectors(100, seed=0)[::10])


def test_embedding_reader_reads_the_parts_in_order(store: Path, tmp_path: Path) -> None:
    """It takes every Parquet file below a folder, so it gets one with links to the parts alone, as data/README.md says."""
    parts = tmp_path / "parts"
    parts.mkdir()
    for path in store.glob("*.parquet"):
        (parts / path.name).symlink_to(path)
    reader = EmbeddingReader(embeddings_folder=str(parts), file_format="parquet", embedding_column="image_emb", meta_columns=["key"])
    assert (reader.count, reader.dimension) == (200, 16)
    read = list(reader(batch_size=64, show_progress=False))
    assert np.array_equal(np.concatenate([emb for emb, _ in read]), np.concatenate([vectors(100, seed=number) for number in range(2)]).astype(np.float32))
    assert read[0][1]["key"].iloc[0] == "0000000000"
