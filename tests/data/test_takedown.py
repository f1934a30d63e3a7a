"""`unclip remove`: nothing of a picture is left anywhere under the root, and nothing else has changed."""

import hashlib
import io
import json
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline import command, copied, environment, folder_of, manifest, unclip
from unclip.data.index import open_index
from unclip.data.verify import verify

pytestmark = pytest.mark.xdist_group("pipeline")
KEYS = ["0000000003", "0000100001", "0000200030"]  # of three shards of 40; the last is held out


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A finished root, with a training cache and what else a root gathers, that serves its own world."""
    copy = copied(root, tmp_path / "root")
    serve = copy / "source" / "serve.json"
    serve.write_text(serve.read_text().replace(str(root), str(copy)))
    return copy


def rows(copy: Path, keys: list[str]) -> list[dict[str, Any]]:
    """Everything that the root knows of these rows."""
    found = []
    for key in keys:
        name = key[:5]
        (row,) = pq.read_table(copy / f"shards/{name}.parquet", filters=[("key", "=", key)]).to_pylist()
        with tarfile.open(copy / f"shards/{name}.tar") as tar:
            member = tar.extractfile(f"{key}.png")
            assert member is not None
            picture = member.read()
        (vectors,) = pq.read_table(folder_of(copy, "embed") / f"{name}.parquet", filters=[("key", "=", key)]).select(["image_emb", "text_emb"]).to_pylist()
        given = (copy / "world" / row["url"].split("/", 3)[3]).read_bytes()
        found.append(row | {"picture": picture, "given": given, "vectors": [np.asarray(vector, np.float16).tobytes() for vector in vectors.values()]})
    return found


def left_of(copy: Path, row: dict[str, Any]) -> list[str]:
    """Where bytes, vectors, caption or link of a row are still found: in any file as it lies there, and in the cells of every table."""
    bytes_of = [row["picture"], row["given"], *row["vectors"], row["caption"].encode(), row["url"].encode(), row["sha256"].encode()]
    found = []
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and ".prefect" not in path.parts):
        content = path.read_bytes()
        texts = list(cells(path)) if path.suffix == ".parquet" else []
        found += [f"{path.relative_to(copy)}: {what[:40]!r}" for what in bytes_of if what in content or what in texts]
    return found


def cells(path: Path) -> Iterator[bytes]:
    for column in pq.read_table(path).columns:
        for value in column.to_pylist() if pa.types.is_string(column.type) else []:
            yield (value or "").encode()


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def is_consistent(copy: Path, without: int) -> None:
    """What verify and the manifests say, and the index knows."""
    assert verify(folder_of(copy, "download"), folder_of(copy, "embed"), folder_of(copy, "clip")) == []
    kept = manifest(copy, "embed")["counts"]["kept"]  # type: ignore[index]
    for stage in ("download", "embed", "index"):
        counts = manifest(copy, stage)["counts"]
        assert isinstance(counts, dict)
        assert counts["rows_in"] == counts["kept"] + sum(counts["rejected"].values())
    assert manifest(copy, "download")["counts"]["rejected"] == {"removed": without}  # type: ignore[index]
    assert open_index(folder_of(copy, "index")).keys.num_rows == kept == 96 + 24 - without


def captions_alone(copy: Path, keys: list[str]) -> None:
    """Gives rows captions that no other row has, as strangers' rows have, before anything was made of them."""
    table = pq.read_table(copy / "world/captions.parquet")
    names = [rows(copy, [key])[0]["url"].split("/", 3)[3] for key in keys]
    changed = [
        f"{caption} called {file[-10:-4]}" if file in names else caption
        for file, caption in zip(*(table[n].to_pylist() for n in ("file", "caption")), strict=True)
    ]
    pq.write_table(table.set_column(1, table.schema.field("caption"), [changed]), copy / "world/captions.parquet")
    for stage in ("source", "download", "embed", "index", "decoder", "prior"):
        shutil.rmtree(folder_of(copy, stage))
    for stage in ("source", "download", "curate", "embed", "select", "index"):
        done = unclip(stage, copy)
        assert done.returncode == 0, done.stderr


