"""The index: FAISS against a plain matrix product, the choice of its kind, its measured recall, and how it grows."""

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from tests.data.synthetic import WIDTH, vectors, write_part_of
from unclip.data import index as stage
from unclip.data.index import INDEX, KEYS, RECORD, Index, IndexConfig, build_index, open_index
from unclip.data.index_kinds import EXACT_ROWS, KINDS, choose, make, search_parameters
from unclip.data.index_recall import measure_recall, read_queries
from unclip.data.store import normalised
from unclip.files import UnclipError


def make_index(num: int = 50, width: int = 8) -> tuple[Index, np.ndarray]:
    drawn = np.random.default_rng(0).normal(size=(num, width)).astype(np.float16) * 3
    index = faiss.IndexFlatIP(width)
    index.add(normalised(drawn))
    return Index(index, pa.table({"key": [f"{row:010d}" for row in range(num)]})), drawn


def record(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / RECORD).read_text())
    return content


def test_scores_are_cosines_and_neighbours_the_true_ones() -> None:
    index, drawn = make_index()
    queries = np.random.default_rng(1).normal(size=(7, 8)).astype(np.float32)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        drawn.astype(np.float32) / np.linalg.norm(drawn.astype(np.float32), axis=1, keepdims=True)
    ).T
    scores, rows = index.search(queries, 5)
    assert np.array_equal(rows, np.argsort(-cosines, axis=1)[:, :5])
    np.testing.assert_allclose(scores, np.sort(cosines, axis=1)[:, ::-1][:, :5], atol=1e-5)


def test_asking_for_more_than_there_is_gives_all() -> None:
    index, drawn = make_index(num=3)
    scores, rows = index.search(drawn[:1].astype(np.float32), 10)
    assert rows.shape == scores.shape == (1, 3)
    assert rows[0, 0] == 0


def test_a_query_of_another_clip_is_refused() -> None:
    with pytest.raises(UnclipError, match="width 8, the query has 4; it was embedded by another CLIP"):
        make_index()[0].search(np.zeros((1, 4), np.float32), 1)


def test_a_zero_vector_is_not_divided_by_nothing() -> None:
    assert np.isfinite(normalised(np.zeros((1, 4)))).all()


@pytest.mark.parametrize(
    ("rows", "gib", "kind", "code"),
    [
        (1_000_000, 4.0, "fp32", 2048), (1_000_000, 1.5, "fp16", 1024), (1_000_000, 0.6, "int8", 512), (1_000_000, 0.3, "ivf-pq", 256),
        (2_000_000, 4.0, "ivf-int8", 512), (100_000_000, 16.0, "ivf-pq", 128), (400_000_000, 30.0, "ivf-pq", 64),
    ],
)  # fmt: skip
def test_the_kind_is_the_first_of_the_table_that_fits(rows: int, gib: float, kind: str, code: int) -> None:
    chosen = choose("auto", rows, 512, int(gib * 2**30))
    assert (chosen.kind, chosen.code_bytes) == (kind, code)
    assert chosen.bytes_a_row * rows <= gib * 2**30
    assert chosen.has_cells == (chosen.kind.startswith("ivf"))
    assert rows > EXACT_ROWS or not chosen.has_cells or kind == "ivf-pq"


def test_what_does_not_fit_is_refused_with_what_it_takes() -> None:
    with pytest.raises(UnclipError, match=r"takes 1.91 GiB of memory, expected at most 1.00; raise index.max_memory_gib, or choose another"):
        choose("fp32", 1_000_000, 512, 2**30)
    with pytest.raises(UnclipError, match="of the kind ivf-pq over 1,000,000,000 vectors"):
        choose("auto", 1_000_000_000, 512, 2**30)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_like_a_plain_product(kind: str, tmp_path: Path) -> None:
    drawn = normalised(vectors(3000, seed=0))
    index = make(choose(kind, len(drawn), WIDTH, 2**30), WIDTH)  # type: ignore[arg-type]
    index.train(drawn)
    index.add(drawn)
    faiss.write_index(index, str(tmp_path / INDEX))
    opened = faiss.read_index(str(tmp_path / INDEX), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
    allowed = np.arange(3000) % 3 == 1
    for rows in (None, allowed):
        scores, found = opened.search(drawn[:50], 10, params=search_parameters(opened, nprobe=64, rows=rows))
        cosines = np.where(allowed if rows is not None else True, drawn[:50] @ drawn.T, -np.inf)
        truth = np.argsort(-cosines, axis=1)[:, :10]
        shared = np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]) / 10
        assert shared > 0.93
        assert rows is None or allowed[found].all()
        np.testing.assert_allclose(scores, np.take_along_axis(cosines, found, axis=1), atol=0.01)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for number in range(2):
        write_part_of(tmp_path / "store", number, vectors(1500, seed=number))
    return tmp_path / "store"


def test_an_index_with_cells_looks_into_more_of_them_until_it_finds_enough(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "FIRST_NPROBE", 1)
    build_index(store, tmp_path / "index", IndexConfig(kind="ivf-int8", num_queries=50))
    made = record(tmp_path / "index")
    opened = open_index(tmp_path / "index")
    assert made["recall"]["worst"] >= 0.95  # type: ignore[index]
    assert opened.nprobe == made["nprobe"] > 1
    all_vectors = np.concatenate([vectors(1500, seed=number) for number in range(2)])
    scores, found = opened.search(all_vectors[:5], 1)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(scores[:, 0], 1.0, atol=0.01)


