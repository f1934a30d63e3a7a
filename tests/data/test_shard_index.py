"""Pictures are found by key, and nothing that is broken is ever trained on: it is left out and counted, or one clear error."""

import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.pairs import encoded, key_of, members_of, plain, write_pairs, write_shard, write_store, write_tar
from unclip.data.manifest import read_part
from unclip.data.pictures import PictureConfig, Pictures, open_pictures
from unclip.data.shard_index import FOLDER, INDEX, OPEN_TARS, PictureReader, Places, open_index
from unclip.data.shards import read_shard
from unclip.files import UnclipError

Pairs = tuple[Path, Path]


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return write_pairs(tmp_path)


def opened(pairs: Pairs) -> Pictures:
    return open_pictures(*pairs, PictureConfig(), split="train", image_size=8, text_tokens=False, seed=0)


def seen(pictures: Pictures, num_workers: int = 0) -> list[tuple[int, int]]:
    """Shard and row of each picture of an epoch, which its embedding says too."""
    batch = next(pictures.batches(len(pictures), start=0, num_workers=num_workers))
    assert (batch.image_emb[:, :2] == batch.pictures[:, 0, 0, :2]).all()
    return sorted((part, row) for part, row, _ in batch.pictures[:, 0, 0].tolist())


TRAINED = [(part, row) for part in range(3) for row in range(12) if row not in (5, 11)]


def test_the_index_finds_what_a_reader_of_the_whole_tar_finds(pairs: Pairs) -> None:
    index = open_index(pairs[0], "00001")
    encode = PictureReader(Places.of(pairs[0], {"00001": index}))
    whole = list(read_shard(pairs[0] / "00001.tar"))
    assert index["key"].to_pylist() == [sample.key for sample in whole]
    assert [encode(row) for row in range(len(index))] == [sample.image for sample in whole]


def test_an_index_is_made_once_and_again_where_it_is_broken_or_of_another_tar(pairs: Pairs) -> None:
    first = seen(opened(pairs))
    assert first == TRAINED
    paths = sorted((pairs[0] / FOLDER).glob("*.parquet"))
    assert [path.name for path in paths] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    times = [path.stat().st_mtime_ns for path in paths]
    opened(pairs)
    assert [path.stat().st_mtime_ns for path in paths] == times
    paths[0].write_bytes(paths[0].read_bytes()[:-50])
    pq.write_table(pa.table({"key": ["a"]}), paths[1])
    write_shard(pairs[0], 2, dict(reversed(members_of(2).items())))  # the same pictures elsewhere in the tar
    assert seen(opened(pairs)) == TRAINED
    assert pq.read_schema(paths[0]).equals(INDEX)
    assert not list((pairs[0] / FOLDER).glob(".*.tmp"))


def test_a_picture_without_a_partner_is_left_out_and_counted_and_nothing_shifts(pairs: Pairs) -> None:
    shards = pairs[0]
    members = members_of(1)
    for row in (2, 5):  # 5 is held out
        del members[f"{key_of(1, row)}.png"]
    members["another.png"] = encoded(Image.new("RGB", (9, 9)))
    write_shard(shards, 1, members)
    (shards / "00002.tar").unlink()
    write_shard(shards, 7, members_of(7))
    pictures = opened(pairs)
    assert pictures.joined.rejected == {"embedding missing": 1 + 12, "image missing": 1 + 10}
    assert seen(pictures, num_workers=1) == [(part, row) for part, row in TRAINED if part < 2 and (part, row) != (1, 2)]
    assert set(pictures.joined.store_rows) == set(range(20)) - {12}


def cut(shards: Path) -> None:
    path = shards / "00001.tar"
    path.write_bytes(path.read_bytes()[:-2000])


def flip_a_byte(shards: Path) -> None:
    path, index = shards / "00001.tar", open_index(shards, "00001")
    content = bytearray(path.read_bytes())
    content[index["offset"][4].as_py() + 40] ^= 1
    path.write_bytes(content)


def forget_the_index(shards: Path) -> None:
    flip_a_byte(shards)
    (shards / FOLDER / "00001.parquet").unlink()


