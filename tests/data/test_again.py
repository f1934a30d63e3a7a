"""Links that failed for a passing reason are tried again in later runs, in new shards, and so often and no more."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.faults import fault_server, image_bytes
from tests.data.test_download import FAST, digests
from tests.evaluation.conftest import TOWER, training
from unclip.config import RunConfig
from unclip.data.again import NONE, rows_to_try_again
from unclip.data.batch import Fetched
from unclip.data.contracts import SHARD, SOURCE, read_table
from unclip.data.curate import ColumnRule, CurateConfig, curate
from unclip.data.download import DownloadConfig
from unclip.data.embed import EmbedConfig
from unclip.data.index import IndexConfig
from unclip.data.manifest import read_manifest
from unclip.data.rounds import Patience, fetched_shards
from unclip.data.source import SourceConfig, build_source
from unclip.files import sha256_file, write_json
from unclip.operations import remove_data
from unclip.stages import is_done, run_stage
from unclip.training.clip import ClipConfig

BASE = "http://a.example"
ONCE: dict[str, Any] = FAST | {"retries": 0, "threads": 2}  # so that a site's second answer is that of a later run


class Web:
    """Stands where img2dataset would run: a link of the path "STATUS/TIMES" fails so many times, another is a picture."""

    def __init__(self, folder: Path) -> None:
        self.seen: Counter[str] = Counter()
        self.picture = folder / "picture"
        self.picture.write_bytes(image_bytes(32, 32))

    def fetch(self, shards: Sequence[Sequence[tuple[str, str]]], **_: Any) -> dict[str, Fetched]:
        return {name: self._answer(path_of(url)) for shard in shards for name, url in shard}

    def _answer(self, path: str) -> Fetched:
        self.seen[path] += 1
        status, _, times = path.partition("/")
        if times.isdigit() and self.seen[path] <= int(times):
            return Fetched(status.replace("-", " "), "")
        return Fetched("kept", "", "0" * 64, 32, 32, self.picture, (0, self.picture.stat().st_size))


def path_of(url: str) -> str:
    return url.split("/", 3)[3]


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Web:
    made = Web(tmp_path)
    monkeypatch.setattr("unclip.data.download.fetch", made.fetch)
    return made


def config_of(root: Path, links: list[str], *, later_tries: int = 3, **source: Any) -> RunConfig:
    columns = {"url": links, "caption": [f"a caption of {path_of(link)}" for link in links], "watermark": [0.1] * len(links)}
    pq.write_table(pa.table(columns), root / "links.parquet")
    given = SourceConfig(path=str(root / "links.parquet"), allow_private=True, heldout_fraction=0.0, **source)
    return RunConfig(root=str(root / "data"), source=given, download=DownloadConfig(**ONCE, image_size=32, later_tries=later_tries))


def night(config: RunConfig) -> list[str]:
    """Both stages once; the stages that worked."""
    return [name for name in ("source", "download") if run_stage(name, config)[1]]


def statuses(config: RunConfig, shard: int) -> dict[str, str]:
    rows = read_table(Path(config.root) / f"shards/{shard:05d}.parquet", SHARD).to_pylist()
    return {path_of(row["url"]): row["status"] for row in rows}


def counts(config: RunConfig, stage: str) -> Any:
    manifest = read_manifest(Path(config.root) / stage)
    assert manifest is not None
    assert manifest.finished
    return manifest.counts


def test_a_passing_failure_is_tried_in_later_runs_and_what_is_done_is_left_alone(made_up: Web, tmp_path: Path) -> None:
    links = ("good", "timed-out/1", "not-found/9", "server-error/9", "connection-failed/1")
    config = config_of(tmp_path, [f"{BASE}/{link}" for link in links], keep_columns=("watermark",))
    assert night(config) == ["source", "download"]
    assert list(statuses(config, 0).values()) == ["kept", "timed out", "not found", "server error", "connection failed"]
    before = digests(Path(config.root) / "shards")
    assert not is_done("source", config)
    assert night(config) == ["source", "download"]
    assert statuses(config, 1) == {"timed-out/1": "kept", "server-error/9": "server error", "connection-failed/1": "kept"}
    for shard in (2, 3):
        assert night(config) == ["source", "download"]
        assert statuses(config, shard) == {"server-error/9": "server error"}
    assert night(config) == []
    assert {name: digest for name, digest in digests(Path(config.root) / "shards").items() if name in before} == before
    assert made_up.seen == {"good": 1, "timed-out/1": 2, "not-found/9": 1, "server-error/9": 1 + 3, "connection-failed/1": 2}
    assert counts(config, "source")["rows"] == counts(config, "shards")["rows_in"] == 5 + 3 + 1 + 1
    assert counts(config, "shards")["kept"] == 3
    last = counts(config, "source")
    assert {name: last[name] for name in ("rows_in", "kept", "new", "again", "gone", "shards")} == {
        "rows_in": 5, "kept": 5, "new": 0, "again": 1, "gone": 0, "shards": 4,
    }  # fmt: skip
    rule = ColumnRule(column="watermark", most=0.5)  # of the columns that a source keeps, a further try has its own
    curate_all = CurateConfig(columns=(rule,), duplicates="off")
    assert curate(Path(config.root) / "source", Path(config.root) / "shards", curate_all).counts["kept"] == 3


def test_new_rows_ride_in_the_same_shards(made_up: Web, tmp_path: Path) -> None:
    night(config_of(tmp_path, [f"{BASE}/good", f"{BASE}/timed-out/1"], shard_size=2))
    config = config_of(tmp_path, [f"{BASE}/{link}" for link in ("new", "good", "timed-out/1", "newer")], shard_size=2)
    night(config)
    assert (statuses(config, 1), statuses(config, 2)) == ({"new": "kept", "timed-out/1": "kept"}, {"newer": "kept"})
    assert night(config) == []


def test_none_are_tried_before_a_run_is_whole_nor_where_the_config_says_so(made_up: Web, tmp_path: Path) -> None:
    config = config_of(tmp_path, [f"{BASE}/good", f"{BASE}/timed-out/1"])
    night(config)
    root = Path(config.root)
    table, shards = root / "source/table.parquet", root / "shards"
    (due,) = rows_to_try_again(table, shards, 1)
    assert rows_to_try_again(table, shards, 0) == NONE
    assert night(config_of(tmp_path, [f"{BASE}/good", f"{BASE}/timed-out/1"], later_tries=0)) == []
    manifest = (shards / "manifest.json").read_text()
    write_json(shards / "manifest.json", {"stage": "download", "config": {}, "inputs": {}})  # as a run that was killed leaves it
    assert rows_to_try_again(table, shards, 1) == NONE
    (shards / "manifest.json").write_text(manifest)
    build_source(root / "source", config.source, again=frozenset({due}))  # it has its place, and the shard is still to come
    assert rows_to_try_again(table, shards, 1) == NONE
    assert read_table(table, SOURCE)["shard"].to_pylist() == [0, 0, 1]


def test_a_row_that_the_source_has_no_longer_is_not_tried_again(made_up: Web, tmp_path: Path) -> None:
    night(config_of(tmp_path, [f"{BASE}/good", f"{BASE}/timed-out/1"]))
    config = config_of(tmp_path, [f"{BASE}/good", f"{BASE}/new"])
    night(config)
    assert statuses(config, 1) == {"new": "kept"}
    assert night(config) == []
    assert made_up.seen["timed-out/1"] == 1


def test_a_takedown_takes_every_try_and_the_link_is_not_tried_again(made_up: Web, tmp_path: Path) -> None:
    links = [f"{BASE}/{link}" for link in ("good", "better", "timed-out/9", "server-error/1")]
    config = config_of(tmp_path, links)
    night(config)
    night(config)
    done, _ = remove_data(config, keys=[], urls=links[2:])
    assert sorted(row.key for row in done.rows) == ["0000000002", "0000000003", "0000100000", "0000100001"]
    night(config)
    assert counts(config, "shards")["rejected"] == {"removed": 4}
    assert counts(config, "source")["shards"] == 2
    assert night(config) == []
    assert made_up.seen["timed-out/9"] == 2


def test_two_tries_of_a_row_in_one_round_are_one_request() -> None:
    """As when all shards are lost and fetched anew."""
    asked: list[tuple[str, str]] = []

    def fetch(number: int, new: Any, again: Any) -> dict[str, Fetched]:
        asked.extend([*new, *again])
        return {name: Fetched("kept", "", tar=Path("x")) for name, _ in [*new, *again]}

    row = {"id": "a", "url": "http://a.example/1"}
    done = list(fetched_shards(iter([("0", [row]), ("1", [row])]), fetch, lambda number: None, Patience(1, 0.0, 1.0)))
    assert [shard.fetched["a"].status for shard in done] == ["kept", "kept"]
    assert asked == [("a", "http://a.example/1")]


@pytest.mark.slow
def test_a_site_that_asks_for_a_long_rest_loses_no_link(tmp_path: Path) -> None:
    with fault_server() as server:
        with fault_server() as other:  # else nothing at all would be kept
            config = config_of(tmp_path, [f"{other.base}/good/1.png", f"{server.base}/later/900", *(f"{server.base}/good/{n}.png" for n in range(2, 30))])
            night(config)
        first = statuses(config, 0)
        unasked = [path for path in first if path != "good/1.png" and not server.seen[f"/{path}"]]
        assert len(unasked) > 10
        assert {first[path] for path in unasked} == {first["later/900"]} == {"too many requests"}
        night(config)
    assert set(statuses(config, 1)) == {*unasked, "later/900"}
    assert set(statuses(config, 1).values()) == {"kept"}
    assert all(server.seen[f"/good/{number}.png"] == 1 for number in range(2, 30))
    assert is_done("source", config)


def test_a_picture_that_came_later_reaches_store_and_index_as_a_new_row(made_up: Web, tmp_path: Path) -> None:
    links = [f"{BASE}/good/x{number}" for number in range(30)] + [f"{BASE}/timed-out/1"]
    config = dataclasses.replace(config_of(tmp_path, links), clip=ClipConfig(tower=TOWER, training=training()), embed=EmbedConfig(num_workers=0))
    config = dataclasses.replace(config, curate=CurateConfig(duplicates="off"), index=IndexConfig(num_queries=4))
    stages = ("source", "download", "curate", "clip", "embed", "select", "index")
    for name in stages:
        assert run_stage(name, config)[1], name
    store = Path(config.root) / "embeddings/own"
    before = sha256_file(store / "00000.parquet")
    worked = [name for name in stages if run_stage(name, config)[1]]
    assert worked == ["source", "download", "curate", "embed", "select", "index"]
    assert sha256_file(store / "00000.parquet") == before
    assert pq.read_table(store / "00001.parquet")["url"].to_pylist() == links[-1:]
    index = read_manifest(Path(config.root) / "index/own")
    assert index is not None
    assert (index.counts["kept"], index.counts["grown_by"]) == (31, 1)
