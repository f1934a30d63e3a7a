"""The working copy: the same there as here, nothing twice, and whole at whatever moment a machine dies."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from unclip import checkpoint, files
from unclip.data.manifest import Stage, read_manifest, read_part, runtime
from unclip.file_kinds import SEAL
from unclip.files import followed, remove, replacing, write_json
from unclip.mirror import Mirror
from unclip.storage import Storage, StorageError

PARTS, STEPS = 3, 3


class Counting(Storage):
    """A place on this disk that notes what is changed in it, and in the end kills the machine that does."""

    def __init__(self, folder: Path, dies_after: int = 1_000_000) -> None:
        super().__init__(str(folder), LocalFileSystem(auto_mkdir=True))
        self.left, self.changes, self.fetched = dies_after, list[str](), list[str]()

    def _count(self, change: str) -> None:
        if self.left <= 0:
            raise Killed
        self.left -= 1
        self.changes.append(change)

    def put(self, path: Path, name: str) -> None:
        self._count(name)
        super().put(path, name)

    def write(self, name: str, content: bytes) -> None:
        self._count(name)
        super().write(name, content)

    def remove(self, name: str) -> None:
        self._count(f"-{name}")
        super().remove(name)

    def fetch(self, name: str, to: Path) -> None:
        self.fetched.append(name)
        super().fetch(name, to)


class Killed(BaseException):
    """The machine is gone."""


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 1
    speed: int = runtime(1)


@contextmanager
def working(storage: Storage, copy: Path) -> Iterator[Mirror]:
    """Work on a copy, as roots.py does it, without locks."""
    with closing(Mirror(storage, copy, lambda: None)) as mirror:
        mirror.bring_down([""], tidy=True)
        with followed(copy, mirror):
            yield mirror
        mirror.put_up()


def work(copy: Path, content: str) -> list[str]:
    """A stage with parts and one with checkpoints; returns what it had to do."""
    done: list[str] = []
    shards, run = copy / "shards", copy / "prior" / "main"
    write_json(copy / "run.json", {"content": content})
    stage, parts = Stage(shards, "download", Config(), {"source": content}), []
    for number in range(PARTS):
        name = f"{number:05d}"
        if (part := stage.done_part(name, content)) is None:
            for file in (f"{name}.tar", f"{name}.parquet"):
                with replacing(shards / file) as aside:
                    aside.write_text(f"{content} {file}")
            part = stage.record_part(name, made_from=content, rows_in=1, kept=1, rejected={}, files=[f"{name}.tar", f"{name}.parquet"], seconds=0)
            done.append(name)
        parts.append(part)
    with replacing(shards / "table.parquet") as aside:
        aside.write_text(content)
    stage.finish_parts(parts)
    begun = Stage(run, "prior", Config(), {"shards": content})
    if read_manifest(copy / "prior" / "old") is None:
        write_json(copy / "prior" / "old" / "manifest.json", dataclasses.asdict(read_manifest(run)))  # type: ignore[call-overload]
    for step in range(len(checkpoint.steps_of(run)) and checkpoint.steps_of(run)[-1], STEPS):
        weights = {"w": torch.full((2,), float(step + 1))}
        checkpoint.write_checkpoint(
            checkpoint.step_folder(run, step + 1), config={"kind": content}, model=weights, ema=weights, optimizer={}, state={"step": step + 1}
        )
        checkpoint.keep_checkpoints(run, 2)
        done.append(f"step {step + 1}")
    begun.finish(counts={"steps": STEPS, "rows_in": 0, "kept": 0, "rejected": {}}, digest=checkpoint.digest(checkpoint.step_folder(run, STEPS)))
    return done


def tree(folder: Path, *, parse: bool = True) -> dict[str, bytes]:
    """What a root holds, but for the times that manifests and records tell, where they can be read."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            content = path.read_bytes()
            if parse and path.suffix == ".json":
                said = json.loads(content)
                content = json.dumps({key: value for key, value in said.items() if key not in ("seconds", "peak_memory_bytes")}).encode()
            found[name] = content
    return found


def without_old(found: dict[str, bytes]) -> dict[str, bytes]:
    """A run that was killed between its last checkpoint and the clearing of old ones keeps one more, as it does on a disk."""
    return {name: content for name, content in found.items() if "step-00000001" not in name}


