"""Taking links down: nothing of a picture is left anywhere under the root, and nothing else has changed."""

import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.data.faults import image_bytes
from tests.pipeline import copied, folder_of, manifest, unclip
from unclip import files
from unclip.cli.data import remove
from unclip.data.batch import Fetched, picture_places
from unclip.data.cache import open_pairs
from unclip.data.contracts import REJECTED, SHARD, SOURCE, embedding_schema, read_table
from unclip.data.download import DownloadConfig, download, download_inputs, shard_files, shard_origin, source_shards
from unclip.data.embed import EmbedConfig, part_origin, write_part
from unclip.data.index import open_index
from unclip.data.manifest import Stage, identity, is_current, read_manifest, read_part
from unclip.data.marks import read_marks, write_marks
from unclip.data.pack import write_shard
from unclip.data.source import SourceConfig, build_source
from unclip.data.stats import write_stats
from unclip.data.takedown import Takedown, erase, links_of, marked_rows
from unclip.data.verify import verify
from unclip.files import UnclipError, read_json, write_json

LINKS = [f"https://images.example/{number}.png" for number in range(10)]
REJECTED_ROWS = [(LINKS[5], ""), (f" {LINKS[5]}#top", "caption 5"), ("ftp://a.example/b", "else")]
CONFIG = DownloadConfig(encode_format="png", encode_quality=1)
STORES = ("own", "other")


def caption(number: int) -> str:
    return f"caption {number}"


def make_root(root: Path) -> Path:
    """Three shards of four, four and two pictures, two stores of them, and a training cache, as the stages leave them."""
    rows = [(link, caption(number)) for number, link in enumerate(LINKS)] + REJECTED_ROWS
    pq.write_table(pa.table({"url": [url for url, _ in rows], "caption": [text for _, text in rows]}), root.parent / "links.parquet")
    build_source(root / "source", SourceConfig(path=str(root.parent / "links.parquet"), shard_size=4, heldout_fraction=0.0))
    stage = Stage(root / "shards", "download", CONFIG, {"source": read_manifest(root / "source").digest})  # type: ignore[union-attr]
    parts = [_make_shard(stage, root.parent / "fetched.tar", name, rows) for name, rows in source_shards(root / "source")]
    digest = stage.finish_parts(parts).digest
    for clip in STORES:
        store = Stage(root / "embeddings" / clip, "embed", EmbedConfig(), {"shards": digest, "clip": f"digest of {clip}"})
        made = [_make_part(store, root / "shards", part.name) for part in parts]
        write_stats(store.folder)
        store.finish_parts(made)
        open_pairs(store.folder, split="train", text_tokens=True)  # leaves its cache
    return root


def _make_shard(stage: Stage, scratch: Path, name: str, rows: list[dict[str, Any]]) -> Any:
    numbers = [LINKS.index(row["url"]) for row in rows]
    with tarfile.open(scratch, "w") as tar:
        for number in numbers:
            picture = scratch.parent / "picture.png"
            picture.write_bytes(image_bytes(24, 20, seed=min(number, 8)))  # the last two are the same
            tar.add(picture, f"{number}.png")
    places = picture_places(scratch, ".png")
    fetched = {}
    for number, row in zip(numbers, rows, strict=True):
        sha256 = hashlib.sha256(image_bytes(24, 20, seed=min(number, 8))).hexdigest()
        fetched[row["id"]] = Fetched("not found", "HTTP Error 404") if number == 2 else Fetched("kept", "", sha256, 24, 20, scratch, places[str(number)])
    kept, rejected = write_shard(stage.folder, name, rows, fetched, "png")
    origin = shard_origin(rows, identity(CONFIG))
    return stage.record_part(name, made_from=origin, rows_in=len(rows), kept=kept, rejected=rejected, files=shard_files(name), seconds=1.0)


