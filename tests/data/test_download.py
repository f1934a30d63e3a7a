"""The download stage against a server that misbehaves, and through kills: img2dataset runs for real."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from tests.data.faults import FaultServer, fault_server, image_bytes
from unclip.data import batch, fetch, web
from unclip.data.contracts import REASONS, SHARD, read_table
from unclip.data.download import SCRATCH, DownloadConfig, download
from unclip.data.manifest import Manifest, read_part
from unclip.data.source import SourceConfig, build_source
from unclip.files import UnclipError

# a link of the fault server -> what must come of it
EXPECTED = {
    "/good/1.png": "kept", "/good/2.png": "kept", "/large/1": "kept", "/webp/1": "kept", "/once/1": "kept", "/to/good": "kept",
    "/status/404": "not found", "/status/403": "forbidden", "/status/500": "server error",
    "/status/429": "too many requests", "/html/1": "image broken", "/garbled/1": "image broken", "/short/1": "connection failed",
    "/empty/1": "image broken", "/big/1": "too large", "/drip/1": "timed out", "/to/file": "url not http(s)",
    "/optout/noai": "opted out", "/optout/noml": "opted out", "/optout/unclip: noindex": "opted out", "/optout/other: noai": "kept",
    "/bomb/1": "too large", "/huge/1": "too large", "/optout/otherbot: noai": "kept",
    "/tdm/1": "opted out", "/tiny/1": "image too small", "/wide/1": "aspect ratio", "/vast/1": "too large", "/nothing": "not found",
}  # fmt: skip
FAST: dict[str, Any] = {
    "allow_private": True,
    "retries": 1,
    "backoff_seconds": 0.05,
    "max_seconds": 2.0,
    "timeout_seconds": 1,
    "threads": 32,
    "longest_wait_seconds": 5.0,
}


def write_links(path: Path, base: str, links: list[str]) -> Path:
    pq.write_table(pa.table({"url": [base + link for link in links], "caption": [f"caption of {link}" for link in links]}), path)
    return path


def source_of(root: Path, base: str, links: list[str], shard_size: int = 1000) -> Path:
    table = write_links(root / "links.parquet", base, links)
    build_source(root / "source", SourceConfig(path=str(table), allow_private=True, shard_size=shard_size))
    return root / "source"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".parquet")}


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with fault_server() as running:
        yield running


@pytest.fixture(scope="module")
def faulty(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DownloadConfig, Manifest]:
    root = tmp_path_factory.mktemp("faulty")
    config = DownloadConfig(image_size=64, encode_quality=90, max_bytes=300_000, max_image_pixels=200_000, **FAST)
    manifest = download(source_of(root, server.base, list(EXPECTED)), root / "shards", config)
    return root, config, manifest


def test_every_link_ends_as_a_row_with_its_reason_in_the_order_of_the_source(faulty: tuple[Path, DownloadConfig, Manifest]) -> None:
    root, _, manifest = faulty
    rows = read_table(root / "shards/00000.parquet", SHARD).to_pylist()
    assert [row["caption"] for row in rows] == [f"caption of {link}" for link in EXPECTED]
    assert {row["caption"].removeprefix("caption of "): row["status"] for row in rows} == EXPECTED
    assert {row["status"] for row in rows} <= {"kept", *REASONS}
    assert [row["key"] for row in rows] == [f"00000{number:05d}" for number in range(len(rows))]
    assert manifest.counts["rows_in"] == len(EXPECTED) == manifest.counts["kept"] + sum(manifest.counts["rejected"].values())
    assert json.loads((root / "shards/00000_stats.json").read_text())["status"]["kept"] == manifest.counts["kept"]


def test_only_what_may_pass_is_tried_again(faulty: tuple[Path, DownloadConfig, Manifest], server: FaultServer) -> None:
    tries = {link: server.seen[link] for link in EXPECTED}
    assert (tries["/once/1"], tries["/status/500"], tries["/status/429"], tries["/drip/1"]) == (2, 2, 2, 2)
    assert (tries["/status/404"], tries["/html/1"], tries["/optout/noai"], tries["/big/1"]) == (1, 1, 1, 1)


@pytest.mark.parametrize(("link", "status", "tries"), [("/later/1", "kept", 2), ("/later/9", "too many requests", 1)])
def test_a_site_gets_the_second_that_it_asks_for_and_nine_are_too_many(link: str, status: str, tries: int, server: FaultServer, tmp_path: Path) -> None:
    """While a site rests, none of its other links is asked for; so the good one is another site's."""
    with fault_server() as other:
        source = source_of(tmp_path, "", [other.base + "/good/1.png", server.base + link])
        download(source, tmp_path / "shards", DownloadConfig(image_size=32, **FAST))
    assert [row["status"] for row in read_table(tmp_path / "shards/00000.parquet", SHARD).to_pylist()] == ["kept", status]
    assert server.seen[link] == tries


