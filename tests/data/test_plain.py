"""Vectors taken as they lie are, bit for bit, what pyarrow decodes; what does not lie so is decoded; damage is found."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.synthetic import write_part_of
from unclip.data.plain import Chunk, as_float32, plain_columns, plain_vectors, read_chunks, thrift_struct
from unclip.data.store import iter_batches
from unclip.files import UnclipError

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the made-up text embeddings of such numbers

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)  # with subnormals, infinities and what is no number


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint16)


def by_pyarrow(path: Path, name: str = "image_emb") -> np.ndarray:
    column = pq.read_table(path, columns=[name])[name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)


@pytest.mark.parametrize(("rows", "width"), [(64, 1024), (9000, 7), (20_000, 64), (3, 1), (0, 5)])  # one page, several, several row groups
def test_vectors_are_those_that_pyarrow_decodes(rows: int, width: int, tmp_path: Path) -> None:
    made = np.resize(EVERY_HALF, (rows, width))
    write_part_of(tmp_path, 0, made)
    path = tmp_path / "00000.parquet"
    for batch_size in (8192, 1000):
        batches = list(iter_batches(tmp_path, ["text_emb", "key", "image_emb"], batch_size=batch_size))
        assert all(len(batch["key"]) <= batch_size for batch in batches)
        if rows:
            assert np.array_equal(bits(np.concatenate([batch["image_emb"] for batch in batches])), bits(by_pyarrow(path)))
            assert np.array_equal(bits(np.concatenate([batch["text_emb"] for batch in batches])), bits(by_pyarrow(path, "text_emb")))
            assert np.concatenate([batch["key"] for batch in batches]).tolist() == pq.read_table(path)["key"].to_pylist()
    assert np.array_equal(bits(by_pyarrow(path)), bits(made))


def chunks_of(path: Path) -> list[dict[str, Chunk]]:
    with pa.memory_map(str(path)) as source:
        return read_chunks(source)


def test_a_footer_is_read_as_pyarrow_reads_it(tmp_path: Path) -> None:
    write_part_of(tmp_path, 0, np.resize(EVERY_HALF, (20_000, 8)))
    path = tmp_path / "00000.parquet"
    metadata = pq.read_metadata(path)
    assert len(chunks_of(path)) == metadata.num_row_groups > 1
    for group, chunks in enumerate(chunks_of(path)):
        columns = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
        assert chunks.keys() == {column.path_in_schema.split(".")[0] for column in columns}
        for column in columns:
            found = chunks[column.path_in_schema.split(".")[0]]
            assert (found.begin, found.end) == (column.data_page_offset, column.data_page_offset + column.total_compressed_size)
            assert found.is_plain == (column.physical_type == "FIXED_LEN_BYTE_ARRAY")


def test_they_are_taken_as_they_lie_and_by_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part_of(tmp_path, 0, np.resize(EVERY_HALF, (20_000, 8)))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    assert [batch["image_emb"].shape for batch in iter_batches(tmp_path, ["image_emb"])] == [(8192, 8), (8192, 8), (3616, 8)]


@pytest.mark.parametrize(
    "otherwise", [{"compression": "zstd"}, {"data_page_version": "2.0", "compression": "snappy"}, {"use_dictionary": True, "compression": "none"}]
)
def test_a_part_that_is_laid_out_otherwise_is_decoded(otherwise: dict[str, object], tmp_path: Path) -> None:
    made = np.resize(EVERY_HALF[:500], (300, 10))
    write_part_of(tmp_path, 0, made)
    table = pq.read_table(tmp_path / "00000.parquet")
    pq.write_table(table, tmp_path / "00000.parquet", **otherwise)
    (chunks,) = chunks_of(tmp_path / "00000.parquet")
    assert plain_columns(chunks, table.schema, ["image_emb"]) == {}
    assert np.array_equal(bits(np.concatenate([batch["image_emb"] for batch in iter_batches(tmp_path, ["image_emb"])])), bits(made))


def test_no_flipped_bit_changes_a_vector_and_none_of_a_page_goes_unseen(tmp_path: Path) -> None:
    write_part_of(tmp_path, 0, np.ones((40, 3), np.float16))
    path = tmp_path / "00000.parquet"
    whole, schema = path.read_bytes(), pq.read_schema(path)
    column = plain_columns(chunks_of(path)[0], schema, ["image_emb"])["image_emb"]
    with pa.memory_map(str(path)) as source:
        source.seek(column.begin)
        header = thrift_struct(memoryview(source.read(64)))[1]
    unseen = []  # places in the header that say nothing of vectors, such as how levels are written
    for place in range(column.begin, column.end):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            with pa.BufferReader(bytes(damaged)) as source:
                try:
                    found = plain_vectors(source, column, 40, 3)
                except ValueError:
                    continue
            assert (found == 1).all()
            unseen.append(place - column.begin)
    assert max(unseen) < header
    damaged = bytearray(whole)
    damaged[column.end - 1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UnclipError, match="does not match its checksum"):
        list(iter_batches(tmp_path, ["image_emb"]))


def test_pages_that_hold_other_vectors_than_the_schema_says_are_refused(tmp_path: Path) -> None:
    write_part_of(tmp_path, 0, np.ones((40, 3), np.float16))
    path = tmp_path / "00000.parquet"
    column = plain_columns(chunks_of(path)[0], pq.read_schema(path), ["image_emb"])["image_emb"]
    for rows, width in ((39, 3), (41, 3), (40, 4)):
        with pa.memory_map(str(path)) as source, pytest.raises(ValueError, match="expected"):
            plain_vectors(source, column, rows, width)


def test_a_header_that_is_none_is_a_value_error() -> None:
    for content in (b"", b"\x15", b"\x15\xff\xff", b"\x05\x80", b"\x19\xf0", b"\x1c" * 50, b"\x1d\x00"):
        with pytest.raises(ValueError, match="header"):
            thrift_struct(memoryview(content))


def test_every_half_is_made_single_as_numpy_does_it() -> None:
    shaped = EVERY_HALF.reshape(256, 256)
    shaped.flags.writeable = False
    assert np.array_equal(as_float32(shaped), shaped.astype(np.float32), equal_nan=True)
    assert np.array_equal(as_float32(shaped.T), shaped.T.astype(np.float32), equal_nan=True)
    assert as_float32(shaped[:0]).shape == (0, 256)
    single = np.ones(3, np.float32)
    assert as_float32(single) is not single