def test_another_machine_finds_the_same_and_nothing_moves_twice(tmp_path: Path) -> None:
    place = Counting(tmp_path / "place")
    with working(place, tmp_path / "a"):
        assert len(work(tmp_path / "a", "x")) == PARTS + STEPS
    assert tree(tmp_path / "a") == tree(tmp_path / "place")
    place.changes.clear()
    with working(place, tmp_path / "a"):
        pass
    assert (place.changes, place.fetched) == ([], [])
    with working(place, tmp_path / "b"):
        pass
    assert tree(tmp_path / "b") == tree(tmp_path / "place")
    assert place.changes == []
    assert (tmp_path / "b/shards/table.parquet").stat().st_mtime_ns == (tmp_path / "a/shards/table.parquet").stat().st_mtime_ns
    place.fetched.clear()
    with working(place, tmp_path / "b"):
        assert work(tmp_path / "b", "x") == []
    assert place.fetched == []
    assert not [change for change in place.changes if ".tar" in change or "safetensors" in change]


def test_a_machine_may_die_while_plain_files_go(tmp_path: Path) -> None:
    with working(Counting(tmp_path / "before"), tmp_path / "first"):
        for name in ("gone", "gone too", "stays"):
            write_json(tmp_path / "first/world" / f"{name}.json", {"name": name})
    for moment in range(4):  # the seal goes, two files go, the seal of what is left comes
        base = tmp_path / str(moment)
        shutil.copytree(tmp_path / "before", base / "place")
        dying = Counting(base / "place", dies_after=moment)
        with pytest.raises(Killed), working(dying, base / "a"):
            remove_all(base / "a/world", "gone*")
        with working(Counting(base / "place"), base / "b"):
            assert (base / "b/world/stays.json").is_file()


def remove_all(folder: Path, pattern: str) -> None:
    """Removes what matches."""
    for path in sorted(folder.glob(pattern)):
        path.unlink()


@pytest.mark.parametrize("content", ["x", "y"])  # begun anew; and made again over what was there
def test_a_machine_may_die_at_any_change(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_flush", lambda path: None)  # thousands of files; the disk itself does not die here
    before = Counting(tmp_path / "before")
    if content == "y":
        with working(before, tmp_path / "first"):
            work(tmp_path / "first", "x")
            shutil.rmtree(tmp_path / "first/prior/main")
    whole = Counting(tmp_path / "whole")
    if content == "y":
        shutil.copytree(tmp_path / "before", tmp_path / "whole")
    with working(whole, tmp_path / "all"):
        work(tmp_path / "all", content)
    for moment in range(content == "y", len(whole.changes), 2):
        base = tmp_path / str(moment)
        if content == "y":
            shutil.copytree(tmp_path / "before", base / "place")
        dying = Counting(base / "place", dies_after=moment)
        with pytest.raises(Killed), working(dying, base / "a"):
            work(base / "a", content)
        other = base / ("b" if moment % 4 < 2 else "a")  # another machine; or the same one, which still has what it did not put up
        after = Counting(base / "place")
        with working(after, other):
            done_there = {path.stem for path in (other / "shards").glob("[0-9]*.json")}
            for name in done_there:  # bring_down has held the bytes against the records
                part = read_part(other / "shards", name)
                assert part is not None
                assert all((other / "shards" / file).stat().st_size == size for file, (size, _) in part.files.items())
            for step in checkpoint.steps_of(other / "prior/main"):
                assert checkpoint.read_tensors(checkpoint.step_folder(other / "prior/main", step) / checkpoint.MODEL)["w"][0] == step
            manifest = read_manifest(other / "shards")
            if manifest is not None and manifest.finished and manifest.inputs["source"] == content:
                assert len(done_there) == PARTS
            again = work(other, content)
        recorded = {Path(change).stem for change in dying.changes if change.startswith("shards/0") and change.endswith(".json")}
        assert not recorded & {*again}, "a part whose record was up was made again"
        assert tree(other) == tree(base / "place")
        assert without_old(tree(other)) == without_old(tree(tmp_path / "whole")), f"died after {moment} changes"
        shutil.rmtree(base)
    assert len(whole.changes) > 30


def test_what_goes_here_goes_there_and_what_went_there_goes_here(tmp_path: Path) -> None:
    place = Counting(tmp_path / "place")
    with working(place, tmp_path / "a"):
        work(tmp_path / "a", "x")
    with working(place, tmp_path / "b"):
        remove(tmp_path / "b/shards/00001.json")
        assert not (tmp_path / "place/shards/00001.json").exists()  # at once, so that it does not count any more
        assert (tmp_path / "place/shards/00001.tar").exists()
        remove(tmp_path / "b/shards/00001.tar")
        (tmp_path / "b/shards/table.parquet").unlink()  # by code that tells nobody
        (tmp_path / "b/prior/main").rename(tmp_path / "b/prior/aside")
    assert tree(tmp_path / "b") == tree(tmp_path / "place")
    with working(place, tmp_path / "a"):
        assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("shards/00001.tar", "flip", "shards/00001.tar is not what was put there"),
        ("shards/00001.tar", "cut", "bytes with the SHA-256"),
        ("shards/00001.tar", "lose", "shards/00001.tar is not what was put there: it is missing"),
        ("shards/00001.json", "cut", "does not read as JSON"),
        ("shards/table.parquet", "flip", "expected 1 with"),
        ("prior/main/step-00000003/model.safetensors", "flip", "model.safetensors is not what"),
        ("prior/main/step-00000003/optimizer.pt", "lose", "it is missing"),
    ],
)
def test_what_is_broken_there_is_one_error_that_names_it(name: str, change: str, words: str, tmp_path: Path) -> None:
    place = Counting(tmp_path / "place")
    with working(place, tmp_path / "a"):
        work(tmp_path / "a", "x")
    path = tmp_path / "place" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if change == "flip" else content[: len(content) // 2])
    if change == "lose":
        path.unlink()
    with pytest.raises(StorageError, match=words) as caught, working(place, tmp_path / "b"):
        pass
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b" / name).exists()
    with closing(Mirror(place, tmp_path / "c", lambda: None)) as mirror:
        mirror.bring_down([""], check=False)  # for a repair, as it is
    assert tree(tmp_path / "c", parse=False) == tree(tmp_path / "place", parse=False)


def test_without_its_seal_a_checkpoint_does_not_count_and_is_cleared_away(tmp_path: Path) -> None:
    place = Counting(tmp_path / "place")
    with working(place, tmp_path / "a"):
        work(tmp_path / "a", "x")
    (tmp_path / "place/prior/main/step-00000003" / SEAL).unlink()
    with working(place, tmp_path / "b"):
        assert checkpoint.steps_of(tmp_path / "b/prior/main") == [2]
    assert list((tmp_path / "place/prior/main").glob("step-00000003/*")) == []


def test_names_that_lead_elsewhere_are_left_alone(tmp_path: Path) -> None:
    for name in ("a/.hidden/x", "a/_cache/x.npy", ".prefect/db", "a/.00000.tar.1.tmp"):
        assert_ignored(tmp_path, name)


def assert_ignored(tmp_path: Path, name: str) -> None:
    (tmp_path / "place" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "place" / name).write_text("x")
    (tmp_path / "a" / f"{name}.mine").parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "a" / f"{name}.mine").write_text("x")
    place = Counting(tmp_path / "place")
    with working(place, tmp_path / "a"):
        pass
    assert not (tmp_path / "a" / name).exists()
    assert place.changes == []


