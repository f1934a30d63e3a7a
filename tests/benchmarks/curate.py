"""`unclip select` on made-up stores of 100,000 and a million rows, beside comparing all pairs and the machine's own limit.

    python -m tests.benchmarks curate --peers .venv/peers
    python -m tests.benchmarks.curate ROWS            # one store: the line of JSON that the table is made of

Each store is worked on in a process of its own, with one thread. Pairs that should have been found are looked up for
some rows in all others, exactly; the time of comparing all pairs follows from the rate of that.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tests.benchmarks.child import matmul_peak, peak_memory
from unclip.data.contracts import embedding_schema, part_name
from unclip.data.embed import EmbedConfig, write_part
from unclip.data.manifest import Stage
from unclip.data.select import SelectConfig, select
from unclip.data.selection import ROWS
from unclip.data.store import iter_batches, normalised

SIZES = (100_000, 1_000_000)
WIDTH, PART, TOPICS = 64, 10_000, 500
DUPLICATED, MOST_COPIES = 0.2, 8  # of the rows, those that are copies of another one; and rows of one picture
SPREAD, NOISE = 0.8, 0.012  # of pictures in a topic, and of copies around their picture, each number; unit vectors otherwise
NUM_QUERIES = 2000
CONFIG = SelectConfig(near_duplicates="drop", near_similarity=0.95)


def write_store(folder: Path, num: int) -> None:
    """A store of vectors in topics; a fifth of the rows are copies of another row, some hundred places away."""
    stage = Stage(folder, "embed", EmbedConfig(text_tokens=False), {"shards": "made up"})
    schema = embedding_schema(WIDTH, text_tokens=False).with_metadata({"text_width": "1"})
    topics = normalised(np.random.default_rng(0).normal(size=(TOPICS, WIDTH)))
    for part in range(num // PART):
        generator = np.random.default_rng([1, part])
        own = topics[generator.integers(0, TOPICS, PART)] + SPREAD * normalised(generator.normal(size=(PART, WIDTH)))
        copies = generator.random(PART) < DUPLICATED
        originals = np.flatnonzero(~copies)
        own = normalised(own)
        own[copies] = own[generator.choice(originals[:: MOST_COPIES // 2], copies.sum())]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array((own + NOISE * generator.normal(size=own.shape)).astype(np.float16).ravel()), WIDTH)
        columns = {
            "key": [f"{part_name(part)}{row:05d}" for row in range(PART)], "split": ["train"] * PART, "similarity": generator.random(PART),
            "width": [256] * PART, "height": [256] * PART, "token_ids": [[1]] * PART, "image_emb": vectors, "text_emb": vectors,
        }  # fmt: skip
        arrays = [columns[kind.name] if kind.name.endswith("_emb") else pa.array(columns.get(kind.name, [""] * PART), kind.type) for kind in schema]
        write_part(folder / f"{part_name(part)}.parquet", pa.table([array.cast(kind.type) for array, kind in zip(arrays, schema, strict=True)], schema=schema))
    stage.finish(counts={"rows_in": num, "kept": num, "rejected": {}}, digest=str(num))


def measure(num: int) -> dict[str, Any]:
    """Seconds and memory of the stage, and what it found of the pairs that some rows have."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        # in a process of its own, so that its memory is not counted
        subprocess.run([sys.executable, "-m", "tests.benchmarks.curate", str(num), str(store)], check=True)
        imported, started, cpu = peak_memory(), time.monotonic(), time.process_time()
        manifest = select(store, CONFIG)
        seconds = {"wall": time.monotonic() - started, "cpu": time.process_time() - cpu}
        peak = peak_memory()
        return {"rows": num, "seconds": seconds, "imported_bytes": imported, "peak_memory_bytes": peak, "kept": manifest.counts["kept"]} | recall(store, num)


def recall(store: Path, num: int) -> dict[str, Any]:
    """Of the pairs that rows drawn at random have with all others, how many lie in one cluster; and how long looking them up took."""
    queries = np.sort(np.random.default_rng(2).choice(num, NUM_QUERIES, replace=False))
    names = pq.read_table(store / "_selected" / ROWS, columns=["cluster"])["cluster"].combine_chunks().dictionary_encode()
    cluster = names.indices.fill_null(-1).to_numpy()
    asked = np.concatenate([vectors[np.isin(rows, queries)] for rows, vectors in _batches(store)])
    seconds, pairs, together = 0.0, 0, 0
    for rows, vectors in _batches(store):
        started = time.process_time()
        near = asked @ vectors.T >= CONFIG.near_similarity
        seconds += time.process_time() - started
        query, other = np.nonzero(near)
        is_pair = queries[query] != rows[other]
        pairs += int(is_pair.sum())
        together += int(((cluster[queries[query]] == cluster[rows[other]]) & (cluster[rows[other]] >= 0) & is_pair).sum())
    return {"pairs_looked_up": pairs, "recall_of_pairs": together / pairs, "seconds_of_all_pairs": seconds * num / NUM_QUERIES / 2}


def _batches(store: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    begin = 0
    for batch in iter_batches(store, ["image_emb"], selected=False):
        yield np.arange(begin, begin + len(batch["image_emb"])), normalised(batch["image_emb"])
        begin += len(batch["image_emb"])


def run(peers: Path, out: Path, console: Console) -> None:
    """Prints the table and leaves `curate.json`. There is no peer to install: `peers` is not looked at."""
    found = []
    for num in SIZES:
        command = [sys.executable, "-m", "tests.benchmarks.curate", str(num)]
        child = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found.append(json.loads(child.stdout.splitlines()[-1]))
    peak = matmul_peak()
    columns = ("rows", "rows/s", "seconds of CPU", "all pairs", "their limit", "pairs found", "rows kept", "peak memory", "of it imports")
    table = Table(*columns, title="select: near duplicates of 64-d vectors, one thread")
    for row in found:
        row["limit_seconds"] = row["rows"] ** 2 * WIDTH / peak  # a product and a sum for each number of each pair, half of all pairs
        memory = [f"{row[name] / 2**20:,.0f} MiB" for name in ("peak_memory_bytes", "imported_bytes")]
        times = [f"{seconds:,.1f} s" for seconds in (row["seconds"]["cpu"], row["seconds_of_all_pairs"], row["limit_seconds"])]
        pairs = f"{row['recall_of_pairs']:.2%} of {row['pairs_looked_up']:,}"
        table.add_row(f"{row['rows']:,}", f"{row['rows'] / row['seconds']['cpu']:,.0f}", *times, pairs, f"{row['kept']:,}", *memory)
    console.print(table)
    small, large = found
    grown = (large["peak_memory_bytes"] - small["peak_memory_bytes"]) / (large["rows"] - small["rows"])
    console.print(f"Memory grows by {grown:.0f} bytes a row; a matrix product of this machine makes {peak / 1e9:.0f} GFlop/s.")
    (out / "curate.json").write_text(json.dumps({"sizes": found, "matmul_flops": peak, "bytes_a_row": grown}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        write_store(Path(sys.argv[2]), int(sys.argv[1]))
    else:
        print(json.dumps(measure(int(sys.argv[1]))))
