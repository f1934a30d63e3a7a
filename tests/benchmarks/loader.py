"""Our picture loader beside webdataset's own pipeline on the same shards, and beside bare decoding, which none can beat.

Every measurement runs in a process of its own, with one thread. Nobody waits for a model: this is how fast pictures could
come. The limit is `unclip.data.shards.decode` in a loop, on bytes that are in memory already. webdataset decodes with the
same function and shuffles 1,000 pictures at a time; ours shuffles all of them, checks each picture's CRC and joins its
embeddings.
"""

import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
import webdataset
from PIL import Image
from rich.console import Console
from rich.table import Table

from tests.benchmarks.child import peak_memory
from tests.benchmarks.prior import machine
from tests.data.pairs import write_shard
from unclip.data.contracts import embedding_schema
from unclip.data.embed import EmbedConfig, write_part
from unclip.data.manifest import Stage
from unclip.data.pictures import PictureConfig, open_pictures
from unclip.data.shard_index import PictureReader, Places, open_index
from unclip.data.shards import decode

STORED, SIZE = 256, 64  # pixels: what `download` keeps, and what the paper's decoder takes
QUALITY = 95  # of the JPEGs, as `download` writes them
SHARD_ROWS, E = 500, 512
ROWS = 2000  # and ten times as many for the memory
DISTINCT = 200  # pictures; the rows repeat them
BATCH = 64
WARM, TIMED = 10, 40  # batches
REPEATS = 3
LIMIT = "bare decoding"


@dataclass
class Measured:
    """A reader with so many workers, and what its repeats gave."""

    reader: str
    workers: int
    rows: int = ROWS
    answers: list[dict[str, Any]] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(answer[name] for answer in self.answers)


