"""The embedding store: what stands in it is what CLIP says, in the shard's order, and it grows without being made again."""

import io
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.pipeline import command, copied, environment, folder_of, manifest, unclip
from unclip.clip import load_clip
from unclip.config import load_config
from unclip.data.embed import _ahead, _embed_captions
from unclip.data.loader import as_pictures, as_pixels
from unclip.data.pictures import PictureConfig, open_pictures
from unclip.data.shards import read_shard
from unclip.data.stats import STATS
from unclip.data.store import iter_batches, read_pairs, splits_of
from unclip.files import UnclipError, exclusive, read_json
from unclip.stages import run_stage


def test_rows_are_the_shards_samples_through_clip(root: Path) -> None:
    clip = load_clip(folder_of(root, "clip"))
    for name in ("00000", "00002"):
        samples = list(read_shard(folder_of(root, "download") / f"{name}.tar"))
        part = pq.read_table(folder_of(root, "embed") / f"{name}.parquet", page_checksum_verification=True)
        assert part["key"].to_pylist() == [sample.key for sample in samples]
        assert part["caption"].to_pylist() == [sample.caption for sample in samples]
        image_emb = clip.encode_pictures([Image.open(io.BytesIO(sample.image)) for sample in samples])
        text = clip.encode_texts([sample.caption for sample in samples])
        stored = torch.tensor(part["image_emb"].to_pylist())
        torch.testing.assert_close(stored, image_emb, atol=2e-3, rtol=2e-3)  # float16
        torch.testing.assert_close(torch.tensor(part["text_emb"].to_pylist()), text.text_emb, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(torch.tensor(part["similarity"].to_pylist()), F.cosine_similarity(image_emb, text.text_emb, dim=-1), atol=1e-5, rtol=1e-4)
        for row in range(0, len(samples), 7):
            length = int(text.text_mask[row].sum())
            assert part["token_ids"][row].as_py() == text.token_ids[row, :length].tolist()
            states = torch.tensor(part["text_tokens"][row].as_py()).reshape(length, -1)
            torch.testing.assert_close(states, text.text_tokens[row, :length], atol=4e-3, rtol=4e-3)


def test_vectors_are_plain_and_every_page_has_a_checksum(root: Path) -> None:
    path = folder_of(root, "embed") / "00000.parquet"
    columns = pq.ParquetFile(path).metadata.row_group(0)
    by_name = {columns.column(i).path_in_schema.split(".")[0]: columns.column(i) for i in range(columns.num_columns)}
    for name in ("image_emb", "text_emb", "text_tokens"):
        assert by_name[name].compression == "UNCOMPRESSED"
        assert not by_name[name].has_dictionary_page
        assert not by_name[name].is_stats_set
    assert by_name["caption"].compression == "ZSTD"
    assert b"own" in pq.read_schema(path).metadata[b"clip_name"]


def test_stats_are_those_of_the_training_rows(root: Path) -> None:
    stats = read_json(folder_of(root, "embed") / STATS)
    pairs = read_pairs(folder_of(root, "embed"), split="train", text_tokens=False)
    assert stats["count"] == len(pairs) == splits_of(folder_of(root, "embed"))["train"]
    for name in ("image_emb", "text_emb"):
        values = getattr(pairs, name).astype(np.float64)
        np.testing.assert_allclose(stats[name]["mean"], values.mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(stats[name]["std"], np.maximum(values.std(0), 1e-4), rtol=1e-4)


def test_a_new_shard_makes_one_new_part_and_a_grown_index(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    for stage in ("embed", "index"):
        shutil.rmtree(folder_of(copy, stage))
    shards = folder_of(copy, "download")
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in list(shards.glob("00002*")):
        shutil.move(file, aside)
    assert unclip("embed", copy).returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in folder_of(copy, "embed").glob("0000*")}
    assert {name[:5] for name in before} == {"00000", "00001"}
    for file in aside.iterdir():
        shutil.move(file, shards)
    changed = shards / "manifest.json"  # the shards have grown: their digest is another
    changed.write_text(changed.read_text().replace(str(manifest(copy, "download")["digest"]), "0123456789abcdef"))
    refused = unclip("embed", copy)
    assert "changed since `unclip curate`" in refused.stderr
    config = load_config(file=copy / "run.json")
    for stage in ("curate", "embed", "select"):
        run_stage(stage, config)
    after = {path.name: path.stat().st_mtime_ns for path in folder_of(copy, "embed").glob("0000*")}
    assert before.items() <= after.items()
    assert "00002.parquet" in after
    assert unclip("index", copy).returncode == 0
    assert manifest(copy, "index")["counts"]["kept"] == 120  # type: ignore[index]


def test_pictures_and_embeddings_are_joined_by_key(root: Path) -> None:
    pictures = open_pictures(folder_of(root, "download"), folder_of(root, "embed"), PictureConfig(), split="train", image_size=64, text_tokens=True, seed=0)
    clip = load_clip(folder_of(root, "clip"))
    batch = next(pictures.batches(len(pictures), start=0))
    assert sorted(batch.rows.tolist()) == list(range(len(pictures)))
    again = clip.encode_pictures([Image.fromarray(picture) for picture in batch.pictures[::11].numpy()])  # as large as in the shards: as CLIP saw them
    torch.testing.assert_close(batch.image_emb[::11].float(), again, atol=2e-3, rtol=2e-3)
    assert not pictures.joined.rejected


def test_a_column_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(UnclipError, match="has no column norm"):
        next(iter_batches(folder_of(root, "embed"), ["norm"]))


def test_pixels_round_trip() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert np.array_equal(as_pictures(as_pixels(pictures)), pictures)


def test_captions_go_through_clip_by_length_and_come_back_in_their_order(root: Path) -> None:
    clip = load_clip(folder_of(root, "clip"))
    captions = ["a red star", "a small blue circle left of a large yellow square", "a", "a red star on a white background"]
    columns = _embed_captions(clip, captions, batch_size=2)
    text = clip.encode_texts(captions)
    np.testing.assert_allclose(columns["text_emb"][0], text.text_emb, atol=1e-5)
    for row, length in enumerate(text.text_mask.sum(dim=1).tolist()):
        assert columns["token_ids"][row].tolist() == text.token_ids[row, :length].tolist()
        np.testing.assert_allclose(columns["text_tokens"][row], text.text_tokens[row, :length].reshape(-1), atol=4e-3)


def test_half_precision_is_asked_of_the_towers_and_similarities_stay_float32(root: Path) -> None:
    full, half = (load_clip(folder_of(root, "clip"), precision=precision) for precision in ("fp32", "bf16"))
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    emb, rough = full.encode_images(pixels), half.encode_images(pixels)
    assert rough.dtype == torch.float32
    assert not torch.equal(emb, rough)
    assert F.cosine_similarity(emb, rough).min() > 0.99


def test_only_so_many_batches_are_decoded_before_they_are_wanted() -> None:
    begun: list[int] = []

    def begin() -> Iterator[int]:
        for number in range(10):
            begun.append(number)
            yield number

    for number in _ahead(begin(), 3):  # type: ignore[arg-type, type-var]
        assert len(begun) <= number + 4  # type: ignore[operator]
    assert begun == list(range(10))


@pytest.mark.slow
def test_processes_that_share_a_root_take_a_shard_each_and_make_up_for_a_killed_one(root: Path, tmp_path: Path) -> None:
    alone = {path.name: path.read_bytes() for path in folder_of(root, "embed").glob("[0-9]*.parquet")}
    together = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(together, "embed"))
    start = [command("embed", together, "--embed.shared", "true", "--embed.num_workers", "0") for _ in range(3)]
    killed, *others = [subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) for words in start]
    wait_until(lambda: holds_a_shard(killed.pid) or killed.poll() is not None)
    killed.kill()
    for process in (killed, *others):
        _, errors = process.communicate(timeout=280)
        assert process is killed or process.returncode == 0, errors
    assert {path.name: path.read_bytes() for path in folder_of(together, "embed").glob("[0-9]*.parquet")} == alone
    assert manifest(together, "embed")["digest"] == manifest(root, "embed")["digest"]


def test_a_run_of_its_own_is_refused_beside_those_that_share(root: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path, shared=True), exclusive(tmp_path, shared=True), pytest.raises(UnclipError, match="another run is writing"), exclusive(tmp_path):
        pass


def holds_a_shard(process: int) -> bool:
    """Whether a process has claimed one: no other lock of the stage is a POSIX one."""
    return any("POSIX" in line and str(process) in line.split() for line in Path("/proc/locks").read_text().splitlines())


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