def _make_part(stage: Stage, shards: Path, name: str) -> Any:
    listed = read_table(shards / f"{name}.parquet", SHARD)
    kept = listed.filter(pc.equal(listed["status"], "kept"))
    random = np.random.default_rng([int(name), len(stage.folder.name)])
    vectors = {column: random.normal(size=(len(kept), 8)).astype(np.float16).tolist() for column in ("image_emb", "text_emb")}
    columns = vectors | {"similarity": [0.5] * len(kept), "token_ids": [[1, 2]] * len(kept), "text_tokens": random.normal(size=(len(kept), 8)).tolist()}
    schema = embedding_schema(8, text_tokens=True).with_metadata({"text_width": "8", "clip_digest": stage.inputs["clip"]})
    given = {column: kept[column].to_pylist() for column in ("key", "caption", "url", "sha256", "width", "height", "split")}
    write_part(stage.folder / f"{name}.parquet", pa.table(given | columns, schema=schema))
    origin = part_origin(read_part(shards, name).digest, stage.inputs["clip"], identity(EmbedConfig()))  # type: ignore[union-attr]
    return stage.record_part(name, made_from=origin, rows_in=len(kept), kept=len(kept), rejected={}, files=[f"{name}.parquet"], seconds=1.0)


def take_down(root: Path, *, keys: list[str] | None = None, urls: list[str] | None = None) -> Takedown:
    """What `unclip remove` does of source, shards and stores."""
    links = links_of(root / "source", keys or [], urls or [])
    marks = read_marks(root).with_links(links)
    write_marks(root, marks)
    stores = [root / "embeddings" / clip for clip in STORES]
    return erase(marked_rows(root / "source", marks), root / "source", root / "shards", stores, marks, links, world=root / "world", curate_again=lambda: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("made") / "root")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "root")
    return tmp_path / "root"


def traces(root: Path, key: str) -> list[bytes]:
    """Everything that the root knows of a row: link, caption, hash, picture and vectors."""
    (row,) = pq.read_table(root / f"shards/{key[:5]}.parquet", filters=[("key", "=", key)]).to_pylist()
    with tarfile.open(root / f"shards/{key[:5]}.tar") as tar:
        member = tar.extractfile(next(name for name in tar.getnames() if name.startswith(key) and name.endswith("png")))
        assert member is not None
        found = [row["url"].encode(), row["caption"].encode(), row["sha256"].encode(), member.read()]
    for part in root.glob(f"embeddings/*/{key[:5]}.parquet"):
        (vectors,) = pq.read_table(part, columns=["image_emb", "text_emb", "text_tokens"], filters=[("key", "=", key)]).to_pylist()
        found += [np.asarray(vector, np.float16).tobytes() for vector in vectors.values()]
    return found


def where(root: Path, traces: list[bytes]) -> list[str]:
    """The files that hold one of them, as bytes or as the text of a table's cell."""
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file() and ".prefect" not in path.parts):
        content, texts = path.read_bytes(), set(cells(path))
        found += [f"{path.relative_to(root)} holds {trace[:40]!r}" for trace in traces if trace in content or trace in texts]
    return found


def cells(path: Path) -> Iterator[bytes]:
    for column in pq.read_table(path).columns if path.suffix == ".parquet" else []:
        yield from ((value or "").encode() for value in column.to_pylist() if pa.types.is_string(column.type))


