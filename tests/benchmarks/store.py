"""The embedding store beside its peers: reading (embedding-reader, a raw memory map), the index (autofaiss), embedding (clip-retrieval).

    python -m tests.benchmarks store --peers .venv/peers

Every contender is a process of its own, one after the other, on the same files with one thread; a peer that does not run
is a line that says why.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from tests.benchmarks.prior import machine
from tests.benchmarks.store_child import MODEL
from tests.data.synthetic import vectors, write_part_of
from unclip.clip import import_clip
from unclip.data.batch import Fetched
from unclip.data.manifest import Stage
from unclip.data.pack import write_shard
from unclip.data.store import normalised
from unclip.files import write_json

READ = ("memory map", "unclip, training cache", "unclip, Parquet", "embedding-reader, Parquet")
INDEX = ("unclip, auto", "unclip, fp16", "unclip, int8", "unclip, ivf-int8", "unclip, ivf-pq", "autofaiss")
EMBED = ("bare forward", "unclip", "clip-retrieval")
ROWS, MANY_ROWS, WIDTH, PART = 50_000, 500_000, 256, 10_000
INDEXED, INDEXED_WIDTH, NUM_QUERIES = 20_000, 64, 200
PAIRS, SIDE = 256, 256
SECONDS = 900  # that a contender may take


def write_vectors(folder: Path, rows: int, width: int) -> None:
    """A store of made-up vectors, the same ones as a plain array, unit ones for autofaiss, and just the parts for embedding-reader."""
    drawn = vectors(rows, seed=0, width=width)
    for number, start in enumerate(range(0, rows, PART)):
        write_part_of(folder / "store", number, drawn[start : start + PART])
    for name in ("parts", "unit"):
        (folder / name).mkdir()
    for path in sorted((folder / "store").glob("*.parquet")):
        table = pq.read_table(path, columns=["key", "image_emb"])
        pq.write_table(table, folder / "parts" / path.name, use_dictionary=False, compression="none", write_statistics=False)
    np.save(folder / "vectors.npy", drawn)
    np.save(folder / "queries.npy", vectors(NUM_QUERIES, seed=1, width=width))
    np.save(folder / "unit" / "0.npy", normalised(drawn))


def write_pairs(folder: Path) -> None:
    """Finished shards of JPEG pictures with captions of 4 to 16 words, and a CLIP of random weights, as a file and as a folder."""
    import open_clip

    rng = np.random.default_rng(0)
    (folder / "raw").write_bytes(b"")
    rows, fetched, offset = [], {}, 0
    with (folder / "raw").open("wb") as file:
        for number in range(PAIRS):
            buffer = io.BytesIO()
            noise = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            noise.save(buffer, "JPEG", quality=90)
            file.write(buffer.getvalue())
            key = f"{number:016x}"
            caption = " ".join(f"word{rng.integers(1000)}" for _ in range(rng.integers(4, 17)))
            rows.append({"id": key, "url": f"http://127.0.0.1/{key}", "caption": caption, "split": "train"})
            place = {"tar": folder / "raw", "place": (offset, buffer.tell()), "sha256": "0" * 64, "width": SIDE, "height": SIDE}
            fetched[key] = Fetched(status="kept", detail="", **place)  # type: ignore[arg-type]
            offset += buffer.tell()
    shards = folder / "shards"
    shards.mkdir()
    kept, rejected = write_shard(shards, "00000", rows, fetched, "jpg")
    stage = Stage.__new__(Stage)
    stage.folder = shards
    part = stage.record_part("00000", made_from="made up", rows_in=PAIRS, kept=kept, rejected=rejected, files=["00000.tar", "00000.parquet"], seconds=0.0)
    made = {"config": {}, "inputs": {}, "finished": True}
    counts = {"rows_in": PAIRS, "kept": kept, "rejected": {}}
    write_json(shards / "manifest.json", made | {"stage": "download", "digest": part.digest, "counts": counts})
    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL).state_dict(), folder / "weights.pt")
    (folder / "clip").mkdir()
    import_clip(folder / "clip", MODEL, str(folder / "weights.pt"))
    write_json(folder / "clip" / "manifest.json", made | {"stage": "clip", "digest": "made up", "counts": {}})


def measure(task: str, contenders: Sequence[str], folder: Path, peers: Path, console: Console) -> dict[str, dict[str, Any]]:
    """What each contender answers, or `failed` with the last line that it said."""
    found: dict[str, dict[str, Any]] = {}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "NO_ALBUMENTATIONS_UPDATE": "1"}
    for contender in contenders:
        command = [sys.executable, "-m", "tests.benchmarks.store_child", task, contender, str(folder), str(peers)]
        try:
            done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            found[contender] = {"failed": f"not done after {SECONDS} s"}
            continue
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        found[contender] = json.loads(lines[-1]) if done.returncode == 0 else {"failed": lines[-1] if lines else f"exit code {done.returncode}"}
        console.print(f"{task}: {contender} done")
    return found


def show(title: str, found: dict[str, dict[str, Any]], columns: dict[str, Any]) -> Table:
    """A line a contender; `columns` maps a heading to what it shows of an answer."""
    table = Table("", *columns, title=title)
    for name, answer in found.items():
        if "failed" in answer:
            table.add_row(name, f"did not run: {answer['failed'][:100]}")
        else:
            table.add_row(name, *(show_one(answer) for show_one in columns.values()))
    return table


def memory(answer: dict[str, Any]) -> str:
    """Peak memory, and what of it the imports alone take."""
    return f"{answer['peak_memory_bytes'] / 2**20:,.0f} MiB ({answer['imported_bytes'] / 2**20:,.0f})"


def run(peers: Path, out: Path, console: Console) -> None:
    """Prints the tables and leaves `store.json`."""
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, rows in (("read", ROWS), ("read_10x", MANY_ROWS)):
            (folder / name).mkdir()
            write_vectors(folder / name, rows, WIDTH)
            results[name] = found = measure("read", READ, folder / name, peers, console)
            limit = found["memory map"]["rate"]
            columns = {
                "rows/s": lambda answer: f"{answer['rate']:,.0f}",
                "of the memory map": lambda answer, limit=limit: f"{answer['rate'] / limit:.2f}",
                "peak memory (imports)": memory,
            }
            console.print(show(f"Reading {rows:,} vectors of {WIDTH} float16 as float32 batches of 8,192", found, columns))
        (folder / "index").mkdir()
        write_vectors(folder / "index", INDEXED, INDEXED_WIDTH)
        results["index"] = found = measure("index", INDEX, folder / "index", peers, console)
        columns = {
            "build, CPU s": lambda answer: f"{answer['build_seconds']:.2f}", "ms/query": lambda answer: f"{1000 * answer['query_seconds']:.3f}",
            "recall@10": lambda answer: f"{answer['recall_at_10']:.3f}", "on disk": lambda answer: f"{answer['bytes'] / 2**20:.1f} MiB",
            "peak memory (imports)": memory,
        }  # fmt: skip
        console.print(show(f"Index over {INDEXED:,} vectors of {INDEXED_WIDTH}, {NUM_QUERIES} held-out queries one by one", found, columns))
        (folder / "embed").mkdir()
        write_pairs(folder / "embed")
        results["embed"] = found = measure("embed", EMBED, folder / "embed", peers, console)
        limit = found["bare forward"]["rate"]
        columns = {
            "pairs/s": lambda answer: f"{answer['rate']:.1f}", "of the bare forward": lambda answer, limit=limit: f"{answer['rate'] / limit:.2f}",
            "peak memory (imports)": memory,
        }  # fmt: skip
        console.print(show(f"Embedding {PAIRS} pairs of {SIDE} pixels with {MODEL}, one thread, decoding included", found, columns))
    (out / "store.json").write_text(json.dumps(results, indent=2) + "\n")
