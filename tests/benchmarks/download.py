"""The download stage beside plain img2dataset: the same links, on the same loopback server, with the same settings.

Plain img2dataset follows any link, believes its own exit code and leaves its rows in the order in which they came; what we
do beyond that is in our numbers. CPU time is that of all processes together: on a machine that does other work too it says
more than the wall clock. Memory is the most that all processes together had at a time, shared pages shared out (PSS).
"""

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tests.data.crowd import crowd
from unclip.files import write_json

NUM_LINKS = 1_000  # at 1x, and ten times as many at 10x
GOOD = 0.8  # of the links; the others are 404, so that neither tries twice
SHARD_SIZE = 1000
SAMPLE_SECONDS = 0.2
SETTINGS: dict[str, Any] = {"image_size": 64, "encode_format": "jpg", "encode_quality": 95, "min_image_size": 16}
PROCESSES, THREADS = 1, 16


@dataclass(frozen=True)
class Measured:
    """One contender on one list of links."""

    contender: str
    num_links: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    own_peak_bytes: int

    @property
    def rate(self) -> float:
        """Links a second of wall clock."""
        return self.num_links / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Links a CPU-second."""
        return self.num_links / self.cpu_seconds


def run(peers: Path, out: Path, console: Console) -> None:
    """Measures, prints the table and writes it to `out/download.json`. The peer is in our own environment already."""
    measured = []
    with tempfile.TemporaryDirectory() as scratch, crowd() as base:
        for times in (1, 10):
            links = write_links(Path(scratch) / f"links{times}.parquet", base, NUM_LINKS * times)
            measured += [measure(name, links, Path(scratch) / f"{name}{times}") for name in ("img2dataset", "unclip")]
    table = Table("", "links", "links/s", "links/CPU-s", "peak of all processes", "peak of the first", title="Download", title_justify="left")
    for one in measured:
        memory = (f"{size / 2**20:,.0f} MiB" for size in (one.peak_bytes, one.own_peak_bytes))
        table.add_row(one.contender, f"{one.num_links:,}", f"{one.rate:,.0f}", f"{one.cpu_rate:,.0f}", *memory)
    console.print(table)
    facts = {"when": datetime.now(UTC).isoformat(timespec="minutes"), "machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    facts |= {"load": os.getloadavg()[0], "img2dataset": metadata.version("img2dataset")}
    write_json(out / "download.json", facts | {"measured": [asdict(one) | {"rate": one.rate, "cpu_rate": one.cpu_rate} for one in measured]})


def write_links(path: Path, base: str, number: int) -> Path:
    """A list of links, of which GOOD lead to pictures."""
    draw = random.Random(0)
    kinds = ["good" if draw.random() < GOOD else "missing" for _ in range(number)]
    urls = [f"{base}/{kind}/{place}.png" for place, kind in enumerate(kinds)]
    pq.write_table(pa.table({"url": urls, "caption": [f"caption {place}" for place in range(number)]}), path)
    return path


def measure(contender: str, links: Path, out: Path) -> Measured:
    """Runs a contender to its end, and checks that it kept what it should have."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.benchmarks.download", contender, str(links), str(out)]
    # or img2dataset's libraries would ask the network for newer versions of themselves
    process = subprocess.Popen(command, env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}, stdout=subprocess.DEVNULL)
    cpu: dict[int, float] = {}
    peak = own = 0
    while process.poll() is None:
        now = 0
        for one in [process.pid, *children(process.pid)]:
            size, used = seen(one)
            now, cpu[one] = now + size, max(used, cpu.get(one, 0.0))
            own = max(own, size) if one == process.pid else own
        peak = max(peak, now)
        time.sleep(SAMPLE_SECONDS)
    assert process.returncode == 0, f"{contender} ended with {process.returncode}"
    seconds = time.monotonic() - started
    num = pq.read_metadata(links).num_rows
    kept = sum(json.loads(path.read_text())["kept" if contender == "unclip" else "successes"] for path in records(contender, out))
    expected = sum("/good/" in url for url in pq.read_table(links)["url"].to_pylist())
    assert kept == expected, f"{contender} kept {kept} of {expected}"
    shutil.rmtree(out)
    return Measured(contender, num, seconds, sum(cpu.values()), peak, own)


def records(contender: str, out: Path) -> list[Path]:
    return sorted((out / "shards").glob("0*[0-9].json") if contender == "unclip" else out.glob("*_stats.json"))


def children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def seen(pid: int) -> tuple[int, float]:
    """Bytes and CPU seconds of a process; nothing of one that has ended."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return process.memory_full_info().pss, times.user + times.system
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0, 0.0


def work(contender: str, links: Path, out: Path) -> None:
    """What a measured process does."""
    if contender == "img2dataset":
        from img2dataset import download as plain

        plain(
            url_list=str(links), input_format="parquet", url_col="url", caption_col="caption", output_format="webdataset", output_folder=str(out),
            number_sample_per_shard=SHARD_SIZE, processes_count=PROCESSES, thread_count=THREADS, resize_mode="keep_ratio", resize_only_if_bigger=True,
            extract_exif=False, compute_hash="sha256", enable_wandb=False, max_aspect_ratio=4.0, **SETTINGS,
        )  # fmt: skip
        return
    from unclip.data.download import DownloadConfig, download
    from unclip.data.source import SourceConfig, build_source

    build_source(out / "source", SourceConfig(path=str(links), shard_size=SHARD_SIZE, allow_private=True))
    download(out / "source", out / "shards", DownloadConfig(processes=PROCESSES, threads=THREADS, allow_private=True, **SETTINGS))


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
