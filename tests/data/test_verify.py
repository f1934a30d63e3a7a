"""What verify finds, one fault at a time, and that repair makes again just that."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline import copied, folder_of, manifest, unclip
from unclip.config import load_config
from unclip.data.embed import write_part
from unclip.data.verify import Fault, verify
from unclip.files import read_json, sha256_file, write_json
from unclip.operations import repair_data


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return copied(root, tmp_path / "root")


def found(root: Path) -> list[Fault]:
    return verify(folder_of(root, "download"), folder_of(root, "embed"), folder_of(root, "clip"))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """As somebody would who knows of the record: it fits the new file."""
    write_part(path, change(pq.read_table(path)))
    record = read_json(path.with_suffix(".json"))
    record["files"][path.name] = [path.stat().st_size, sha256_file(path)]
    write_json(path.with_suffix(".json"), record)


def of_another_clip(path: Path) -> None:
    rewrite(path, lambda table: table.replace_schema_metadata(table.schema.metadata | {b"clip_digest": b"another"}))


def reordered(path: Path) -> None:
    rewrite(path, lambda table: table.take(list(range(len(table)))[::-1]))


def test_a_whole_root_has_no_fault(root: Path) -> None:
    assert found(root) == []
    done = unclip("verify", root)
    assert done.returncode == 0
    assert "are what they were made as" in done.stdout


@pytest.mark.parametrize(
    ("stage", "file", "break_it", "says"),
    [
        ("embed", "00001.parquet", flip_a_byte, "other bytes than its record says"),
        ("embed", "00001.parquet", cut, "bytes, its record says"),
        ("embed", "00001.parquet", Path.unlink, "00001.parquet is missing"),
        ("embed", "00001.json", Path.unlink, "it has no record"),
        ("embed", "00001.json", lambda path: path.write_text("{"), "its record does not read"),
        ("embed", "00001.parquet", of_another_clip, "it was made by the CLIP another, expected"),
        ("embed", "00001.parquet", reordered, "its rows are not those of its shard"),
        ("download", "00001.tar", flip_a_byte, "00001.tar has its size, but other bytes"),
        ("download", "00001.parquet", cut, "00001.parquet has"),
        ("curate", "00001.parquet", flip_a_byte, "other bytes than its record says"),
        ("curate", "00001.json", Path.unlink, "it has no record"),
    ],
)
def test_each_fault_is_found_and_named(copy: Path, stage: str, file: str, break_it: Callable[[Path], object], says: str) -> None:
    break_it(folder_of(copy, stage) / file)
    (fault,) = found(copy)
    assert (fault.stage, fault.part) == (stage, "00001")
    assert says in fault.what


@pytest.mark.usefixtures("sole_download")
def test_what_select_left_is_looked_at_and_its_decisions_outlive_its_tables(copy: Path) -> None:
    folder, config = folder_of(copy, "select"), load_config(file=copy / "run.json")
    decided = (folder / "rows.parquet").read_bytes()
    cut(folder / "rules.parquet")
    assert [(fault.stage, fault.part) for fault in found(copy)] == [("select", "tables")]
    repair_data(config)
    assert found(copy) == []
    assert (folder / "rows.parquet").read_bytes() == decided
    flip_a_byte(folder / "rows.parquet")
    assert [(fault.stage, fault.part) for fault in found(copy)] == [("select", "rows")]
    repair_data(config)
    assert found(copy) == []


def test_a_part_without_a_shard_is_found(copy: Path) -> None:
    store = folder_of(copy, "embed")
    for kind in ("parquet", "json"):
        shutil.copy(store / f"00001.{kind}", store / f"00009.{kind}")
    assert found(copy) == [Fault("embed", "00009", "it has no shard")]


@pytest.mark.usefixtures("sole_download")
def test_repair_makes_again_what_is_at_fault_and_nothing_else(copy: Path, root: Path) -> None:
    flip_a_byte(folder_of(copy, "embed") / "00000.parquet")
    cut(folder_of(copy, "download") / "00001.tar")
    others = [folder_of(copy, "embed") / "00002.parquet", folder_of(copy, "download") / "00000.tar", folder_of(copy, "download") / "00002.tar"]
    before = [path.stat().st_mtime_ns for path in others]
    refused = unclip("verify", copy)
    assert refused.returncode == 1
    assert [line.split()[1:4:2] for line in refused.stdout.splitlines() if line.startswith("│")] == [["download", "00001"], ["embed", "00000"]]
    done = unclip("repair", copy)
    assert done.returncode == 0, done.stderr
    assert "These parts were made again" in done.stdout
    assert found(copy) == []
    assert [path.stat().st_mtime_ns for path in others] == before
    for stage in ("download", "embed"):
        assert manifest(copy, stage)["digest"] == manifest(root, stage)["digest"], "what stands on it need not be made again"
    assert "nothing was to do" in unclip("repair", copy).stdout