def test_the_tar_reads_as_a_webdataset_and_holds_what_the_table_says(faulty: tuple[Path, DownloadConfig, Manifest]) -> None:
    root, _, _ = faulty
    kept = [row for row in read_table(root / "shards/00000.parquet", SHARD).to_pylist() if row["status"] == "kept"]
    samples = list(webdataset.WebDataset(str(root / "shards/00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in kept]
    for sample, row in zip(samples, kept, strict=True):
        assert sample["txt"].decode() == row["caption"]
        assert json.loads(sample["json"])["id"] == row["id"]
        assert Image.open(io.BytesIO(sample["jpg"])).size == (row["width"], row["height"])
    assert (kept[0]["width"], kept[0]["height"]) == (40, 30)  # smaller than image_size: as it is
    assert (kept[2]["width"], kept[2]["height"]) == (96, 64)  # 300 x 200, its shorter side scaled down
    assert kept[0]["sha256"] == hashlib.sha256(image_bytes(40, 30, seed=1)).hexdigest()
    with tarfile.open(root / "shards/00000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_the_second_run_starts_no_process_and_changes_nothing(faulty: tuple[Path, DownloadConfig, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    root, config, manifest = faulty
    before = {path: path.stat().st_mtime_ns for path in (root / "shards").iterdir()}
    monkeypatch.setattr("unclip.data.batch.subprocess.Popen", lambda *_, **__: pytest.fail("img2dataset was started"))
    assert download(root / "source", root / "shards", config) == manifest
    assert {path: path.stat().st_mtime_ns for path in (root / "shards").iterdir()} == before
    assert not (root / "shards" / SCRATCH).exists()
    with pytest.raises(UnclipError, match="image_size was 64, is now 65"):
        download(root / "source", root / "shards", DownloadConfig(image_size=65))


@pytest.fixture(scope="module")
def undisturbed(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DownloadConfig]:
    root = tmp_path_factory.mktemp("undisturbed")
    config = DownloadConfig(image_size=32, **FAST | {"threads": 4})
    download(source_of(root, server.base, [f"/good/{number}.png" for number in range(30)], shard_size=12), root / "shards", config)
    return root, config


def test_growth_adds_shards_and_fetches_nothing_again(undisturbed: tuple[Path, DownloadConfig], server: FaultServer) -> None:
    root, config = undisturbed
    before, seen = digests(root / "shards"), server.seen.copy()
    assert [read_table(root / f"shards/{part}.parquet", SHARD).num_rows for part in ("00000", "00001", "00002")] == [12, 12, 6]
    source_of(root, server.base, [f"/good/{number}.png" for number in [*range(30), 100, 101]], shard_size=12)
    manifest = download(root / "source", root / "shards", config)
    assert manifest.counts["parts"] == 4
    assert manifest.counts["kept"] == 32
    assert before.items() <= digests(root / "shards").items()
    assert server.seen - seen == {"/good/100.png": 1, "/good/101.png": 1}


CHILD = """
import sys
from pathlib import Path
from unclip.data.download import DownloadConfig, download
download(Path(sys.argv[1]), Path(sys.argv[2]), DownloadConfig(**eval(sys.argv[3])))
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_the_next_one_makes_the_same_bytes(
    undisturbed: tuple[Path, DownloadConfig], server: FaultServer, tmp_path: Path
) -> None:
    whole, config = undisturbed
    source = source_of(tmp_path, server.base, [f"/good/{number}.png" for number in range(30)], shard_size=12)
    settings = {"image_size": 32, **FAST, "threads": 4}
    seen = server.seen.total()
    server.delay = 0.5
    try:
        run = subprocess.Popen([sys.executable, "-c", CHILD, str(source), str(tmp_path / "shards"), repr(settings)])
        wait_until(lambda: server.seen.total() >= seen + 8)
        below = psutil.Process(run.pid).children(recursive=True)
        assert len(below) >= 2  # img2dataset and a worker at least
        run.kill()
        run.wait()
        wait_until(lambda: not any(alive(process) for process in below), seconds=5)
    finally:
        server.delay = 0.0
    assert (tmp_path / "shards" / SCRATCH).exists()
    download(source, tmp_path / "shards", config)
    made = digests(tmp_path / "shards")
    assert made == {name: digest for name, digest in digests(whole / "shards").items() if name in made}
    assert len(made) == 6
    assert not (tmp_path / "shards" / SCRATCH).exists()


def alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def wait_until(true: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_a_folder_goes_through_the_same_way_and_its_server_ends_with_the_stage(tmp_path: Path) -> None:
    (tmp_path / "pictures/deep").mkdir(parents=True)
    for number, name in enumerate(("one.png", "deep/two ü.png")):
        (tmp_path / "pictures" / name).write_bytes(image_bytes(32, 32, seed=number))
        (tmp_path / "pictures" / name).with_suffix(".txt").write_text(f"picture {number}")
    build_source(tmp_path / "source", SourceConfig(path=str(tmp_path / "pictures")))
    config = DownloadConfig(encode_format="png", encode_quality=6, **FAST | {"allow_private": False})
    manifest = download(tmp_path / "source", tmp_path / "shards", config)
    assert manifest.counts == {"parts": 1, "rows_in": 2, "kept": 2, "rejected": {}}
    (first, _) = webdataset.WebDataset(str(tmp_path / "shards/00000.tar"), shardshuffle=False)
    assert first["txt"] == b"picture 1"  # "deep" sorts before "one"
    assert Image.open(io.BytesIO(first["png"])).tobytes() == Image.open(io.BytesIO(image_bytes(32, 32, seed=1))).tobytes()


def test_when_nothing_can_be_kept_the_stage_says_why(server: FaultServer, tmp_path: Path) -> None:
    source = source_of(tmp_path, server.base, ["/good/1.png", "/good/2.png"])
    with pytest.raises(UnclipError, match=r"not one of the 2 images .* 'private address' \(2 rows\)"):
        download(source, tmp_path / "shards", DownloadConfig(**FAST | {"allow_private": False}))
    part = read_part(tmp_path / "shards", "00000")
    assert part is not None
    assert part.rejected == {"private address": 2}


def fake_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Puts a program of ours where img2dataset would run."""
    (tmp_path / "fake.py").write_text(
        "import json, pathlib, sys, time\ntold = json.loads(pathlib.Path(sys.argv[-1]).read_text())\njob = told['arguments']\n" + program
    )
    real = subprocess.Popen
    monkeypatch.setattr("unclip.data.batch.subprocess.Popen", lambda command, **more: real([sys.executable, str(tmp_path / "fake.py"), *command[1:]], **more))


FETCH: dict[str, Any] = {"arguments": {"encode_format": "jpg", "max_image_area": 10**6, "processes_count": 1}, "limits": {}, "on_progress": lambda tried: None}


@pytest.mark.parametrize(
    ("program", "stall_seconds"),
    [
        ("print('all is well')", 60.0),  # nothing made, exit code 0
        ("time.sleep(600)", 0.3),  # it does nothing, for ever
        ("(pathlib.Path(told['alive']) / '7').touch()\ntime.sleep(600)", 60.0),  # a worker was killed, its parent waits for ever
        ("out = pathlib.Path(job['output_folder'])\n(out / '00000_stats.json').write_text('')\ntime.sleep(600)", 0.3),  # a file of no bytes
        ("out = pathlib.Path(job['output_folder'])\n(out / '00000_stats.json').write_text('{\"count\": 1, \"successes\": 0}')", 60.0),  # no table
    ],
)
def test_a_process_that_did_not_do_its_work_is_not_believed(program: str, stall_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_process(tmp_path, monkeypatch, program)
    with pytest.raises(UnclipError, match="finished none of 1 shards in 4 attempts"):
        batch.fetch([[("an id", "http://a.example/b.png")]], scratch=tmp_path / "scratch", stall_seconds=stall_seconds, **FETCH)


KILLED_BY_ONE = """
import io, tarfile
import pyarrow as pa, pyarrow.parquet as pq
out = pathlib.Path(job["output_folder"])
for number, file in enumerate(sorted(pathlib.Path(job["url_list"]).glob("*.parquet"))):
    rows = pq.read_table(file).to_pylist()
    if any(row["id"] == "id 17" for row in rows):
        continue  # where a worker would have died
    columns = {name: [None] * len(rows) for name in ("sha256", "width", "height")}
    columns |= {"id": [row["id"] for row in rows], "key": [str(i) for i in range(len(rows))]}
    columns |= {"status": ["failed_to_download"] * len(rows), "error_message": ["HTTP Error 404: Not Found"] * len(rows)}
    pq.write_table(pa.table(columns), out / f"{number:05d}.parquet")
    tarfile.open(out / f"{number:05d}.tar", "w").close()
    (out / f"{number:05d}_stats.json").write_text(json.dumps({"count": len(rows), "successes": 0}))
"""


def test_an_image_that_kills_its_reader_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_process(tmp_path, monkeypatch, KILLED_BY_ONE)
    shards = [[(f"id {number}", "http://a.example") for number in range(first, first + 30)] for first in (0, 30)]
    came = batch.fetch(shards, scratch=tmp_path / "scratch", stall_seconds=60, **FETCH)
    assert {name for name, fetched in came.items() if fetched.status == "image broken"} == {"id 17"}
    assert len(came) == 60
    assert sum(fetched.status == "not found" for fetched in came.values()) == 59


@pytest.mark.parametrize(
    "broken",
    [
        {"encode_format": "gif"},
        {"encode_format": "png"},
        {"encode_quality": 0},
        {"image_size": 0},
        {"retries": -1},
        {"stall_seconds": 5.0},
        {"user_agent": "a\nb"},
        {"robots": "heed"},
        {"distributor": "dask"},
        {"longest_wait_seconds": -1.0},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DownloadConfig(**broken)


@pytest.mark.parametrize("name", ["ray", "pyspark"])
def test_a_distributor_that_is_not_installed_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.data.download.find_spec", lambda asked: None)
    with pytest.raises(UnclipError, match=rf"the package {name} is not installed; pip install 'unclip\[{name}\]', on every machine"):
        download(tmp_path / "source", tmp_path / "shards", DownloadConfig(distributor=name, **FAST))  # type: ignore[arg-type]


WORKER = """
import sys, time
from pathlib import Path
from unclip.data.fetch import sign_in
def work():
    sign_in(Path(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.read()
    from multiprocessing import util
    util._exit_function()
work()
"""


def test_a_worker_that_was_killed_is_told_from_one_that_works_and_one_that_has_ended(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    assert fetch.lost_workers(tmp_path) == 0
    workers[0].communicate("")
    assert fetch.lost_workers(tmp_path) == 0
    for number, worker in enumerate(workers[1:], start=1):
        worker.kill()
        worker.communicate()
        assert fetch.lost_workers(tmp_path) == number


def test_importing_the_fetcher_installs_nothing() -> None:
    assert web.urllib.request._opener is None  # type: ignore[attr-defined]
