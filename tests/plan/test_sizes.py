"""The plan's bytes against files that the stages write: a source, a shard, a part of the store, the cache, indexes, checkpoints."""

import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from unclip.data.batch import Fetched
from unclip.data.cache import open_pairs
from unclip.data.contracts import embedding_schema
from unclip.data.embed import write_part
from unclip.data.index import KEYS, _write_keys
from unclip.data.index_kinds import KINDS, choose, make
from unclip.data.pack import write_shard
from unclip.data.source import TABLE, SourceConfig, build_source
from unclip.files import write_json
from unclip.plan import sizes
from unclip.plan.assumed import Assumed
from unclip.plan.published import PublishedClip
from unclip.training.ema import Ema
from unclip.training.optim import make_optimizers
from unclip.training.snapshot import Trained

ROWS, E, S, TOKENS = 2000, 96, 48, 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CAPTION, URL = 60, 90
WORDS = ["".join(random.Random(number).choices(LETTERS, k=2 + number % 8)) for number in range(4000)]


def made_up() -> list[dict[str, str]]:
    """Captions and links of just so many bytes, of words that are drawn unevenly, as real ones are."""
    draw = random.Random(0)
    captions = [" ".join(WORDS[min(3999, int(draw.paretovariate(0.6)) - 1)] for _ in range(CAPTION // 2))[:CAPTION] for _ in range(ROWS)]
    return [{"url": "https://images.example/" + "".join(draw.choices(LETTERS, k=URL - 23)), "caption": caption} for caption in captions]


PAIRS = made_up()
TEXT = ["".join(pair[name] for pair in PAIRS).encode() for name in ("caption", "url")]
LEFT = sum(len(pa.compress(text, codec="zstd", asbytes=True)) for text in TEXT) / sum(map(len, TEXT))
ASSUMED = Assumed(found=1.0, caption_bytes=CAPTION, url_bytes=URL, caption_tokens=TOKENS, text_left=LEFT)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One part, with token states."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    schema = embedding_schema(E, text_tokens=True).with_metadata({"text_width": str(S), "clip_digest": "made up"})
    fixed = schema.field("image_emb").type
    vectors = [pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=ROWS * E).astype(np.float16)), type=fixed) for _ in range(2)]
    ids = [[49406, *rng.integers(0, 49406, TOKENS - 2).tolist(), 49407] for _ in range(ROWS)]
    offsets = pa.array(np.arange(ROWS + 1, dtype=np.int32) * TOKENS * S)
    states = pa.ListArray.from_arrays(offsets, pa.array(rng.normal(size=ROWS * TOKENS * S).astype(np.float16)), type=schema.field("text_tokens").type)
    columns = {
        "key": [f"{0:05d}{row:05d}" for row in range(ROWS)], "caption": [pair["caption"] for pair in PAIRS], "url": [pair["url"] for pair in PAIRS],
        "sha256": [rng.bytes(32).hex() for _ in range(ROWS)], "width": rng.integers(256, 500, ROWS).tolist(), "height": [256] * ROWS,
        "split": ["train"] * ROWS, "image_emb": vectors[0], "text_emb": vectors[1], "similarity": rng.random(ROWS, np.float32), "token_ids": ids,
        "text_tokens": states,
    }  # fmt: skip
    write_part(folder / "00000.parquet", pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema))
    write_json(folder / "manifest.json", {"stage": "embed", "config": {}, "inputs": {}, "finished": True, "digest": "made up", "counts": {"kept": ROWS}})
    return folder


def near(found: float, planned: float, share: float) -> None:
    assert planned == pytest.approx(found, rel=share), f"{planned / found:.3f} of what was written"


def test_vectors_of_the_store_are_planned_to_a_percent_and_the_rest_to_a_tenth(store: Path) -> None:
    import pyarrow.parquet as pq

    columns = pq.ParquetFile(store / "00000.parquet").metadata.row_group(0)
    of_column = {columns.column(n).path_in_schema.split(".")[0]: columns.column(n).total_compressed_size for n in range(columns.num_columns)}
    near(of_column["image_emb"] + of_column["text_emb"], sizes.pooled_bytes(ROWS, E), 0.01)
    near(of_column["text_tokens"], sizes.text_state_bytes(ROWS, S, ASSUMED), 0.01)
    rest = sum(size for name, size in of_column.items() if name not in ("image_emb", "text_emb", "text_tokens"))
    near(rest, sizes.store_rest_bytes(ROWS, ASSUMED), 0.1)
    planned = sizes.pooled_bytes(ROWS, E) + sizes.text_state_bytes(ROWS, S, ASSUMED) + sizes.store_rest_bytes(ROWS, ASSUMED)
    near((store / "00000.parquet").stat().st_size, planned, 0.03)


