"""The pipeline as a user runs it: end to end without a network, killed in every stage, and with everything that can be wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline import BEGUN, STAGES, WATCH_THE_NETWORK, command, copied, environment, folder_of, manifest, unclip


def test_it_ends_with_pictures_and_a_report(whole_run: tuple[Path, "subprocess.CompletedProcess[str]", Path]) -> None:
    root, done, _ = whole_run
    printed = done.stdout.replace("\n", "")
    for name in ("grid.png", "index.html"):
        assert (folder_of(root, "evaluate") / name).is_file()
        assert str(folder_of(root, "evaluate") / name) in printed
    report = json.loads((folder_of(root, "evaluate") / "report.json").read_text())
    assert {"counts", "clip", "prior", "judge", "stages", "environment"} <= report.keys()
    page = (folder_of(root, "evaluate") / "index.html").read_text()
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_nothing_called_out_to_the_network(whole_run: tuple[Path, object, Path]) -> None:
    assert whole_run[2].read_text() == ""


def test_the_watch_itself_works(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH_THE_NETWORK)
    code = "import urllib.request as u\ntry: u.urlopen('http://example.invalid/')\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], env=environment(PYTHONPATH=str(tmp_path), NETWORK_LOG=str(tmp_path / "log")), check=True)
    assert (tmp_path / "log").read_text() == "resolve example.invalid\n"


def test_running_it_again_does_nothing_and_says_so(root: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and ".prefect" not in path.parts and path.suffix != ".lock" and path.name != ".lock"
    }
    done = unclip("run", root)
    assert done.returncode == 0
    assert "All stages are done" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_counts_add_up_over_all_stages(root: Path) -> None:
    for stage in STAGES:
        counts = manifest(root, stage)["counts"]
        assert isinstance(counts, dict)
        assert counts["rows_in"] == counts["kept"] + sum(counts["rejected"].values()), stage


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_any_stage_it_goes_on_to_the_same_result(stage: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if stage == "download":
        request.getfixturevalue("sole_download")
    copy = copied(root, tmp_path / "root")
    folder = folder_of(copy, stage)
    shutil.rmtree(folder)
    if stage == "source":
        shutil.rmtree(copy / "world")
    child = subprocess.Popen(command(stage, copy), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob(BEGUN[stage])) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.json")}
    again = unclip(stage, copy)
    assert again.returncode == 0, again.stderr[-2000:]
    found, expected = manifest(copy, stage), manifest(root, stage)
    assert found["finished"]
    if stage not in ("source", "evaluate"):  # links to this machine carry a free port, and the report holds times
        assert found["digest"] == expected["digest"]
    assert found["counts"] == expected["counts"] or stage == "evaluate"
    assert kept == {name: (folder / name).stat().st_mtime_ns for name in kept}, "a part that was done was made again"
    assert not list(folder.glob(".*.tmp"))


def test_ctrl_c_ends_within_seconds_and_says_how_to_go_on(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "prior"))
    long = [*command("prior", copy), "--prior.training.num_steps", "100000", "--prior.training.checkpoint_seconds", "1000"]
    child = subprocess.Popen(long, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((folder_of(copy, "prior") / "diffusion").glob("tensorboard/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    asked = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert time.monotonic() - asked < 20
    assert child.returncode == 130
    assert "run the same command to go on" in errors
    assert "Traceback" not in errors
    assert list((folder_of(copy, "prior") / "diffusion").glob("step-*"))


def fails(done: "subprocess.CompletedProcess[str]", *said: str) -> None:
    """One clear line, exit code 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.strip().splitlines()[-1]
    for words in said:
        assert words in message


def test_wrong_sources_are_one_line_each(tmp_path: Path) -> None:
    table = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"link": ["http://a.example/1.png"], "caption": ["a"]}), table)
    empty = tmp_path / "empty.csv"
    empty.write_text("url,caption\n")
    fails(unclip("source", tmp_path / "a", "--source", str(tmp_path / "none.parquet")), "none.parquet")
    fails(unclip("source", tmp_path / "b", "--source", str(table)), "url", "link, caption")
    fails(unclip("source", tmp_path / "c", "--source", str(empty)), "empty.csv")
    fails(unclip("run", tmp_path / "d"), "expected a source")