def test_a_name_with_dots_never_leaves_the_copy(tmp_path: Path) -> None:
    class Hostile(Counting):
        def find(self, prefix: str = "") -> dict:  # type: ignore[type-arg]
            found = super().find(prefix)
            return found | dict.fromkeys(["../outside", "a/../../outside", "/outside", "a//b", ""], next(iter(found.values())))

    (tmp_path / "place").mkdir()
    (tmp_path / "place/fine").write_text("x")
    with working(Hostile(tmp_path / "place"), tmp_path / "copies/a"):
        pass
    assert sorted(path.name for path in (tmp_path / "copies").rglob("*") if path.is_file() and ".remote" not in path.parts) == ["fine"]
    assert not (tmp_path / "outside").exists()


def test_a_forked_child_follows_nothing(tmp_path: Path) -> None:
    place = Counting(tmp_path / "place")
    with working(place, tmp_path / "a"):
        child = os.fork()
        if child == 0:
            write_json(tmp_path / "a/run.json", {})
            os._exit(bool(place.changes))
        assert os.waitpid(child, 0)[1] == 0
    assert "run.json" in place.changes


def test_what_is_here_already_is_not_brought_again_though_nothing_is_known_of_it(tmp_path: Path) -> None:
    place = Counting(tmp_path / "place")
    with working(place, tmp_path / "a"):
        work(tmp_path / "a", "x")
    shutil.rmtree(tmp_path / "a/.remote")
    place.fetched.clear()
    with working(place, tmp_path / "a"):
        pass
    assert not [name for name in place.fetched if not name.endswith("json")]


def test_a_folder_that_was_never_brought_down_is_removed_there_what_makes_it_count_first(tmp_path: Path) -> None:
    place = Counting(tmp_path / "place")
    with working(place, tmp_path / "a"):
        work(tmp_path / "a", "x")
    place.changes.clear()
    with closing(Mirror(place, tmp_path / "b", lambda: None)) as mirror:
        mirror.bring_down(["shards"])
        with followed(tmp_path / "b", mirror):
            remove(tmp_path / "b/prior/main")
        mirror.put_up()
    assert not list((tmp_path / "place/prior/main").rglob("*.*"))
    assert (tmp_path / "place/prior/old/manifest.json").is_file()
    names = [change.removeprefix("-prior/main/") for change in place.changes]
    assert names.index("step-00000003/.files.json") < names.index("manifest.json") < names.index("step-00000003/model.safetensors")