def photographs(num: int) -> Iterator[bytes]:
    """JPEGs that are as hard to decode as photographs: noise of every scale, 25 KB each."""
    generator = np.random.default_rng(0)
    for _ in range(num):
        layers = [np.kron(generator.normal(size=(STORED // scale, STORED // scale, 3)), np.ones((scale, scale, 1))) * scale for scale in (1, 4, 16, 64)]
        out = io.BytesIO()
        Image.fromarray((128 + 3 * sum(layers)).clip(0, 255).astype(np.uint8)).save(out, "jpeg", quality=QUALITY)
        yield out.getvalue()


def write_data(folder: Path, rows: int) -> None:
    """Shards and a store of so many rows."""
    pictures = list(photographs(DISTINCT))
    schema = embedding_schema(E, text_tokens=False).with_metadata({"text_width": "1"})
    stage = Stage(folder / "store", "embed", EmbedConfig(text_tokens=False), {})
    generator = np.random.default_rng(1)
    for part in range(rows // SHARD_ROWS):
        keys = [f"{part:05d}{row:05d}" for row in range(SHARD_ROWS)]
        write_shard(folder / "shards", part, {f"{key}.jpg": pictures[(part * SHARD_ROWS + row) % DISTINCT] for row, key in enumerate(keys)})
        vectors = list(generator.normal(size=(SHARD_ROWS, E)).astype(np.float16))
        columns = {"key": keys, "caption": [f"a photograph of thing {row}" for row in range(SHARD_ROWS)], "split": ["train"] * SHARD_ROWS}
        blank = {"string": [""] * SHARD_ROWS, "int32": [1] * SHARD_ROWS, "float": [0.5] * SHARD_ROWS}
        values = columns | {"image_emb": vectors, "text_emb": vectors, "token_ids": [[1]] * SHARD_ROWS}
        write_part(
            folder / "store" / f"{part:05d}.parquet", pa.table([pa.array(values.get(f.name, blank.get(str(f.type))), f.type) for f in schema], schema=schema)
        )
    stage.finish(counts={}, digest=str(rows))


def ours(folder: Path, workers: int) -> Iterator[int]:
    pictures = open_pictures(folder / "shards", folder / "store", PictureConfig(), split="train", image_size=SIZE, text_tokens=False, seed=0)
    return (len(batch) for batch in pictures.batches(BATCH, start=0, num_workers=workers))


def theirs(folder: Path, workers: int) -> Iterator[int]:
    """As webdataset's documentation has it: shards in a new order every epoch, a buffer that shuffles, batches in the workers."""

    def batch_of(samples: list[dict[str, Any]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([decode(sample["jpg"], SIZE) for sample in samples]))

    shards = [str(path) for path in sorted((folder / "shards").glob("*.tar"))]
    pipeline = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).repeat().shuffle(1000).batched(BATCH, collation_fn=batch_of)
    return (len(batch) for batch in webdataset.WebLoader(pipeline, batch_size=None, num_workers=workers))


def limit(folder: Path, _workers: int) -> Iterator[int]:
    index = open_index(folder / "shards", "00000")
    read = PictureReader(Places.of(folder / "shards", {"00000": index}))
    chunks = [[read(row) for row in range(first, first + BATCH)] for first in (0, BATCH)]
    return (len(np.stack([decode(image, SIZE) for image in chunk])) for chunk in itertools.cycle(chunks))


READERS: dict[str, Callable[[Path, int], Iterator[int]]] = {"unclip": ours, "webdataset": theirs, LIMIT: limit}


def answer(reader: str, folder: Path, workers: int) -> dict[str, Any]:
    """Pictures a second by the clock and by the time of all processes together, and the memory of this one."""
    torch.set_num_threads(1)
    imported = peak_memory()
    batches = READERS[reader](folder, workers)
    for _ in range(WARM):
        next(batches)
    here = psutil.Process()
    everyone = [here, *here.children(recursive=True)]
    used, started = seconds_of(everyone), time.monotonic()
    pictures = sum(itertools.islice(batches, TIMED))
    wall, cpu = time.monotonic() - started, seconds_of(everyone) - used
    return {"by_the_clock": pictures / wall, "by_processor_time": pictures / cpu, "peak_memory_bytes": peak_memory(), "imported_bytes": imported}


def seconds_of(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def ask(each: Measured, folder: Path) -> dict[str, Any]:
    """One measurement in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "RANK": "1"}  # no progress is shown
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.loader", each.reader, str(folder), str(each.workers)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def table(measured: list[Measured]) -> Table:
    alone = next(each for each in measured if each.reader == LIMIT)
    shown = Table("", "workers", "rows", "pictures a second", "a CPU-second", "of bare decoding", "peak memory over the imports", title_justify="left")
    for each in measured:
        over = max(found["peak_memory_bytes"] - found["imported_bytes"] for found in each.answers)
        rate = each.median("by_processor_time")
        shown.add_row(
            each.reader, str(each.workers), f"{each.rows:,}", f"{each.median('by_the_clock'):,.0f}", f"{rate:,.0f}",
            f"{rate / alone.median('by_processor_time'):.0%}", f"{over / 1e6:,.1f} MB",
        )  # fmt: skip
    return shown


def run(_peers: Path, out: Path, console: Console) -> None:
    """Measures and writes loader.json; webdataset is installed with unclip."""
    before = machine()
    measured = [Measured(LIMIT, 0), *(Measured(reader, workers) for workers in (0, 1, 2) for reader in ("unclip", "webdataset"))]
    measured.append(Measured("unclip", 0, rows=10 * ROWS))
    with tempfile.TemporaryDirectory() as folder:
        for rows in (ROWS, 10 * ROWS):
            write_data(Path(folder) / str(rows), rows)
            ask(Measured("unclip", 0, rows), Path(folder) / str(rows))  # makes the caches; not counted
        for turn in range(REPEATS):
            for each in measured if turn == 0 else measured[:-1]:  # the last is there for its memory
                each.answers.append(ask(each, Path(folder) / str(each.rows)))
            console.print(f"turn {turn + 1} done")
    console.print(table(measured))
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": before, "python": platform.python_version(), "torch": torch.__version__,
        "webdataset": webdataset.__version__, "pillow": Image.__version__, "stored_pixels": STORED, "pixels": SIZE, "batch": BATCH,
        "measured": [asdict(each) for each in measured],
    }  # fmt: skip
    (out / "loader.json").write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"{out / 'loader.json'} holds this.")


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