@pytest.mark.slow
def test_a_folder_of_images_goes_the_same_way_as_a_list(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(sorted((root / "world" / "images").iterdir())[:6]):
        shutil.copy(picture, folder)
        (folder / picture.name).with_suffix(".txt").write_text(f"picture number {number}")
    for stage in ("source", "download"):
        done = unclip(stage, tmp_path / "mine", "--preset", "tiny", "--source", str(folder))
        assert done.returncode == 0, done.stderr
        assert "6 of 6 rows kept" in done.stdout
    shard = pq.read_table(tmp_path / "mine" / "shards" / "00000.parquet").to_pylist()
    assert [row["caption"] for row in shard] == [f"picture number {number}" for number in range(6)]


def test_a_caption_that_is_not_a_string_is_a_row_with_a_reason(tmp_path: Path) -> None:
    table = tmp_path / "pairs.jsonl"
    table.write_text('{"url": "http://a.example/1.png", "caption": "fine"}\n{"url": "http://a.example/2.png", "caption": 7}\n')
    done = unclip("source", tmp_path / "root", "--source", str(table))
    assert done.returncode == 0, done.stderr
    rejected = pq.read_table(tmp_path / "root" / "source" / "rejected.parquet").to_pylist()
    assert [(row["row"], row["reason"]) for row in rejected] == [(1, "caption not text")]


def test_a_shard_cut_in_half_is_named(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "embed"))
    tar = folder_of(copy, "download") / "00001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    fails(unclip("embed", copy), "00001.tar", "unclip download")