def forget_the_record(shards: Path) -> None:
    (shards / "00001.json").unlink()


def twice(shards: Path) -> None:
    write_shard(shards, 1, {f"{key_of(1, 0)}.png": encoded(plain(1, 0)), f"{key_of(1, 0)}.jpg": encoded(plain(1, 0), "jpg")})


def no_tar(shards: Path) -> None:
    part = read_part(shards, "00001")
    assert part is not None
    write_shard(shards, 1, {"a.png": b"x" * 3000})
    (shards / "00001.tar").write_bytes(b"x" * (shards / "00001.tar").stat().st_size)


def another_count(shards: Path) -> None:
    write_shard(shards, 1, members_of(1))
    record = shards / "00001.json"
    record.write_text(record.read_text().replace('"kept": 12', '"kept": 13'))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"00001\.tar has [\d,]+ bytes, its record says [\d,]+; run `unclip repair`"),
        (forget_the_index, r"00001\.tar has its size, but other bytes than its record says; run `unclip repair`"),
        (forget_the_record, r"00001\.tar has no record beside it, so it is not known to be whole"),
        (twice, r"00001\.tar holds two pictures of the key 0000100000"),
        (no_tar, r"00001\.tar has its size, but other bytes"),
        (another_count, r"00001\.tar holds 12 pictures, its record says 13"),
    ],
)
def test_a_shard_that_is_not_what_its_record_says_is_refused_before_training(pairs: Pairs, damage: Callable[[Path], None], said: str) -> None:
    damage(pairs[0])
    with pytest.raises(UnclipError, match=said):
        opened(pairs)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_byte_that_flips_after_that_is_found_when_its_picture_is_read(pairs: Pairs, workers: int) -> None:
    pictures = opened(pairs)
    flip_a_byte(pairs[0])
    with pytest.raises(UnclipError, match=r"^.*00001\.tar: the picture 0000100004 is not what was stored, its bytes have changed; run `unclip repair`$"):
        seen(pictures, workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stored_file_that_is_no_picture_is_named(pairs: Pairs, workers: int) -> None:
    write_shard(pairs[0], 1, members_of(1) | {f"{key_of(1, 3)}.png": encoded(plain(1, 3))[:-30]})
    with pytest.raises(UnclipError, match=r"^.*00001\.tar: the picture 0000100003 can't be decoded \(.*\); remove its row from the source$"):
        seen(opened(pairs), workers)


def test_pictures_of_other_kinds_are_found_too(tmp_path: Path) -> None:
    shards, store = write_pairs(tmp_path, parts=1, suffix="jpg")
    pictures = opened((shards, store))
    assert len(pictures) == 10
    batch = next(pictures.batches(10, start=0))
    assert (batch.image_emb[:, :2] - batch.pictures[:, 0, 0, :2]).abs().max() <= 3  # JPEG loses a little


def test_nothing_left_is_one_line(tmp_path: Path) -> None:
    shards, store = tmp_path / "shards", tmp_path / "store"
    write_shard(shards, 0, {"another.png": encoded(plain(0, 0))})
    write_store(store, 1)
    with pytest.raises(UnclipError, match="no picture in .* has its key in .* with the split 'train'"):
        opened((shards, store))


def test_more_shards_than_may_be_open_at_once_are_read(tmp_path: Path) -> None:
    tables = {}
    for number in range(OPEN_TARS + 5):
        content = f"picture {number}".encode()
        write_tar(tmp_path / f"{number:05d}.tar", {"a.png": content})
        tables[f"{number:05d}"] = pa.table([["a"], [512], [len(content)], [zlib.crc32(content)]], schema=INDEX)
    read = PictureReader(Places.of(tmp_path, tables))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        assert [read(number) for number in range(len(tables))] == [f"picture {number}".encode() for number in range(len(tables))]
    assert len(list(Path("/proc/self/fd").iterdir())) - before == OPEN_TARS
    del read
    assert len(list(Path("/proc/self/fd").iterdir())) == before
