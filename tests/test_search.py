"""Searching as a user does: by key, vector or file, among the rows that fulfil a condition."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.synthetic import WIDTH, vectors, write_part_of
from unclip.data.index import Index, IndexConfig, build_index, open_index
from unclip.files import UnclipError
from unclip.search import hit_table, read_batch, rows_where, search, stored_embeddings


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    folder = tmp_path_factory.mktemp("search")
    write_part_of(folder / "store", 0, vectors(40, seed=0), captions=[f"a {'red' if row % 2 else 'blue'} circle" for row in range(40)])
    write_part_of(folder / "store", 1, vectors(30, seed=1))
    build_index(folder / "store", folder / "index", IndexConfig())
    return folder / "store", open_index(folder / "index")


class Words:
    """A CLIP whose caption embedding is one direction a caption."""

    def encode_texts(self, captions: list[str]) -> Any:
        return SimpleNamespace(text_emb=torch.tensor([[float(len(caption))] * WIDTH for caption in captions]))


def test_a_row_is_its_own_nearest_by_key(built: tuple[Path, Index]) -> None:
    store, index = built
    keys = ["0000100007", "0000000003"]
    hits = search(index, stored_embeddings(store, keys), 3)
    assert [of_query[0].key for of_query in hits] == keys
    assert hits[0][0].score == pytest.approx(1.0, abs=1e-5)
    assert len(hits[0]) == 3


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        (["split=train"], lambda row: row["split"] == "train"),
        (["split!=train", "width>=70"], lambda row: row["split"] != "train" and row["width"] >= 70),
        (["caption~red|blue"], lambda row: "red" in row["caption"] or "blue" in row["caption"]),
        (["similarity<0.5", "width < 80"], lambda row: row["similarity"] < 0.5 and row["width"] < 80),
        (["caption=no such"], lambda row: False),
    ],
)
def test_conditions_say_which_rows_are_found(where: list[str], holds: Any, built: tuple[Path, Index]) -> None:
    store, index = built
    expected = [row["key"] for row in index.keys.to_pylist() if holds(row)]
    assert [key for key, chosen in zip(index.keys["key"].to_pylist(), rows_where(index.keys, where), strict=True) if chosen] == expected
    hits = search(index, stored_embeddings(store, ["0000000003"]), 100, where=where)[0]
    assert sorted(hit.key for hit in hits) == sorted(expected)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("split", "expected a condition"),
        ("colour=red", "one of the columns key, caption"),
        ("width>=many", "does not fit the column width"),
        ("caption~(", "does not fit"),
    ],
)
def test_a_wrong_condition_is_one_line(where: str, problem: str, built: tuple[Path, Index]) -> None:
    with pytest.raises(UnclipError, match=problem):
        rows_where(built[1].keys, [where])


def test_queries_come_from_texts_tables_and_matrices(built: tuple[Path, Index], tmp_path: Path) -> None:
    store, index = built
    (tmp_path / "captions.txt").write_text("one\n\n three \n")
    (tmp_path / "keys.csv").write_text("key\n0000100002\n")
    np.save(tmp_path / "vectors.npy", vectors(2, seed=5))
    of_text = read_batch(tmp_path / "captions.txt", Words(), store, column="caption")  # type: ignore[arg-type]
    assert of_text.names == ["one", "three"]
    assert of_text.queries[:, 0].tolist() == [3.0, 5.0]
    of_keys = read_batch(tmp_path / "keys.csv", Words(), store, column="key")  # type: ignore[arg-type]
    assert search(index, of_keys.queries, 1)[0][0].key == "0000100002"
    of_vectors = read_batch(tmp_path / "vectors.npy", Words(), store, column="caption")  # type: ignore[arg-type]
    table = hit_table(of_vectors.names, search(index, of_vectors.queries, 4))
    assert table["query"].to_pylist() == ["vector 0"] * 4 + ["vector 1"] * 4
    assert table["rank"].to_pylist() == [1, 2, 3, 4] * 2


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.txt", b"\n", "at least one query"), ("broken.txt", b"\xff\xfe\xff", "does not read as a text"),
        ("broken.npy", b"no", "does not read as a matrix"),
        ("other.csv", b"text\nhello\n", "no column 'caption'"), ("unknown.key", b"", "expected a table"),
    ],
)  # fmt: skip
def test_a_file_without_queries_is_one_line(name: str, content: bytes, problem: str, built: tuple[Path, Index], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnclipError, match=problem):
        read_batch(tmp_path / name, Words(), built[0], column="caption")  # type: ignore[arg-type]


def test_objects_in_a_matrix_are_never_unpickled(built: tuple[Path, Index], tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UnclipError, match="does not read as a matrix"):
        read_batch(tmp_path / "objects.npy", Words(), built[0], column="caption")  # type: ignore[arg-type]


def test_an_unknown_key_is_one_line(built: tuple[Path, Index]) -> None:
    with pytest.raises(UnclipError, match="holds no row with the key 0000199999"):
        stored_embeddings(built[0], ["0000199999"])


def test_hits_are_a_table_that_parquet_holds(built: tuple[Path, Index], tmp_path: Path) -> None:
    pq.write_table(hit_table([], []), tmp_path / "none.parquet")
    assert pq.read_table(tmp_path / "none.parquet").schema.names == ["query", "rank", "score", "key", "caption", "url", "split"]
    assert isinstance(built[1].keys, pa.Table)