def test_the_training_cache_is_planned_to_two_percent(store: Path) -> None:
    open_pairs(store, split="train", text_tokens=True)
    written = sum(file.stat().st_size for file in (store / "_cache" / "train").iterdir())
    near(written, sizes.cache_bytes(ROWS, E, S, ASSUMED), 0.02)


def test_the_keys_of_the_index_are_planned_to_five_percent(store: Path, tmp_path: Path) -> None:
    _write_keys(store, tmp_path / KEYS)
    near((tmp_path / KEYS).stat().st_size, sizes.keys_bytes(ROWS, ASSUMED), 0.05)


def test_a_shard_is_planned_to_three_percent_and_the_source_to_a_tenth(tmp_path: Path) -> None:
    links = tmp_path / "links.jsonl"
    links.write_text("\n".join(f'{{"url": "{pair["url"]}", "caption": "{pair["caption"]}"}}' for pair in PAIRS))
    build_source(tmp_path / "source", SourceConfig(path=str(links)))
    near((tmp_path / "source" / TABLE).stat().st_size, sizes.source_bytes(ROWS, ASSUMED), 0.1)
    rng = np.random.default_rng(0)
    rows, fetched, total = [], {}, 0
    with (tmp_path / "raw").open("wb") as raw:
        for number, pair in enumerate(PAIRS[:300]):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).resize((85, 64), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90 - number % 7)
            key = rng.bytes(8).hex()
            rows.append({"id": key, "split": "train", **pair})
            place = (raw.tell(), raw.write(out.getvalue()))
            fetched[key] = Fetched(status="kept", detail="", tar=tmp_path / "raw", place=place, sha256=rng.bytes(32).hex(), width=85, height=64)
            total += place[1]
    write_shard(tmp_path, "00000", rows, fetched, "jpg")
    written = sum((tmp_path / f"00000{suffix}").stat().st_size for suffix in (".tar", ".parquet"))
    near(written, sizes.shard_bytes(len(rows), total / len(rows), ASSUMED), 0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_each_kind_is_planned_to_a_percent(kind: str, tmp_path: Path) -> None:
    import faiss

    num = 20_000
    choice = choose(kind, num, 32, 1 << 40)  # type: ignore[arg-type]
    index = make(choice, 32)
    drawn = np.random.default_rng(0).normal(size=(num, 32)).astype(np.float32)
    index.train(drawn[:2000])  # how well it was learnt changes no size
    index.add(drawn)
    faiss.write_index(index, str(tmp_path / "index"))
    near((tmp_path / "index").stat().st_size, sizes.index_bytes(num, choice, 32), 0.01)


@pytest.mark.parametrize(("optimizer", "num_moments"), [("adamw", 2), ("muon", 1)])
def test_a_checkpoint_is_planned_to_three_percent(optimizer: str, num_moments: int, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    adamw = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.99), "eps": 1e-8}
    trained = Trained(network, make_optimizers(network, optimizer, **adamw), Ema(network, (0.9, 0.99)))  # type: ignore[arg-type]
    network(torch.ones(1, 300)).sum().backward()
    for one in trained.optimizers:
        one.step()
    (tmp_path / "metrics.parquet").touch()
    trained.write(tmp_path, 1, config={}, samples=1, metrics=tmp_path / "metrics.parquet")
    written = sum(file.stat().st_size for file in (tmp_path / "step-00000001").iterdir())
    parameters = sum(value.numel() for value in network.parameters())
    near(written, sizes.checkpoint_bytes(parameters, num_averages=2, num_moments=num_moments, kept=1), 0.03)


def test_the_published_sizes_are_those_that_the_design_rests_on() -> None:
    clip = PublishedClip(768, 768, 77, 427_616_513, 162_025_537_536, 13_299_683_328)
    rows = 400e6
    assert sizes.pooled_bytes(rows, clip.emb_width) == pytest.approx(1.2e12, rel=0.05)
    assert sizes.text_state_bytes(rows, clip.text_width, Assumed(caption_tokens=12)) == pytest.approx(7.4e12, rel=0.01)