def digests(root: Path) -> dict[str, str]:
    """Of every file but the manifests, which hold times."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "manifest.json" and "_cache" not in path.parts)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def stage_digests(root: Path) -> list[tuple[str, object]]:
    found = [read_manifest(root / folder) for folder in ("source", "shards", *(f"embeddings/{clip}" for clip in STORES))]
    return [(manifest.digest, manifest.counts) for manifest in found if manifest is not None and manifest.finished]


KEYS = ["0000000001", "0000100001", "0000200000"]  # the rows 1, 5 and 8


def test_nothing_of_it_is_left_anywhere(copy: Path) -> None:
    sought = [trace for key in KEYS for trace in traces(copy, key)]
    assert len(where(copy, sought)) > 40, "the search itself works"
    done = take_down(copy, keys=KEYS[:1], urls=[f" {LINKS[5]}#top", LINKS[8]])
    assert ([row.key for row in done.rows], done.pictures, done.vectors) == (KEYS, 3, 6)
    assert done.twins == ["0000200001"]
    picture_that_stays = traces(copy, "0000200001")
    assert where(copy, [trace for trace in sought if trace not in picture_that_stays]) == []
    rejected = read_table(copy / "source/rejected.parquet", REJECTED).to_pylist()
    assert [(row["url"], row["caption"]) for row in rejected] == [(None, None), (None, None), ("ftp://a.example/b", "else")]


def test_everything_else_is_as_it_was_and_no_stage_has_anything_to_do(copy: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_down(copy, keys=["0000100001"])
    before, after = digests(made), digests(copy)
    changed = {name for name in before if before[name] != after.get(name)}
    assert {name for name in changed if "/0" in name} == {
        *(f"shards/00001{end}" for end in (".tar", ".parquet", ".json", "_stats.json")),
        *(f"embeddings/{clip}/00001.{kind}" for clip in STORES for kind in ("parquet", "json")),
    }
    for clip in STORES:
        was, now = (pq.read_table(root / "embeddings" / clip / "00001.parquet") for root in (made, copy))
        assert now.equals(was.filter(pc.not_equal(was["key"], "0000100001")))
    shard = read_table(copy / "shards/00001.parquet", SHARD).to_pylist()
    assert [row["status"] for row in shard] == ["kept", "removed", "kept", "kept"]
    assert [row for row in shard if row["status"] == "kept"] == [
        row for row in read_table(made / "shards/00001.parquet", SHARD).to_pylist() if row["key"] != "0000100001"
    ]
    monkeypatch.setattr("unclip.data.batch.subprocess.Popen", lambda *_, **__: pytest.fail("img2dataset was started"))
    manifest = download(copy / "source", copy / "shards", CONFIG)
    assert manifest.counts["rejected"] == {"not found": 1, "removed": 1}
    assert manifest.counts["rows_in"] == 10 == manifest.counts["kept"] + 2
    for name, rows in source_shards(copy / "source"):
        part = read_part(copy / "shards", name)
        assert part is not None
        assert part.made_from == shard_origin(rows, identity(CONFIG))
        for clip in STORES:
            held = read_part(copy / "embeddings" / clip, name)
            assert held is not None
            assert held.made_from == part_origin(part.digest, f"digest of {clip}", identity(EmbedConfig()))


def test_what_was_removed_is_never_taken_in_again_and_keys_are_never_given_twice(copy: Path) -> None:
    take_down(copy, keys=["0000200000", "0000200001"])  # the whole last shard
    rows = [(LINKS[0], caption(0)), (LINKS[8], "another caption"), (f"{LINKS[9]} ", "x"), ("https://images.example/new.png", "new")]
    pq.write_table(pa.table({"url": [url for url, _ in rows], "caption": [text for _, text in rows]}), copy.parent / "more.parquet")
    config = SourceConfig(path=str(copy.parent / "more.parquet"), shard_size=4, heldout_fraction=0.0)
    manifest = build_source(copy / "source", config, read_marks(copy))
    assert manifest.counts["rejected"] == {"removed": 2}
    assert [(row["url"], row["shard"]) for row in read_table(copy / "source/table.parquet", SOURCE).to_pylist()][-3:] == [("", 2), ("", 2), (rows[-1][0], 3)]
    rejected = read_table(copy / "source/rejected.parquet", REJECTED).to_pylist()
    assert [(row["row"], row["url"], row["caption"], row["reason"]) for row in rejected] == [(1, None, None, "removed"), (2, None, None, "removed")]
    assert take_down(copy, keys=["0000200000"]).rows == [], "again, it is no error"
    with pytest.raises(UnclipError, match="1 of the 1 keys are not those of a row here, such as '0000900000'"):
        take_down(copy, keys=["0000900000"])
    with pytest.raises(UnclipError, match="expected a link to take down"):
        take_down(copy, urls=["not a link"])


def test_rows_that_were_read_but_not_yet_fetched_are_still_to_be_fetched(copy: Path) -> None:
    rows = [*((link, caption(number)) for number, link in enumerate(LINKS)), ("https://images.example/new.png", "new")]
    pq.write_table(pa.table({"url": [url for url, _ in rows], "caption": [text for _, text in rows]}), copy.parent / "more.parquet")
    build_source(copy / "source", SourceConfig(path=str(copy.parent / "more.parquet"), shard_size=4, heldout_fraction=0.0))
    take_down(copy, keys=["0000100001"])
    assert not is_current(copy / "shards", "download", CONFIG, download_inputs(copy / "source"))


class PulledPlugError(BaseException):
    """The moment in which a process is killed."""


def test_killed_before_any_of_its_renames_the_same_command_does_the_rest(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path / "whole")
    take_down(tmp_path / "whole", keys=KEYS)
    expected, real, renames = digests(tmp_path / "whole"), files.os.replace, 0

    def counted(*names: Any) -> None:
        nonlocal renames
        if renames == 0:
            raise PulledPlugError
        renames -= 1
        real(*names)

    for moment in range(0, 1000, 3):
        root = tmp_path / str(moment)
        shutil.copytree(made, root)
        renames = moment
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", counted)
            try:
                take_down(root, keys=KEYS)
            except PulledPlugError:
                pass
            else:
                break
        take_down(root, keys=KEYS)
        assert digests(root) == expected, f"killed before rename {moment}"
        assert stage_digests(root) == stage_digests(tmp_path / "whole")
        shutil.rmtree(root)
    assert moment > 30


def test_the_command_leaves_a_root_that_is_whole(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    serve = copy / "source/serve.json"
    write_json(serve, read_json(serve) | {"folder": str(copy / "world")})
    keys, links = ["0000000003", "0000200030"], tmp_path / "links.txt"
    (link,) = pq.read_table(copy / "shards/00001.parquet", filters=[("key", "=", "0000100001")])["url"].to_pylist()
    links.write_text(f"{link}\n\n")
    # other scenes of this world may have the same words
    sought = [trace for key in [*keys, "0000100001"] for place, trace in enumerate(traces(copy, key)) if place not in (1, 5, 6)]
    assert where(copy, sought)
    done = unclip("remove", copy, "--keys", *keys, "--urls", str(links))
    assert done.returncode == 0, done.stderr
    assert "3 rows (1 heldout-" in done.stdout
    assert "with 3 pictures and 3 vectors" in done.stdout
    assert "trained while the rows were there" in done.stdout
    assert where(copy, sought) == []
    assert not (copy / "report").exists()
    assert verify(folder_of(copy, "download"), folder_of(copy, "embed"), folder_of(copy, "clip")) == []
    assert open_index(folder_of(copy, "index")).keys.num_rows == manifest(copy, "embed")["counts"]["kept"] == 117  # type: ignore[index]
    plan = unclip("run", copy, "--dry-run").stdout
    would = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in plan.splitlines() if line.startswith("│")}
    assert {would[stage] for stage in ("download", "curate", "clip", "embed", "select", "index")} == {"skipped, it is done"}
    assert would["prior"] == "run"


def test_nothing_to_remove_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnclipError, match="expected what to remove: give --keys or --urls"):
        remove(root=str(tmp_path))


def test_a_link_that_leads_out_of_the_world_removes_nothing_there(tmp_path: Path) -> None:
    """Whoever writes the table of links must not be able to have any file of the machine removed."""
    (tmp_path / "root/world").mkdir(parents=True)
    for file in ("root/world/a.png", "precious.png", "root/precious.png"):
        (tmp_path / file).write_bytes(b"picture")
    pq.write_table(pa.table({"file": ["a.png"], "caption": ["a"]}), tmp_path / "root/world/captions.parquet")
    links = [f"http://127.0.0.1:8000/{path}" for path in ("..%2f..%2fprecious.png", "%2e%2e/precious.png", "a.png")]
    pq.write_table(pa.table({"url": links, "caption": ["x", "y", "z"]}), tmp_path / "links.parquet")
    source = tmp_path / "root/source"
    build_source(source, SourceConfig(path=str(tmp_path / "links.parquet"), allow_private=True, heldout_fraction=0.0))
    write_json(source / "serve.json", {"folder": str((tmp_path / "root/world").absolute()), "port": 8000})
    known = read_table(source / "table.parquet", SOURCE)["url"].to_pylist()
    assert len(known) == 3
    take_down(tmp_path / "root", urls=known)
    assert (tmp_path / "precious.png").exists()
    assert (tmp_path / "root/precious.png").exists()
    assert not (tmp_path / "root/world/a.png").exists()