def test_an_index_that_finds_too_little_is_not_left_behind(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UnclipError, match=r"the int8 index of .* finds 0\.\d+ of the true ten nearest, .* expected at least 1.0"):
        build_index(store, tmp_path / "index", IndexConfig(kind="int8", recall_target=1.0))
    assert not (tmp_path / "index" / INDEX).exists()
    with pytest.raises(UnclipError, match="was stopped before its end"):
        open_index(tmp_path / "index")


def test_the_recall_is_the_share_of_true_neighbours(store: Path) -> None:
    """A search that knows the truth has all, one that answers with the farthest has none, one that gives half has half."""
    queries = read_queries(store, 3000, num=40, training_rows=0, seed=0)
    everything = normalised(np.concatenate([vectors(1500, seed=number) for number in range(2)]))

    def best(asked: np.ndarray, k: int) -> np.ndarray:
        return np.argsort(-(asked @ everything.T), axis=1, kind="stable")[:, :k]

    assert measure_recall(best, queries) == {"picture": 1.0, "caption": 1.0, "worst": 1.0}
    assert measure_recall(lambda asked, k: np.argsort(asked @ everything.T, axis=1)[:, :k], queries)["worst"] == 0.0
    half = measure_recall(lambda asked, k: np.where(np.arange(k) < 5, best(asked, k), -1), queries)
    assert half["caption"] == pytest.approx(0.5)
    assert half["picture"] == pytest.approx(0.4)  # the first of the five is the picture itself


def test_what_it_learns_from_is_drawn_from_all_rows_and_apart_from_the_queries(store: Path) -> None:
    queries = read_queries(store, 3000, num=100, training_rows=1000, seed=0)
    everything = normalised(np.concatenate([vectors(1500, seed=number) for number in range(2)]))
    at = [np.flatnonzero((everything == row).all(axis=1))[0] for row in queries.sample]
    assert not set(at) & set(queries.rows.tolist())
    assert 400 < sum(row < 1500 for row in at) < 600


@pytest.mark.parametrize("kind", ["fp32", "ivf-int8"])
def test_new_parts_are_added_and_nothing_is_learned_again(kind: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = IndexConfig(kind=kind, num_queries=50)  # type: ignore[arg-type]
    build_index(store, tmp_path / "index", config)
    before = record(tmp_path / "index")
    write_part_of(store, 2, vectors(300, seed=2))
    read: list[str] = []
    real = stage._add
    monkeypatch.setattr(stage, "_add", lambda index, store, names, bar: (read.extend(names), real(index, store, names, bar)))
    made = build_index(store, tmp_path / "index", config)
    assert read == ["00002"]
    assert made.counts["grown_by"] == 300
    assert made.counts["kept"] == made.counts["rows_in"] == 3300
    assert record(tmp_path / "index")["trained_rows"] == before["trained_rows"]
    _, found = open_index(tmp_path / "index").search(vectors(300, seed=2), 1)
    assert (found[:, 0] == np.arange(3000, 3300)).mean() > 0.95
    assert open_index(tmp_path / "index").keys["key"][3000].as_py() == "0000200000"


@pytest.mark.parametrize("change", ["drift", "changed part", "many more rows", "flipped byte"])
def test_where_the_old_index_would_be_wrong_it_is_made_anew(change: str, store: Path, tmp_path: Path) -> None:
    config = IndexConfig(kind="ivf-int8", num_queries=50, recall_target=0.9)
    build_index(store, tmp_path / "index", config)
    if change == "drift":
        write_part_of(store, 2, vectors(300, seed=2, centre=3.0))
    elif change == "changed part":
        write_part_of(store, 0, vectors(1400, seed=9))
    elif change == "many more rows":
        write_part_of(store, 2, vectors(9001, seed=2))
    else:
        content = bytearray((tmp_path / "index" / INDEX).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "index" / INDEX).write_bytes(content)
    made = build_index(store, tmp_path / "index", config)
    assert made.counts["grown_by"] == 0
    assert record(tmp_path / "index")["trained_rows"] == made.counts["kept"]


def test_a_grown_index_is_that_of_one_build(store: Path, tmp_path: Path) -> None:
    build_index(store, tmp_path / "grown", IndexConfig())
    write_part_of(store, 2, vectors(200, seed=2))
    build_index(store, tmp_path / "grown", IndexConfig())
    build_index(store, tmp_path / "whole", IndexConfig())
    for file in (INDEX, KEYS):
        assert (tmp_path / "grown" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("file", [INDEX, KEYS])
def test_a_cut_file_is_one_line(file: str, store: Path, tmp_path: Path) -> None:
    build_index(store, tmp_path / "index", IndexConfig())
    content = (tmp_path / "index" / file).read_bytes()
    (tmp_path / "index" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UnclipError, match="run `unclip index` again"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("wrong", [{"max_memory_gib": 0}, {"num_queries": 0}, {"recall_target": 1.5}, {"max_drift": 0.5}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IndexConfig(**wrong)  # type: ignore[arg-type]
