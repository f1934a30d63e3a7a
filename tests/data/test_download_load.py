"""The download stage under real load, all of it slow: 100,000 links, kills at random moments, a disk that is full."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.data.crowd import KINDS, crowd
from unclip.data.contracts import REASONS, SHARD, read_table
from unclip.data.download import SCRATCH, DownloadConfig, download
from unclip.data.manifest import Manifest, read_manifest, read_part
from unclip.data.source import SourceConfig, build_source
from unclip.files import sha256_file

pytestmark = pytest.mark.slow

NUM_LINKS = 100_000
NUM_KILLS = 20
SETTINGS: dict[str, Any] = {
    "allow_private": True, "image_size": 32, "encode_format": "png", "encode_quality": 1, "threads": 16, "processes": 2, "retries": 1,
    "backoff_seconds": 0.1, "timeout_seconds": 20, "max_seconds": 60.0,
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[str]:
    with crowd() as base:
        yield base


def links(base: str, number: int) -> list[tuple[str, str]]:
    """Links of which 60 % are good, and what must come of each."""
    draw = random.Random(7)
    kinds = draw.choices(list(KINDS), weights=[60.0] + [40.0 / (len(KINDS) - 1)] * (len(KINDS) - 1), k=number)
    return [(f"{base}/{kind}/{place}.png", KINDS[kind]) for place, kind in enumerate(kinds)]


def source_of(root: Path, rows: list[tuple[str, str]], shard_size: int) -> Path:
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table({"url": [url for url, _ in rows], "caption": [f"it is {expected}" for _, expected in rows]}), root / "links.parquet")
    build_source(root / "source", SourceConfig(path=str(root / "links.parquet"), allow_private=True, shard_size=shard_size))
    return root / "source"


@pytest.mark.timeout(600)
def test_a_hundred_thousand_links_of_strangers_add_up(server: str, tmp_path: Path) -> None:
    given = links(server, NUM_LINKS - 6000)
    refused = [(f"http://192.168.0.{number % 250}:0x/{number}.png", "url malformed") for number in range(3000)]
    refused += [(f"ftp://a.example/{number}", "url not http(s)") for number in range(3000)]
    source = source_of(tmp_path, given + refused, shard_size=2000)
    read = read_manifest(source)
    assert read is not None
    assert read.counts["rows_in"] == NUM_LINKS == read.counts["kept"] + 6000
    manifest = download(source, tmp_path / "shards", DownloadConfig(**SETTINGS))
    expected = Counter(expected for _, expected in given)
    kept = expected.pop("kept")
    assert manifest.counts["rejected"] == dict(expected)
    assert (manifest.counts["rows_in"], manifest.counts["kept"]) == (len(given), kept)
    for path in sorted((tmp_path / "shards").glob("*.parquet")):
        table = read_table(path, SHARD)
        assert pc.all(pc.equal(table["caption"], pc.binary_join_element_wise(pa.scalar("it is"), table["status"], " "))).as_py(), (
            "each row ends as its own kind"
        )
        part = read_part(tmp_path / "shards", path.stem)
        assert part is not None
        assert all(sha256_file(path.parent / name) == sha256 for name, (_, sha256) in part.files.items())


CHILD = """
import sys
from pathlib import Path
from unclip.data.download import DownloadConfig, download
download(Path(sys.argv[1]), Path(sys.argv[2]), DownloadConfig(**eval(sys.argv[3])))
"""


def start(source: Path, shards: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", CHILD, str(source), str(shards), repr(SETTINGS)], start_new_session=True, stderr=subprocess.DEVNULL)


@pytest.mark.timeout(600)
def test_twenty_kills_at_random_moments_change_nothing(server: str, tmp_path: Path) -> None:
    rows = links(server, 6_000)
    source = source_of(tmp_path, rows, shard_size=250)
    whole = download(source, tmp_path / "whole", DownloadConfig(**SETTINGS))
    draw, kills = random.Random(3), Counter[str]()
    run = start(source, tmp_path / "shards")
    while kills.total() < NUM_KILLS:
        time.sleep(draw.uniform(0.2, 6.0))
        if run.poll() is not None:
            assert run.returncode == 0
            shutil.rmtree(tmp_path / "shards")  # it was quicker than the kills
            run = start(source, tmp_path / "shards")
            continue
        below = psutil.Process(run.pid).children(recursive=True)
        whom = draw.choice(["parent", "worker", "group"])
        if whom == "worker" and not below:
            continue
        kills[whom] += 1
        if whom == "worker":
            kill(draw.choice(below))
            continue
        if whom == "parent":
            run.kill()
        else:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        deadline = time.monotonic() + 10
        while any(alive(process) for process in below):
            assert time.monotonic() < deadline, "an orphan is left"
            time.sleep(0.05)
        run = start(source, tmp_path / "shards")
    assert run.wait(300) == 0
    assert min(kills.values()) >= 3
    found = read_manifest(tmp_path / "shards")
    assert found is not None
    assert same(found) == same(whole)
    for path in (tmp_path / "whole").glob("*.[tp]ar*"):
        assert sha256_file(path) == sha256_file(tmp_path / "shards" / path.name)
    assert not list((tmp_path / "shards").glob(".*"))


def same(manifest: Manifest) -> tuple[object, ...]:
    """All of a manifest but what it took."""
    return manifest.stage, manifest.config, manifest.inputs, manifest.finished, manifest.digest, manifest.counts


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(300)
def test_a_full_disk_leaves_a_valid_state_and_room_is_all_that_it_takes(server: str, tmp_path: Path) -> None:
    rows = [(f"{server}/good/{number}.png", "kept") for number in range(2000)]
    source = source_of(tmp_path, rows, shard_size=200)
    config = DownloadConfig(**SETTINGS)
    whole = download(source, tmp_path / "whole", config)
    size = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir()) / 1e6
    with small_disk(tmp_path / "disk", round(size * 1.7)):  # what is fetched and what is written of it do not fit together
        ballast = tmp_path / "disk/ballast"
        ballast.write_bytes(bytes(round(size * 0.6e6)))
        with pytest.raises(OSError, match="No space left") as caught:
            download(source, tmp_path / "disk/shards", config)
        assert caught.value.errno == errno.ENOSPC
        assert not (tmp_path / "disk/shards" / SCRATCH).exists(), "what is not whole makes room"
        unfinished = read_manifest(tmp_path / "disk/shards")
        assert unfinished is None or not unfinished.finished
        for record in (tmp_path / "disk/shards").glob("0*[0-9].json"):
            part = read_part(record.parent, record.stem)
            assert part is not None
            assert all(sha256_file(record.parent / name) == sha256 for name, (_, sha256) in part.files.items())
        ballast.unlink()
        subprocess.run(["mount", "-o", f"remount,size={round(size * 4)}m", str(tmp_path / "disk")], check=True)
        assert same(download(source, tmp_path / "disk/shards", config)) == same(whole)


def test_every_reason_of_the_crowd_is_one_of_ours() -> None:
    assert set(KINDS.values()) <= {"kept", *REASONS}
