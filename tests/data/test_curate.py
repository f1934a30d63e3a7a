"""The first half of the curation: each rule and its reason, duplicates across shards, and growth that is the same as all at once."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.byhand import Shown, png, write_shards
from unclip.data import curate as curating
from unclip.data.caption_rules import CaptionRules
from unclip.data.contracts import CURATED, REASONS, read_table
from unclip.data.curate import ColumnRule, CurateConfig, curate
from unclip.data.extras import EXTRAS, extra_values, extras_row, extras_schema
from unclip.data.manifest import finished_manifest
from unclip.data.rules import RULES
from unclip.data.shards import curated_rows, kept_rows, read_shard, shards_digest
from unclip.data.source import SourceConfig, build_source
from unclip.files import UnclipError


def verdicts(shards: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted((shards / "_curated").glob("0*.parquet")):
        rows += read_table(path, CURATED).to_pylist()
    return rows


def statuses(shards: Path) -> list[str]:
    return [row["status"] for row in verdicts(shards)]


def curated(tmp_path: Path, shards: list[list[Shown]], **config: Any) -> Path:
    folder = write_shards(tmp_path / "shards", shards)
    curate(tmp_path / "source", folder, CurateConfig(**config))
    return folder


SAME = [
    Shown("a cat", png(1)),
    Shown("a dog", png(2)),
    Shown("a  CAT", png(1)),  # the same pair, but for case and spaces
    Shown("a cat", png(2)),  # another picture
    Shown("another cat", png(1, level=0)),  # the same pixels, other bytes
]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ["kept", "kept", "duplicate picture and caption", "kept", "kept"]),
        ({"duplicates": "keep"}, ["kept"] * 5),
        ({"duplicates": "pictures"}, ["kept", "kept", "duplicate picture", "duplicate picture", "kept"]),
        ({"duplicates": "pictures", "compare": "pixels"}, ["kept", "kept", "duplicate picture", "duplicate picture", "duplicate picture"]),
        ({"compare": "pixels"}, ["kept", "kept", "duplicate picture and caption", "kept", "kept"]),
    ],
)
def test_of_the_same_the_first_stays_also_across_shards(tmp_path: Path, config: dict[str, Any], expected: list[str]) -> None:
    folder = curated(tmp_path, [SAME[:2], SAME[2:]], **config)
    assert statuses(folder) == expected
    others = {row["key"]: row["other"] for row in verdicts(folder) if row["status"] != "kept"}
    assert all(other == ("0000000001" if key == "0000100001" else "0000000000") for key, other in others.items())


def test_a_dropped_row_takes_no_other_with_it(tmp_path: Path) -> None:
    folder = curated(tmp_path, [[Shown("x", png(1)), Shown("a long caption", png(1))]], duplicates="pictures", caption=CaptionRules(min_chars=5))
    assert statuses(folder) == ["caption too short", "kept"]


@pytest.mark.parametrize(
    ("row", "config", "status", "value", "limit"),
    [
        (Shown("ok", png(1, 30, 9)), {"min_side": 10}, "image too small", 9, 10),
        (Shown("ok", png(1, 30, 10)), {"min_side": 10}, "kept", None, None),
        (Shown("ok", png(1, 31, 10)), {"max_aspect_ratio": 3.0}, "aspect ratio", 3.1, 3),
        (Shown("ok", png(1, 10, 30)), {"max_aspect_ratio": 3.0}, "kept", None, None),
        (Shown("www.a.example"), {}, "caption is a link", 1, 0),
        (Shown("buy buy buy buy"), {"caption": CaptionRules(max_repetition=0.5)}, "caption repeats itself", 0.75, 0.5),
    ],
)
def test_a_rule_gives_its_reason_what_it_measured_and_allows(
    tmp_path: Path, row: Shown, config: dict[str, Any], status: str, value: float | None, limit: float | None
) -> None:
    folder = curated(tmp_path, [[row, Shown("a row that stays", png(9, 60, 40))]], **config)
    found = verdicts(folder)[0]
    assert (found["status"], found["limit"]) == (status, limit)
    assert found["value"] == pytest.approx(value)


def test_a_caption_keeps_its_first_pictures(tmp_path: Path) -> None:
    rows = [Shown("Image may contain: text", png(seed)) for seed in range(5)]
    folder = curated(tmp_path, [rows[:1], [*rows[1:], Shown("a cat", png(9))]], caption=CaptionRules(max_pictures=2))
    assert statuses(folder) == ["kept", "kept", *["caption on too many pictures"] * 3, "kept"]
    assert [(row["value"], row["limit"]) for row in verdicts(folder)[2:5]] == [(3, 2)] * 3


def test_counts_add_up_and_the_table_says_what_each_rule_took(tmp_path: Path) -> None:
    folder = curated(tmp_path, [SAME[:3], [*SAME[3:], Shown("x.png", png(7)), Shown("hi", png(8))]], caption=CaptionRules(min_chars=3))
    counts = finished_manifest(folder / "_curated", "curate").counts
    assert counts["rejected"] == {"caption is a file name": 1, "caption too short": 1, "duplicate picture and caption": 1}
    assert set(counts["rejected"]) <= set(REASONS)
    assert counts["rows_in"] == 7 == counts["kept"] + sum(counts["rejected"].values())
    table = {row["reason"]: row for row in pq.read_table(folder / "_curated" / RULES).to_pylist()}
    assert next(iter(table)) == "kept"
    assert {reason: row["rows"] for reason, row in table.items()} == {"kept": 4} | counts["rejected"]
    assert sum(row["share"] for row in table.values()) == pytest.approx(1)
    short = table["caption too short"]
    assert (short["least_limit"], short["most_value"], short["examples"]) == (3, 2, ["0000100003"])


def test_readers_of_the_shards_get_what_was_kept(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [SAME])
    tar, before = folder / "00000.tar", finished_manifest(folder, "download").digest
    assert curated_rows(tar) is None
    assert shards_digest(folder) == before
    curate(tmp_path, folder, CurateConfig())
    assert [sample.key for sample in read_shard(tar)] == kept_rows(tar)["key"].to_pylist() == [f"000000000{n}" for n in (0, 1, 3, 4)]
    assert len(list(read_shard(tar, curated=False))) == len(kept_rows(tar, curated=False)) == 5
    assert shards_digest(folder) != before


def test_where_all_is_kept_what_stands_on_the_shards_need_not_be_made_again(tmp_path: Path) -> None:
    folder = curated(tmp_path, [SAME], duplicates="keep")
    assert shards_digest(folder) == finished_manifest(folder, "download").digest


GROWING = [SAME[:2], SAME[2:], [Shown("a dog", png(2)), Shown("new", png(5)), Shown("a cat", png(2))]]
STRICT = CurateConfig(duplicates="pictures", compare="pixels", caption=CaptionRules(max_pictures=1))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "_curated").glob("0*.parquet")}


def test_a_root_that_grew_is_the_same_as_one_made_at_once_and_nothing_is_done_twice(tmp_path: Path) -> None:
    grown = write_shards(tmp_path / "grown", GROWING[:1])
    for number in (1, 2, 3):
        before = {path: path.stat().st_mtime_ns for path in (grown / "_curated").glob("0*")}
        write_shards(grown, GROWING[:number])
        curate(tmp_path, grown, STRICT)
        assert before.items() <= {path: path.stat().st_mtime_ns for path in (grown / "_curated").glob("0*")}.items()
    at_once = write_shards(tmp_path / "once", GROWING)
    curate(tmp_path, at_once, STRICT)
    assert contents(grown) == contents(at_once)
    assert finished_manifest(grown / "_curated", "curate").digest == finished_manifest(at_once / "_curated", "curate").digest


def test_a_shard_that_changed_is_judged_again_and_so_are_those_after_it_but_their_pictures_are_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "shards", GROWING)
    curate(tmp_path, folder, STRICT)
    assert statuses(folder)[2:] == [*["duplicate picture"] * 3, "duplicate picture", "kept", "duplicate picture"]
    write_shards(folder, [GROWING[0][1:], *GROWING[1:]])  # "a cat" of the first shard has gone
    decoded: list[bytes] = []
    real = curating.hash_pixels
    monkeypatch.setattr(curating, "hash_pixels", lambda image: decoded.append(image) or real(image))
    curate(tmp_path, folder, STRICT)
    assert len(decoded) == 1
    at_once = write_shards(tmp_path / "once", [GROWING[0][1:], *GROWING[1:]])
    monkeypatch.setattr(curating, "hash_pixels", real)
    curate(tmp_path, at_once, STRICT)
    assert contents(folder) == contents(at_once)


def test_killed_between_two_shards_it_goes_on_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_shards(tmp_path / "whole", GROWING)
    curate(tmp_path, whole, STRICT)
    killed = write_shards(tmp_path / "killed", GROWING)
    real = curating._curate_shard

    def dies(stage: Any, part: Any, *rest: Any) -> Any:
        if part.name == "00001":
            raise KeyboardInterrupt
        return real(stage, part, *rest)

    monkeypatch.setattr(curating, "_curate_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        curate(tmp_path, killed, STRICT)
    before = (killed / "_curated/00000.parquet").stat().st_mtime_ns
    with pytest.raises(UnclipError, match="came after the last `unclip curate`"):
        list(read_shard(killed / "00001.tar"))
    with pytest.raises(UnclipError, match="stopped before its end"):
        shards_digest(killed)
    monkeypatch.setattr(curating, "_curate_shard", real)
    curate(tmp_path, killed, STRICT)
    assert contents(killed) == contents(whole)
    assert (killed / "_curated/00000.parquet").stat().st_mtime_ns == before


def test_another_config_is_refused_and_one_that_left_nothing_can_be_put_right(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [SAME])
    with pytest.raises(UnclipError, match=r"leave none of 5 rows.*rules\.parquet"):
        curate(tmp_path, folder, CurateConfig(min_side=100))
    curate(tmp_path, folder, CurateConfig(min_side=8))
    with pytest.raises(UnclipError, match="min_side was 8, is now 9"):
        curate(tmp_path, folder, CurateConfig(min_side=9))


def test_shards_that_grew_are_not_read_before_they_are_curated(tmp_path: Path) -> None:
    folder = curated(tmp_path, [SAME])
    write_shards(folder, GROWING[:2])
    with pytest.raises(UnclipError, match="have changed since `unclip curate`"):
        shards_digest(folder)


MARKED = [("0.9", "NSFW"), ("0.1", "UNLIKELY"), (None, "UNSURE"), ("no number", None), ("0.5", "UNLIKELY")]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (ColumnRule(column="watermark", most=0.5), [1, 2, 3, 4]),
        (ColumnRule(column="watermark", most=0.5, drop_missing=True), [1, 4]),
        (ColumnRule(column="watermark", least=0.2), [0, 2, 3, 4]),
        (ColumnRule(column="nsfw tag", allowed=("UNLIKELY", "UNSURE")), [1, 2, 3, 4]),
        (ColumnRule(column="nsfw tag", allowed=("UNLIKELY",), drop_missing=True), [1, 4]),
    ],
)
def test_columns_of_the_source_are_looked_at(tmp_path: Path, rule: ColumnRule, kept: list[int]) -> None:
    folder = write_shards(tmp_path / "shards", [[Shown(f"caption {at}", png(at)) for at in range(5)]])
    names = ["watermark", "nsfw tag"]
    rows = [extras_row(f"id0000000{at:03d}", 0, dict(zip(names, values, strict=True))) for at, values in enumerate(MARKED)]
    (tmp_path / "source").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=extras_schema(names)), tmp_path / "source" / EXTRAS)
    curate(tmp_path / "source", folder, CurateConfig(columns=(rule,)))
    found = verdicts(folder)
    assert [at for at, row in enumerate(found) if row["status"] == "kept"] == kept
    assert {(row["status"], row["other"]) for row in found if row["status"] != "kept"} == {("column out of bounds", rule.column)}


def test_a_rule_for_a_column_that_the_source_does_not_keep_names_the_setting(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [SAME])
    with pytest.raises(UnclipError, match=r"'pwatermark'.*source\.keep_columns"):
        curate(tmp_path, folder, CurateConfig(columns=(ColumnRule(column="pwatermark", most=0.8),)))


@pytest.mark.parametrize("wrong", [{"column": ""}, {"column": "a"}, {"column": "a", "most": 1, "allowed": ("b",)}, {"column": "a", "least": 2, "most": 1}])
def test_column_rules_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="column|rule|least"):
        ColumnRule(**wrong)


def test_the_source_keeps_columns_and_those_of_rows_that_it_knows(tmp_path: Path) -> None:
    table, config = tmp_path / "links.csv", SourceConfig(path=str(tmp_path / "links.csv"), keep_columns=("p", "tag"), shard_size=2)
    table.write_text("url,caption,p,tag\nhttp://a.example/1,one,0.25,\nhttp://a.example/2,two,,x\nbad,three,1,y\n")
    build_source(tmp_path / "source", config)
    ids = pq.read_table(tmp_path / "source/table.parquet")["id"].to_pylist()
    assert extra_values(tmp_path / "source", 0, ids, ["p", "tag"]) == [{"p": "0.25", "tag": None}, {"p": None, "tag": "x"}]
    table.write_text("url,caption,p,tag\nhttp://a.example/2,two,0.5,changed\nhttp://a.example/4,four,4,\n")
    build_source(tmp_path / "source", config)
    grown = pq.read_table(tmp_path / "source/table.parquet").to_pylist()
    assert extra_values(tmp_path / "source", 0, ids, ["tag"]) == [{"tag": None}, {"tag": "x"}]
    assert extra_values(tmp_path / "source", 1, [grown[2]["id"]], ["p", "tag"]) == [{"p": "4", "tag": None}]
    with pytest.raises(UnclipError, match="has no row"):
        extra_values(tmp_path / "source", 1, ids, ["p"])
    with pytest.raises(UnclipError, match="no column 'q'"):
        build_source(tmp_path / "other", SourceConfig(path=str(table), keep_columns=("q",)))
