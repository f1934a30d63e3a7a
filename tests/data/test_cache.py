"""The training cache gives what the store gives, is made again when it does not fit, and is whole or absent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import dataset

from tests.pipeline import environment
from unclip.data import cache
from unclip.data.cache import FOLDER, RECORD, cache_sizes, open_pairs
from unclip.data.contracts import embedding_schema
from unclip.data.embed import EmbedConfig, write_part
from unclip.data.loader import batches_of, padded_states
from unclip.data.manifest import Stage
from unclip.data.store import Pairs, part_paths, read_pairs
from unclip.files import UnclipError, read_json

E, S = 6, 4


def make_store(folder: Path, *, parts: int = 2, rows: int = 30, seed: int = 0, text_tokens: bool = True, width: int = S) -> Path:
    """A store of random rows, every fifth held out, with a finished manifest."""
    generator = np.random.default_rng(seed)
    stage = Stage(folder, "embed", EmbedConfig(text_tokens=text_tokens), {"shards": str(seed)})
    schema = embedding_schema(E, text_tokens=text_tokens).with_metadata({"text_width": str(width)})
    for part in range(parts):
        lengths = generator.integers(2, 9, rows)
        columns = {
            "key": [f"{part:05d}{row:04d}" for row in range(rows)],
            "caption": [f"caption {row} é" for row in range(rows)],
            "split": ["heldout" if row % 5 == 0 else "train" for row in range(rows)],
            "image_emb": list(generator.normal(size=(rows, E)).astype(np.float16)),
            "text_emb": list(generator.normal(size=(rows, E)).astype(np.float16)),
            "token_ids": [[1] * length for length in lengths],
            "text_tokens": [generator.normal(size=length * width).astype(np.float16) for length in lengths],
        }
        blank = {"string": [""] * rows, "int32": [1] * rows, "float": [0.5] * rows}
        arrays = [pa.array(columns.get(field.name, blank.get(str(field.type))), field.type) for field in schema]
        write_part(folder / f"{part:05d}.parquet", pa.table(arrays, schema=schema))
    stage.finish(counts={"kept": parts * rows}, digest=f"digest of {seed}")
    return folder


def assert_same(ours: Pairs, theirs: Pairs) -> None:
    for name in ("keys", "captions", "image_emb", "text_emb"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.text_tokens is not None
    assert theirs.text_tokens is not None
    assert [state.tolist() for state in ours.text_tokens] == [state.tolist() for state in theirs.text_tokens]


def test_cache_and_store_give_the_same_batches_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BATCH_ROWS", 7)  # several batches a part, which do not divide it
    store = make_store(tmp_path)
    pairs = {reading: open_pairs(store, split="train", text_tokens=True, reading=reading) for reading in ("cache", "store")}  # type: ignore[arg-type]
    assert_same(pairs["cache"], pairs["store"])
    assert len(pairs["cache"]) == 48
    assert isinstance(pairs["cache"].image_emb, np.memmap)
    assert isinstance(pairs["cache"].text_tokens.flat, np.memmap)  # type: ignore[union-attr]
    assert not isinstance(pairs["store"].image_emb, np.memmap)
    streams = []
    for held in pairs.values():
        assert held.text_tokens is not None
        batches = batches_of(len(held), 10, seed=1, start=3, lengths=held.text_tokens.lengths)
        streams.append([(held.image_emb[rows], *padded_states(held.text_tokens.take(rows))) for rows, _ in zip(batches, range(8), strict=False)])
    for ours, theirs in zip(*streams, strict=True):
        assert np.array_equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[2], theirs[2])


def test_each_split_has_a_cache_of_its_own_and_the_store_does_not_see_them(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    before = part_paths(store)
    for split in ("train", "heldout"):
        assert_same(open_pairs(store, split=split, text_tokens=True), read_pairs(store, split=split, text_tokens=True))
    assert part_paths(store) == before
    assert dataset.dataset(store, exclude_invalid_files=True).count_rows() == 60  # a reader that goes down into folders
    sizes = cache_sizes(store)
    assert sorted(sizes) == ["heldout", "train"]
    assert sizes["train"] == sum(path.stat().st_size for path in (store / FOLDER / "train").iterdir())


def test_a_cache_that_fits_is_not_made_again(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    open_pairs(store, split="train", text_tokens=True)
    before = {path: path.stat().st_mtime_ns for path in (store / FOLDER / "train").iterdir()}
    open_pairs(store, split="train", text_tokens=False)
    assert {path: path.stat().st_mtime_ns for path in (store / FOLDER / "train").iterdir()} == before


def cut(folder: Path) -> None:
    path = folder / "text_tokens.npy"
    path.write_bytes(path.read_bytes()[:-8])


def change_the_shape(folder: Path) -> None:
    path = folder / "image_emb.npy"  # as many bytes, but another width
    path.write_bytes(path.read_bytes().replace(b"(48, 6)", b"(96, 3)", 1))


def flip_a_size(folder: Path) -> None:
    path = folder / RECORD
    size = read_json(path)["files"]["offsets.npy"]["bytes"]
    path.write_text(path.read_text().replace(str(size), str(size + 8)))


def cut_the_record(folder: Path) -> None:
    path = folder / RECORD
    path.write_text(path.read_text()[:50])


def say_another_split(folder: Path) -> None:
    path = folder / RECORD
    path.write_text(path.read_text().replace('"train"', '"heldout"'))


def remove_a_file(folder: Path) -> None:
    (folder / "offsets.npy").unlink()


@pytest.mark.parametrize("damage", [cut, change_the_shape, flip_a_size, cut_the_record, say_another_split, remove_a_file])
def test_a_cache_that_does_not_fit_is_made_again(tmp_path: Path, damage: object) -> None:
    store = make_store(tmp_path)
    open_pairs(store, split="train", text_tokens=True)
    folder = store / FOLDER / "train"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)  # type: ignore[operator]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} != whole  # or nothing was broken
    assert_same(open_pairs(store, split="train", text_tokens=True), read_pairs(store, split="train", text_tokens=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_store_that_was_made_again_makes_its_cache_again(tmp_path: Path) -> None:
    first = open_pairs(make_store(tmp_path), split="train", text_tokens=True)
    kept = np.array(first.image_emb)
    second = open_pairs(make_store(tmp_path, seed=1), split="train", text_tokens=True)
    assert_same(second, read_pairs(tmp_path, split="train", text_tokens=True))
    assert not np.array_equal(second.image_emb, kept)
    assert np.array_equal(first.image_emb, kept)  # who had mapped the old one keeps it


def test_a_store_without_text_states(tmp_path: Path) -> None:
    store = make_store(tmp_path, text_tokens=False)
    assert open_pairs(store, split="train", text_tokens=False).text_tokens is None
    for reading in ("cache", "store"):
        with pytest.raises(UnclipError, match="has no column text_tokens"):
            open_pairs(store, split="train", text_tokens=True, reading=reading)  # type: ignore[arg-type]


def test_an_unfinished_store_has_no_cache(tmp_path: Path) -> None:
    Stage(make_store(tmp_path), "embed", EmbedConfig(), {})
    with pytest.raises(UnclipError, match="stopped before its end"):
        open_pairs(tmp_path, split="train", text_tokens=True)


def test_where_nothing_can_be_written_the_message_says_what_to_do(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (store / FOLDER).write_text("in the way")
    with pytest.raises(UnclipError, match="set reading to 'store'"):
        open_pairs(store, split="train", text_tokens=True)


def test_a_build_that_is_killed_leaves_nothing_half(tmp_path: Path) -> None:
    store = make_store(tmp_path, parts=4)
    stuck = (
        "import sys, time\nfrom pathlib import Path\nfrom unclip.data import cache\nreal = cache.iter_batches\n"
        "def slow(*more, **named):\n    for number, batch in enumerate(real(*more, **named)):\n        yield batch\n"
        "        if number == 2:\n            print('half', flush=True)\n            time.sleep(60)\n"
        "cache.iter_batches = slow\ncache.open_pairs(Path(sys.argv[1]), split='train', text_tokens=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", stuck, str(store)], env=environment(), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "half\n"
    assert list((store / FOLDER).glob(".train.*.tmp/image_emb.npy"))  # it was killed in the middle of its work
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (store / FOLDER / "train").exists()
    assert_same(open_pairs(store, split="train", text_tokens=True), read_pairs(store, split="train", text_tokens=True))
    assert sorted(path.name for path in (store / FOLDER).iterdir()) == [".lock", "train"]


def test_of_two_that_train_together_one_makes_the_cache_and_the_other_waits(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom unclip.data import cache\nreal = cache._build\n"
        "def slow(*more):\n    print('built', flush=True)\n    time.sleep(0.5)\n    real(*more)\n"
        "cache._build = slow\ncache.open_pairs(Path(sys.argv[1]), split='train', text_tokens=True)\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, str(store)], env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(said) == ["", "built\n"]