def test_nothing_is_left_and_nothing_else_has_changed(copy: Path) -> None:
    captions_alone(copy, KEYS)
    assert unclip("prior", copy, "--kind", "linear").returncode == 0  # makes the training cache
    gone = rows(copy, KEYS)
    assert all(left_of(copy, row) for row in gone), "the search itself works"
    shards, parts = digests(copy / "shards", "*.tar"), {path.stem: pq.read_table(path) for path in folder_of(copy, "embed").glob("0*.parquet")}
    before = {path.stem: pq.read_table(path).to_pylist() for path in (copy / "shards").glob("0*.parquet")}
    links = copy.parent / "links.txt"
    links.write_text(f"{gone[1]['url']}\n\n{gone[2]['url']}#top\n")
    done = unclip("remove", copy, "--keys", KEYS[0], "--urls", str(links))
    assert done.returncode == 0, done.stderr
    assert "3 rows (1 heldout-" in done.stdout
    assert "with 3 pictures and 3 vectors" in done.stdout
    assert "prior/main" in done.stdout
    assert "trained while the rows were there" in done.stdout
    assert [line for row in gone for line in left_of(copy, row)] == []
    is_consistent(copy, without=3)
    assert not (copy / "report").exists()
    assert {name for name, digest in digests(copy / "shards", "*.tar").items() if digest == shards[name]} == set()  # each lost one
    for name, table in parts.items():
        expected = table.filter(pa.compute.invert(pa.compute.is_in(table["key"], pa.array(KEYS))))
        assert pq.read_table(folder_of(copy, "embed") / f"{name}.parquet").equals(expected), "the other rows keep their vectors"
        held = pq.read_table(copy / f"shards/{name}.parquet").to_pylist()
        assert [row for row in held if row["status"] == "kept"] == [row for row in before[name] if row["key"] not in KEYS]
    never_again(copy, gone)


def never_again(copy: Path, gone: list[dict[str, Any]]) -> None:
    """Later commands find nothing to do but in the models; a table that gives the link again is told why not."""
    made = digests(copy / "shards", "*.tar") | digests(folder_of(copy, "embed"), "0*.parquet")
    for stage in ("source", "download", "curate", "embed", "select", "index"):
        done = unclip(stage, copy)
        assert done.returncode == 0, done.stderr
    assert made == digests(copy / "shards", "*.tar") | digests(folder_of(copy, "embed"), "0*.parquet")
    base = gone[0]["url"].rsplit("/", 1)[0]
    table = pa.table({"url": [gone[0]["url"], f" {gone[1]['url']} ", f"{base}/new.png"], "caption": ["another caption", "more", "new"]})
    pq.write_table(table, copy.parent / "again.parquet")
    shutil.rmtree(copy / "source")
    done = unclip("source", copy, "--source", str(copy.parent / "again.parquet"), "--source.allow_private", "true", "--source.split_column", "")
    assert done.returncode == 0, done.stderr
    rejected = pq.read_table(copy / "source/rejected.parquet").to_pylist()
    assert [(row["reason"], row["url"], row["caption"]) for row in rejected] == [("removed", None, None)] * 2


def test_a_takedown_that_is_killed_is_done_by_the_same_command_again(copy: Path, tmp_path: Path) -> None:
    whole = copied(copy, tmp_path / "whole")
    for folder in (copy, whole):
        (folder / "source/serve.json").write_text((folder / "source/serve.json").read_text().replace(str(copy), str(folder)))
    assert unclip("remove", whole, "--keys", *KEYS).returncode == 0
    for delay in (0.0, 0.02, 0.05, 0.1):
        child = subprocess.Popen(command("remove", copy, "--keys", *KEYS), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and not (copy / "removed.parquet").exists():
            time.sleep(0.001)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = unclip("remove", copy, "--keys", *KEYS)
    assert done.returncode == 0, done.stderr
    is_consistent(copy, without=3)
    for stage in ("source", "download", "curate", "embed", "select", "index"):
        assert manifest(copy, stage)["digest"] == manifest(whole, stage)["digest"], stage
    assert not list(copy.rglob(".takedown.json"))


def test_what_is_not_there_is_one_line(copy: Path) -> None:
    for arguments, words in (
        (["--keys", "0000900001"], "are not those of a row here"),
        (["--urls", "ftp://a.example/b"], "expected a link"),
        ([], "give --keys or --urls"),
    ):
        done = unclip("remove", copy, *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not (copy / "removed.parquet").exists()
    done = unclip("remove", copy, "--urls", "http://a.example/never-seen.png")
    assert "0 rows were removed" in done.stdout
    assert manifest(copy, "evaluate")["finished"], "a link that was never here takes nothing with it"
    assert json.loads(io.StringIO(json.dumps(manifest(copy, "download")["counts"])).read())["rejected"] == {}
