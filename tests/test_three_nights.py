"""Three nights over a list that grows and partly fails, with a kill in each; then one with worse models. Takes minutes."""

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.data.faults import FaultServer, fault_server
from tests.pipeline import SECONDS, command, environment, unclip
from unclip.data.store import iter_batches
from unclip.versions import read_ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BAD = ("garbled", "html")  # what the server says to some links
SETTINGS = (
    "--preset", "tiny", "--source.allow_private", "true", "--download.allow_private", "true", "--download.retries", "0", "--source.follow_removals", "true",
    "--source.heldout_fraction", "0.2", "--download.image_size", "16", "--upsampler.num_upsamplers", "0", "--prior.kinds", '["diffusion", "linear"]',
    "--evaluate.rungs", "[]", "--evaluate.num_manipulated", "0", "--evaluate.judge_steps", "0", "--evaluate.num_validation", "0",
    "--evaluate.num_seen", "0", "--evaluate.max_training_pictures", "0",
)  # fmt: skip


def write_links(path: Path, server: FaultServer, numbers: range) -> None:
    """A table of links; every fifth leads to nothing that can be used."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["url", "caption"])
        for number in numbers:
            kind = BAD[number % 2] if number % 5 == 0 else "good"
            table.writerow([f"{server.base}/{kind}/{number}.png", f"picture number {number}"])


def killed_when(root: Path, ready: Callable[[], bool]) -> None:
    """A night that dies, with all its processes, as soon as something is there."""
    child = subprocess.Popen(command("run", root), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + SECONDS
    while not ready() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.poll() is None, "the night ended before it could be killed"
    family = [child.pid, *(one.pid for one in psutil.Process(child.pid).children(recursive=True))]
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


def finished(root: Path, *more: str) -> str:
    done = unclip("run", root, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def keys_of(root: Path) -> list[str]:
    return [str(key) for batch in iter_batches(root / "embeddings" / "own", ["key"]) for key in batch["key"]]


def test_three_nights_with_a_kill_in_each(tmp_path: Path) -> None:
    root, table = tmp_path / "root", tmp_path / "links.csv"
    with fault_server() as server:
        write_links(table, server, range(60))
        first = unclip("source", root, "--source", str(table), *SETTINGS)
        assert first.returncode == 0, first.stderr
        killed_when(root, lambda: (root / "shards" / "00000.tar").exists())
        finished(root)
        kept = keys_of(root)
        assert len(kept) == len(set(kept)) == 48
        assert [(version.name, version.state) for version in read_ledger(root).versions] == [("main", "used")]
        assert "nothing was to do" in finished(root)

        write_links(table, server, range(100))
        killed_when(root, lambda: any((root / "decoder" / "main-2").glob("step-*")))
        open_version = read_ledger(root).open
        assert open_version is not None
        assert list(open_version.done) == ["prior"]
        trained = next((root / "prior" / "main-2" / "diffusion").glob("step-*")).stat().st_mtime_ns
        asked = dict(server.seen)
        finished(root)
        assert next((root / "prior" / "main-2" / "diffusion").glob("step-*")).stat().st_mtime_ns == trained, "a model was trained for two nights"
        assert asked == dict(server.seen), "a link was asked for again"
        assert keys_of(root)[:48] == kept
        assert len(keys_of(root)) == len(set(keys_of(root))) == 80

        write_links(table, server, range(10, 120))  # ten have gone, of which two were never kept
        killed_when(root, lambda: (root / "report" / "main-3" / "manifest.json").exists())
        finished(root)
        assert len(keys_of(root)) == 88
        assert set(keys_of(root)).isdisjoint(kept[:8])
    ledger = read_ledger(root)
    assert [version.name for version in ledger.versions] == ["main", "main-2", "main-3"]
    assert ledger.open is None
    assert all(version.state in ("used", "refused") and version.numbers and version.why for version in ledger.versions)
    rejected = pq.read_table(root / "shards" / "00000.parquet")
    assert rejected.num_rows == 40  # a shard of the tiny preset: rows in, those that failed too
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(root) in " ".join(one.info["cmdline"] or ())]
