"""Places named by URL: what may stand in one, and that every failure is one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.pipeline import environment
from unclip.files import UnclipError
from unclip.roots import local_root
from unclip.storage import Storage, check_root, check_url, is_url


@pytest.mark.parametrize("text", ["s3://bucket/mine", "gs://b", "simplecache::s3://b/c", "file:///data"])
def test_a_scheme_makes_a_url(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["", "data/mine", "/data/mine", "C:data", "lists/*.csv", "a:b/c", "./s3://x"])
def test_everything_else_is_a_path(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/mine", "holds credentials"),
        ("s3://key@bucket", "holds credentials"),
        ("memory://mine", "processes of their own"),
        ("file:///data/mine", "give the path, /data/mine"),
        ("simplecache::s3://bucket/mine", "expected one place"),
        ("s3://", "expected a bucket"),
        ("https://a.example/mine", "can only be read"),
    ],
)
def test_a_url_that_can_be_no_root_is_refused_in_one_line(url: str, words: str) -> None:
    with pytest.raises(UnclipError, match=words) as caught:
        local_root(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value).replace("can't", "")
    assert "key" not in str(caught.value)


def test_a_slash_at_the_end_names_the_same_place() -> None:
    assert check_url("s3://bucket/mine//") == check_root("s3://bucket/mine") == "s3://bucket/mine"
    assert local_root("s3://bucket/mine/") == local_root("s3://bucket/mine")


def test_working_copies_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNCLIP_WORKING_COPIES", str(tmp_path))
    copies = {local_root(url) for url in ("s3://b/mine", "s3://b/min/e", "s3://b-mine", "gs://b/mine", "s3://b/../mine", "s3://b/" + "x" * 500)}
    assert len(copies) == 6
    assert {copy.parent for copy in copies} == {tmp_path}


def test_a_missing_package_names_the_extra() -> None:
    code = "import sys; sys.modules['s3fs'] = None; from unclip.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "inspect", "s3://bucket/mine"], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install 'unclip[s3]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unknown_kind_of_storage_is_refused() -> None:
    with pytest.raises(UnclipError, match="no storage of the kind nonsense://"):
        Storage("nonsense://bucket")


def test_files_are_found_by_their_names_below_the_place(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), LocalFileSystem(auto_mkdir=True))
    (tmp_path / "a").write_bytes(b"abc")
    storage.put(tmp_path / "a", "deep/er/b.csv")
    storage.write("deep/c.csv", b"x")
    assert {name: found.size for name, found in storage.find("deep").items()} == {"deep/er/b.csv": 3, "deep/c.csv": 1}
    assert set(storage.here()) == {"a"}
    assert set(storage.glob("deep/*.csv")) == {"deep/c.csv"}
    assert storage.find("nowhere") == {}
    assert storage.info("nowhere") is storage.read("nowhere") is None
    storage.remove("deep/c.csv")
    storage.remove("deep/c.csv")
    assert set(storage.find()) == {"a", "deep/er/b.csv"}
