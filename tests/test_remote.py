"""Roots and sources on a local S3: the same results as in a folder, whoever dies on the way, and one line for what is wrong."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

import unclip
from tests.pipeline import BEGUN, STAGES, command, environment, folder_of, manifest
from tests.s3 import file_system, local_s3
from unclip import versions
from unclip.config import RunConfig, load_config
from unclip.data.source import SourceConfig, build_source, source_inputs
from unclip.files import UnclipError, fingerprint, remove, write_json
from unclip.lease import LEASE, Lease, LostLeaseError
from unclip.roots import bring_down, holding, holding_run, local_root
from unclip.stages import STAGES as ALL_STAGES
from unclip.stages import bring_records, is_done, run_stage
from unclip.storage import Storage

LEASE_SECONDS = 3


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with local_s3() as where:
        yield where


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own; this process finds it too."""
    for name, value in (s3 | {"UNCLIP_WORKING_COPIES": str(tmp_path / "copies"), "UNCLIP_LEASE_SECONDS": str(LEASE_SECONDS)}).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{fingerprint(request.node.nodeid)}"
    file_system(s3).mkdir(name)
    return name


def on_machine(name: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine: with working copies of its own."""
    return environment(UNCLIP_WORKING_COPIES=str(tmp_path / name))


def put_up(root: Path, url: str, tmp_path: Path, *, without: str = "") -> None:
    """A finished local root, less a stage, becomes a root behind a URL."""
    copy = local_root(url)
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".prefect", "*.lock", ".lock", "_cache"))
    if without:
        shutil.rmtree(folder_of(copy, without))
    config = copy / "run.json"
    config.write_text(config.read_text().replace(str(root), url))
    with holding(url, ()):
        pass
    shutil.rmtree(copy)


def manifests(url: str, stage: str) -> dict[str, object]:
    """The manifest up there."""
    name = (folder_of(Path(), stage) / "manifest.json").as_posix()
    content: dict[str, object] = json.loads(Storage(url).read(name) or b"")
    return content


def fails(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.strip().splitlines() if line.startswith("unclip: ")]
    assert len(said) == 1, done.stderr
    assert all(word in said[0] for word in words), said


def run(place: str, *more: str, **where: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "unclip", *more, "--root", place], env=environment(**where), capture_output=True, text=True, check=False)


# what is quick


def test_of_many_machines_at_once_exactly_one_gets_the_lease(bucket: str) -> None:
    url, taken, refused = f"s3://{bucket}/mine", [], []
    Storage(url).create(LEASE, json.dumps({"owner": "dead", "host": "h", "process": 1, "expires": 0}).encode())
    start = threading.Barrier(6)

    def take(owner: str) -> None:
        start.wait()
        try:
            taken.append(Lease(Storage(url), owner, 60.0))
        except LostLeaseError:
            refused.append(owner)

    threads = [threading.Thread(target=take, args=(f"owner {number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 5)
    taken[0].give_back(last=True)
    assert Storage(url).find() == {}


def test_a_file_over_s3_is_whole_and_known_by_its_tag(bucket: str, tmp_path: Path) -> None:
    storage = Storage(f"s3://{bucket}/deep/er")
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    storage.put(tmp_path / "a", "b/c.bin")
    first = storage.info("b/c.bin")
    assert first is not None
    assert storage.find("b") == storage.find("b/c.bin") == {"b/c.bin": first}
    storage.fetch("b/c.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"abc" * 1000
    assert not storage.create("b/c.bin", b"x")
    assert storage.exchange("b/c.bin", b"x" * 3000, first)
    assert not storage.exchange("b/c.bin", b"y" * 3000, first)
    assert not storage.exchange("b/none", b"y", first)
    assert storage.read("b/c.bin") == b"x" * 3000
    assert storage.info("b/c.bin") != first
    storage.remove("b/c.bin")
    assert storage.find() == {}


def write_links(storage: Storage, name: str, numbers: range, tmp_path: Path) -> None:
    table = pa.table({"url": [f"http://a.example/{n}.png" for n in numbers], "caption": [f"caption {n}" for n in numbers]})
    pq.write_table(table, tmp_path / "links.parquet")
    storage.put(tmp_path / "links.parquet", name)


def test_a_pattern_behind_a_url_grows_by_files(bucket: str, tmp_path: Path) -> None:
    storage, out = Storage(f"s3://{bucket}"), tmp_path / "out"
    write_links(storage, "links/2.parquet", range(3, 5), tmp_path)
    write_links(storage, "links/1.parquet", range(3), tmp_path)
    storage.write("links/readme.txt", b"no table")
    config = SourceConfig(path=f"s3://{bucket}/links/*.parquet", shard_size=2)
    first = build_source(out, config)
    assert [row["caption"] for row in pq.read_table(out / "table.parquet").to_pylist()] == [f"caption {n}" for n in range(5)]
    assert build_source(out, config) == first
    write_links(storage, "links/0.parquet", range(4, 7), tmp_path)
    grown = build_source(out, config)
    assert (grown.counts["rows"], grown.counts["new"], grown.counts["rejected"]) == (7, 2, {"duplicate url and caption": 1})
    assert [row["shard"] for row in pq.read_table(out / "table.parquet").to_pylist()] == [0, 0, 1, 1, 2, 3, 3]
    assert {path.name for path in out.iterdir()} == {"manifest.json", "rejected.parquet", "table.parquet"}
    alone = build_source(tmp_path / "alone", SourceConfig(path=f"s3://{bucket}/links/1.parquet"))
    assert alone.counts["rows"] == 3


def test_wrong_sources_behind_a_url_are_one_line_each(bucket: str) -> None:
    Storage(f"s3://{bucket}").write("links/a.csv", b"link,caption\nhttp://a.example/1.png,a\n")
    Storage(f"s3://{bucket}").write("links/b.zip", b"zip")
    for path, words in {
        "links/none.csv": "there is no such file; a folder is read by a pattern",
        "links": "a folder is read by a pattern",
        "links/*.tsv": "no file there fits",
        "links/b.zip": "expected a table that ends in",
        "": "expected a table or a pattern",
    }.items():
        with pytest.raises(UnclipError, match=words) as caught:
            source_inputs(SourceConfig(path=f"s3://{bucket}/{path}"))
        assert "\n" not in str(caught.value)
    with pytest.raises(UnclipError, match="holds credentials"):
        source_inputs(SourceConfig(path="s3://key:secret@bucket/a.csv"))


def test_a_column_that_is_missing_is_named_with_the_url(bucket: str, tmp_path: Path) -> None:
    Storage(f"s3://{bucket}").write("links/a.csv", b"link,caption\nhttp://a.example/1.png,a\n")
    with pytest.raises(UnclipError, match=f"s3://{bucket}/links/a.csv has no column 'url'"):
        build_source(tmp_path / "out", SourceConfig(path=f"s3://{bucket}/links/*.csv"))


def test_a_bucket_that_is_missing_and_credentials_that_are_wrong_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(url: str) -> str:
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UnclipError) as caught, holding(url, ("source",)):
            pass
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "Is the bucket there" in said("s3://no-such-bucket/mine")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "Check the credentials (AWS_ACCESS_KEY_ID" in said(f"s3://{bucket}/mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "the same command goes on" in said(f"s3://{bucket}/mine")


def test_a_second_machine_is_refused_while_the_first_one_works(bucket: str) -> None:
    url = f"s3://{bucket}/mine"
    first = Lease(Storage(url), "first", 60.0)
    with pytest.raises(UnclipError, match=f"{url} is written to by another machine"), holding(url, ()):
        pass
    first.give_back(last=True)
    with holding_run(url):
        write_json(local_root(url) / "run.json", {})
        assert Storage(url).info("run.json") is not None  # at once
        with holding(url, ()):  # a stage
            pass
        assert Storage(url).info(LEASE) is not None
        remove(local_root(url) / "run.json")
        assert Storage(url).info("run.json") is None
    assert Storage(url).info(LEASE) is None


def test_models_are_chosen_by_hand_from_a_machine_that_holds_nothing_of_the_root(bucket: str) -> None:
    url, state = f"s3://{bucket}/mine", {"state": "used", "done": ["prior", "decoder"]}
    ledger = {"versions": [{"name": "main"} | state, {"name": "main-2", "parent": "main"} | state], "used": ["main", "main-2"]}
    Storage(url).write("versions.json", json.dumps(ledger).encode())
    Storage(url).write("decoder/main/manifest.json", b"{}")
    assert versions.roll_back(url) == ("main-2", "main")
    assert json.loads(Storage(url).read("versions.json") or b"")["used"] == ["main"]
    assert set(Storage(url).find()) == {"versions.json", ".files.json", "decoder/main/manifest.json"}
    with pytest.raises(UnclipError, match="in use already"):
        versions.put_to_use(url, "main")


# what takes whole stages


@pytest.mark.usefixtures("sole_download")
@pytest.mark.slow
@pytest.mark.timeout(900)  # all stages, after those of the root that it is compared with
def test_the_whole_pipeline_on_a_url_comes_to_the_same_as_in_a_folder(bucket: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{bucket}/mine"
    same_links(root, url)
    config = load_config(preset="tiny", settings={"root": url})
    for number, name in enumerate(ALL_STAGES):
        monkeypatch.setenv("UNCLIP_WORKING_COPIES", str(tmp_path / f"machine {number % 2}"))  # two machines in turn
        assert run_stage(name, config)[1]
    for name in STAGES:
        found = manifests(url, name)
        assert found["finished"]
        if name != "evaluate":  # the report holds times
            assert (name, found["digest"], found["counts"]) == (name, manifest(root, name)["digest"], manifest(root, name)["counts"])
    monkeypatch.setenv("UNCLIP_WORKING_COPIES", str(tmp_path / "third"))
    bring_records(config)
    assert [name for name in ALL_STAGES if not is_done(name, config)] == []
    used(url, config, tmp_path, monkeypatch)


def same_links(root: Path, url: str) -> None:
    """Has a world behind a URL served on the port that a local root's is, so that links and their hashes are the same."""
    Storage(url).write("source/serve.json", (root / "source/serve.json").read_bytes())


def used(url: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished root behind the URL, by readers on empty machines."""
    storage = Storage(url)
    with holding(url, ()):
        (local_root(url) / "run.json").write_text(json.dumps(dataclasses.asdict(config)))
    monkeypatch.setenv("UNCLIP_WORKING_COPIES", str(tmp_path / "reader"))
    before = storage.find()
    made = unclip.open(url).generate("a large red star", num=1, seed=1)
    assert len(made.images) == 1
    for words in (("search", "a red star", "--out", str(tmp_path / "hits.csv")), ("verify",)):
        done = run(url, *words)
        assert done.returncode == 0, done.stderr
    shown = subprocess.run([sys.executable, "-m", "unclip", "inspect", f"{url}/embeddings/own"], env=environment(), capture_output=True, text=True, check=False)
    assert "norm of image_emb" in shown.stdout, shown.stderr
    assert storage.find() == before


# stages that put something up before their end, of which a kill waits for the first
UP = {"download": "shards/00000.json", "embed": "embeddings/own/00000.json", "prior": "prior/main/diffusion/step-"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_another_machine_goes_on_where_one_died(stage: str, bucket: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if stage == "download":
        request.getfixturevalue("sole_download")
    url = f"s3://{bucket}/mine"
    put_up(root, url, tmp_path, without=stage)
    folder = folder_of(Path(), stage).as_posix()
    assert not Storage(url).find(folder)
    if stage == "source":
        same_links(root, url)
    here = tmp_path / "first" / local_root(url).name / folder

    def has_begun() -> bool:
        return any(name.startswith(UP[stage]) for name in Storage(url).find(folder)) if stage in UP else any(here.glob(BEGUN[stage]))

    work = [*command(stage, Path())[:-1], url]
    first = subprocess.Popen(work, env=on_machine("first", tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while first.poll() is None and time.monotonic() < deadline and not has_begun():
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "the first machine ended before it was killed"
    parts = {name: found.tag for name, found in Storage(url).find(folder).items() if name.rpartition("/")[2][:5].isdigit() and name.endswith(".json")}
    time.sleep(LEASE_SECONDS + 2.5)
    again = subprocess.run(work, env=on_machine("second", tmp_path), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    found, expected = manifests(url, stage), manifest(root, stage)
    assert found["finished"]
    if stage != "evaluate":  # the report holds times
        assert (found["digest"], found["counts"]) == (expected["digest"], expected["counts"])
    now = Storage(url).find(folder)
    assert parts == {name: now[name].tag for name in parts}, "a part that was up was made again"
    assert Storage(url).info(LEASE) is None


@pytest.mark.usefixtures("sole_download")
@pytest.mark.slow
def test_what_is_broken_there_is_named_and_repaired(bucket: str, root: Path, tmp_path: Path) -> None:
    url = f"s3://{bucket}/mine"
    put_up(root, url, tmp_path)
    storage = Storage(url)
    whole = storage.read("embeddings/own/00001.parquet") or b""
    storage.write("embeddings/own/00001.parquet", whole[: len(whole) // 2])
    fails(run(url, "evaluate"), "embeddings/own/00001.parquet is not what was put there", "unclip repair")
    done = run(url, "repair")
    assert done.returncode == 0, done.stderr
    assert "00001" in done.stdout
    assert storage.read("embeddings/own/00001.parquet") == whole
    bring_down(url)