def test_a_flipped_byte_in_the_store_is_named(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "index"))
    part = folder_of(copy, "embed") / "00000.parquet"
    content = bytearray(part.read_bytes())
    columns = pq.ParquetFile(part).metadata.row_group(0)
    vectors = next(columns.column(i) for i in range(columns.num_columns) if columns.column(i).path_in_schema.startswith("image_emb"))
    content[vectors.data_page_offset + vectors.total_compressed_size // 2] ^= 0xFF
    part.write_bytes(content)
    fails(unclip("index", copy), "00000.parquet", "unclip embed")


@pytest.mark.slow
def test_another_clips_embeddings_are_never_mixed(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    part = (folder_of(copy, "embed") / "00000.parquet").read_bytes()
    shutil.rmtree(folder_of(copy, "clip"))
    assert unclip("clip", copy, "--clip.training.seed", "5").returncode == 0
    fails(unclip("embed", copy, "--clip.training.seed", "5"), "holds embeddings of the CLIP", "never mixes two")
    assert (folder_of(copy, "embed") / "00000.parquet").read_bytes() == part


def test_another_config_is_refused_with_both_values(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    fails(unclip("prior", copy, "--prior.depth", "3"), "network.depth was 1, is now 3")
    fails(unclip("run", copy, "--prior.depth", "3"), "network.depth was 1, is now 3")
    fails(unclip("run", copy, "--prior.dpeth", "3"), "unknown setting prior.dpeth")
    assert unclip("run", copy).returncode == 0


def test_a_stage_before_its_turn_names_the_one_that_is_missing(tmp_path: Path) -> None:
    fails(unclip("embed", tmp_path / "root", "--preset", "tiny"), "unclip download")
    fails(unclip("generate", tmp_path / "root", "a caption"), "`unclip clip`", "there is none")


def test_two_runs_on_one_root_are_refused(root: Path, tmp_path: Path) -> None:
    import fcntl

    copy = copied(root, tmp_path / "root")
    with (copy / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fails(unclip("index", copy), "another run is writing")
    shutil.rmtree(folder_of(copy, "evaluate"))
    with (copy / ".run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fails(unclip("run", copy), "another run is writing")


def test_a_full_disk_is_one_line(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "embed"))
    code = (
        "import errno, os, sys\nimport unclip.files as files\n"
        "def full(path): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "files._flush = full\nfrom unclip.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, "embed", "--root", str(copy)], env=environment(), capture_output=True, text=True, check=False)
    fails(done, "disk is full")


def test_dry_run_shows_config_and_plan_and_does_nothing(tmp_path: Path) -> None:
    done = unclip("run", tmp_path / "root", "--preset", "tiny", "--dry-run", "--prior.depth", "2")
    assert done.returncode == 0, done.stderr
    assert '"depth": 2' in done.stdout
    assert "would be" in done.stdout
    assert not (tmp_path / "root").exists()


def test_a_missing_embedding_is_a_counted_row_and_shifts_nothing(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    part = folder_of(copy, "embed") / "00000.parquet"
    table = pq.read_table(part)
    train = [row for row, split in enumerate(table["split"].to_pylist()) if split == "train"]
    pq.write_table(table.take([row for row in range(len(table)) if row != train[3]]), part)
    shutil.rmtree(folder_of(copy, "decoder"))
    assert unclip("decoder", copy).returncode == 0
    assert manifest(copy, "decoder")["counts"]["rejected"] == {"embedding missing": 1}  # type: ignore[index]


@pytest.mark.slow
def test_a_bounded_training_is_finished_and_goes_on_to_the_same_end(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "decoder"))
    assert unclip("decoder", copy, "--max-steps", "4").returncode == 0
    assert (manifest(copy, "decoder")["finished"], manifest(copy, "decoder")["counts"]["steps"]) == (True, 4)  # type: ignore[index]
    assert unclip("decoder", copy).returncode == 0
    assert (manifest(copy, "decoder")["digest"], manifest(copy, "decoder")["counts"]) == (
        manifest(root, "decoder")["digest"],
        manifest(root, "decoder")["counts"],
    )


def test_one_kind_is_trained_alone_and_remembered_beside_the_others(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "prior"))
    config = json.loads((copy / "run.json").read_text())
    config["prior"]["kinds"] = ["diffusion"]
    (copy / "run.json").write_text(json.dumps(config))
    assert unclip("prior", copy, "--kind", "linear").returncode == 0
    assert manifest(copy, "prior")["counts"]["kinds"] == {"linear": 1}  # type: ignore[index]
    assert json.loads((copy / "run.json").read_text())["prior"]["kinds"] == ["diffusion", "linear"]


def test_search_finds_a_picture_by_itself(root: Path, tmp_path: Path) -> None:
    picture = sorted((root / "world" / "images").iterdir())[0]
    done = unclip("search", root, "--image", str(picture), "-k", "3", "--out", str(tmp_path / "sheet.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").is_file()
    assert picture.name in done.stdout.replace("\n", "")
    by_text = unclip("search", root, "a large red star", "-k", "2", "--out", str(tmp_path / "sheet.png"))
    assert by_text.returncode == 0
    fails(unclip("search", root, "-k", "2"), "a caption, --image PICTURE, --key KEY or --file FILE")


@pytest.mark.parametrize(
    ("name", "words"),
    [("embed", ["norm of image_emb", "bad rows", "similarity", "own"]), ("decoder", ["step", "parameters", "unet"]), ("index", ["recall_at_10"])],
)
def test_inspect_shows_any_result(root: Path, name: str, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unclip", "inspect", str(folder_of(root, name))], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words), done.stdout


def test_priors_are_measured_without_a_decoder(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "decoder"))
    shutil.rmtree(folder_of(copy, "evaluate"))
    done = unclip("evaluate prior", copy)
    assert done.returncode == 0, done.stderr
    assert "nearest training" in done.stdout
    assert {path.name for path in folder_of(copy, "evaluate").iterdir()} == {"prior.html", "prior.json", "prior.png"}


def test_inspect_shows_a_root_and_refuses_a_stranger(root: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "unclip", "inspect", str(root)], env=environment(), capture_output=True, text=True, check=False)
    assert all(stage in done.stdout for stage in STAGES)
    (tmp_path / "stranger").mkdir()
    fails(
        subprocess.run([sys.executable, "-m", "unclip", "inspect", str(tmp_path / "stranger")], env=environment(), capture_output=True, text=True, check=False),
        "holds nothing that unclip made",
    )


def test_no_process_is_left_behind(root: Path) -> None:
    import psutil

    ours = [p for p in psutil.process_iter(["cmdline"]) if str(root) in " ".join(p.info["cmdline"] or []) and p.pid != os.getpid()]
    assert ours == []
