"""Any table or folder in, one table out: nothing lost without a reason, nothing moved once it has its shard."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.faults import image_bytes
from unclip.data.contracts import REASONS, REJECTED, SOURCE, read_table
from unclip.data.folder import served_folder
from unclip.data.links import RefusedError, cleaned_url, is_private_name, is_public
from unclip.data.manifest import Manifest
from unclip.data.serve import serving
from unclip.data.source import GONE_TABLE, SourceConfig, build_source, source_inputs
from unclip.files import UnclipError
from unclip.worlds.write import WorldConfig, write_world


def url(number: int) -> str:
    return f"https://images.example/{number}.jpg"


def write_parquet(path: Path, rows: list[tuple[Any, ...]], names: tuple[str, ...] = ("url", "caption")) -> SourceConfig:
    pq.write_table(pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)}), path)
    return SourceConfig(path=str(path), shard_size=4)


def table(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(out / "table.parquet", SOURCE).to_pylist()
    return rows


def rejected(out: Path) -> dict[int, str]:
    return {row["row"]: row["reason"] for row in read_table(out / "rejected.parquet", REJECTED).to_pylist()}


def counts_add_up(manifest: Manifest) -> bool:
    return bool(manifest.counts["rows_in"] == manifest.counts["kept"] + sum(manifest.counts["rejected"].values()))


def test_every_row_that_cant_be_used_is_rejected_with_its_reason(tmp_path: Path) -> None:
    rows = [
        (url(0), "a cat", ""),
        (None, "a cat", "url missing"),
        ("  ", "a cat", "url missing"),
        (url(1), None, "caption missing"),
        (url(1), " \n", "caption missing"),
        ("ftp://images.example/1.jpg", "a cat", "url not http(s)"),
        ("file:///etc/passwd", "a cat", "url not http(s)"),
        ("images.example/1.jpg", "a cat", "url not http(s)"),
        ("http://127.0.0.1/1.jpg", "a cat", "private address"),
        ("http://localhost:80/1.jpg", "a cat", "private address"),
        ("http://169.254.169.254/latest", "a cat", "private address"),
        ("http://[::1]/1.jpg", "a cat", "private address"),
        ("http:///1.jpg", "a cat", "url malformed"),
        ("http://images.example:port/1.jpg", "a cat", "url malformed"),
        ("http://images.example/a\nb.jpg", "a cat", "url malformed"),
        ("http://user:word@images.example/1.jpg", "a cat", "url malformed"),
        (url(0), "a cat", "duplicate url and caption"),
        (f" {url(0)} ", "a cat ", "duplicate url and caption"),
        (url(0), "another caption", ""),
        ("https://bücher.example/käse bild.jpg?q=ö#top", "cheese", ""),
    ]
    manifest = build_source(tmp_path / "out", write_parquet(tmp_path / "t.parquet", rows))
    assert rejected(tmp_path / "out") == {number: row[2] for number, row in enumerate(rows) if row[2]}
    assert set(manifest.counts["rejected"]) <= set(REASONS)
    assert counts_add_up(manifest)
    assert [row["url"] for row in table(tmp_path / "out")] == [url(0), url(0), "https://xn--bcher-kva.example/k%C3%A4se%20bild.jpg?q=%C3%B6"]


@pytest.mark.parametrize(
    ("name", "content", "kept", "reasons"),
    [
        ("t.csv", 'id,caption,url\n1,"a, ""b""\nc",http://a.example/1\n2,3,http://a.example/2\n3,x\n\n', ['a, "b"\nc', "3"], {"row malformed": 1}),
        ("t.tsv", 'caption\turl\n"quoted\thttp://a.example/1\nplain\thttp://a.example/2\n', ['"quoted', "plain"], {}),
        (
            "t.jsonl",
            (
                '{"url": "http://a.example/1", "caption": "one", "more": {}}\n\nnot json\n[1]\n{"url": "http://a.example/2", "caption": 7}\n'
                '{"url": 5, "caption": "x"}\n{"url": "http://a.example/2"}\n{"url": "http://a.example/2", "caption": "\\ud800"}\n'
            ),
            ["one"],
            {"row malformed": 2, "caption not text": 2, "url malformed": 1, "caption missing": 1},
        ),
    ],
)
def test_text_tables_are_read_row_by_row(name: str, content: str, kept: list[str], reasons: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    manifest = build_source(tmp_path / "out", SourceConfig(path=str(tmp_path / name)))
    assert [row["caption"] for row in table(tmp_path / "out")] == kept
    assert manifest.counts["rejected"] == reasons
    assert counts_add_up(manifest)


def test_one_caption_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    broken = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"url": [url(0), url(1)], "caption": broken}), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_bytes(b"url,caption\nhttp://a.example/1,good\nhttp://a.example/2,\xff\xfe\n")
    for name in ("t.parquet", "t.csv"):
        manifest = build_source(tmp_path / f"out-{name}", SourceConfig(path=str(tmp_path / name)))
        assert manifest.counts["kept"] == 1
        assert manifest.counts["rejected"] == {"caption not text": 1}


def test_rows_keep_their_place_and_new_ones_get_new_shards(tmp_path: Path) -> None:
    first = [(url(number), f"caption {number}") for number in range(6)]
    build_source(tmp_path / "out", write_parquet(tmp_path / "t.parquet", first))
    before = table(tmp_path / "out")
    assert [row["shard"] for row in before] == [0, 0, 0, 0, 1, 1]
    # one row gone, the others in another order, five new ones among them
    later = [(url(number), f"caption {number}") for number in (10, 5, 4, 11, 12, 3, 2, 1, 13, 14)]
    config = write_parquet(tmp_path / "t.parquet", later)
    manifest = build_source(tmp_path / "out", config)
    after = table(tmp_path / "out")
    assert after[:6] == before
    assert [(row["caption"], row["shard"]) for row in after[6:]] == [
        ("caption 10", 2),
        ("caption 11", 2),
        ("caption 12", 2),
        ("caption 13", 2),
        ("caption 14", 3),
    ]
    numbers = {name: manifest.counts[name] for name in ("rows_in", "kept", "rows", "new", "gone", "shards")}
    assert numbers == {"rows_in": 10, "kept": 10, "rows": 11, "new": 5, "gone": 1, "shards": 4}
    changed = (tmp_path / "out/table.parquet").stat().st_mtime_ns
    assert build_source(tmp_path / "out", config) == manifest
    assert (tmp_path / "out/table.parquet").stat().st_mtime_ns == changed


def test_links_that_have_gone_from_the_source_are_named_where_that_is_wanted(tmp_path: Path) -> None:
    table, out = tmp_path / "links.csv", tmp_path / "source"
    config = SourceConfig(path=str(table), follow_removals=True, max_gone=1.0, heldout_fraction=0.0)
    rows = [("https://a.example/1", "one"), ("https://a.example/2", "two"), ("https://a.example/3", "three")]

    def gone(rows: list[tuple[str, str]], config: SourceConfig) -> list[str]:
        table.write_text("url,caption\n" + "".join(f"{url},{caption}\n" for url, caption in rows))
        build_source(out, config)
        return pq.read_table(out / GONE_TABLE)["url"].to_pylist() if (out / GONE_TABLE).exists() else []

    assert gone(rows, config) == []
    assert gone(rows[1:], config) == ["https://a.example/1"]
    assert gone([*rows[1:], ("https://a.example/1", "another caption")], config) == []  # its picture is still wanted
    assert gone(rows[:1], dataclasses.replace(config, follow_removals=False)) == []
    with pytest.raises(UnclipError, match=r"2 links of the 4 rows known before have gone .* more than source.max_gone 0.4"):
        gone(rows[:1], dataclasses.replace(config, max_gone=0.4))


def test_new_rows_change_the_digest_and_a_rewritten_file_with_the_same_rows_does_not(tmp_path: Path) -> None:
    rows = [(url(number), f"caption {number}") for number in range(6)]
    first = build_source(tmp_path / "out", write_parquet(tmp_path / "t.parquet", rows))
    same = build_source(tmp_path / "out", write_parquet(tmp_path / "t.parquet", rows[::-1]))
    more = build_source(tmp_path / "out", write_parquet(tmp_path / "t.parquet", [*rows, (url(9), "x")]))
    assert first.inputs != same.inputs
    assert first.digest == same.digest != more.digest


def test_a_caption_is_held_out_wherever_it_stands(tmp_path: Path) -> None:
    rows = [(url(number), f"caption {number % 300}") for number in range(900)]
    write_parquet(tmp_path / "t.parquet", rows)
    build_source(tmp_path / "out", SourceConfig(path=str(tmp_path / "t.parquet"), heldout_fraction=0.2))
    held = {row["caption"] for row in table(tmp_path / "out") if row["split"] == "heldout"}
    train = {row["caption"] for row in table(tmp_path / "out") if row["split"] == "train"}
    assert not held & train
    assert 40 <= len(held) <= 80


def test_a_split_column_is_taken_as_it_is_and_must_be_full(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", [(url(0), "a", "train"), (url(1), "b", "heldout-pair")], ("url", "caption", "part"))
    config = SourceConfig(path=str(tmp_path / "t.parquet"), split_column="part")
    assert build_source(tmp_path / "out", config).counts["splits"] == {"heldout-pair": 1, "train": 1}
    write_parquet(tmp_path / "t.parquet", [(url(0), "a", "train"), (url(1), "b", None)], ("url", "caption", "part"))
    with pytest.raises(UnclipError, match="expected a split for every row"):
        build_source(tmp_path / "other", config)


def errors(tmp_path: Path) -> dict[str, tuple[SourceConfig, str]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.xlsx").touch()
    (tmp_path / "none.csv").touch()
    (tmp_path / "header.csv").write_text("url,caption\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "blank.jsonl").write_text("\n")
    write_parquet(tmp_path / "other.parquet", [(url(0), "a")], ("link", "text"))
    write_parquet(tmp_path / "bad.parquet", [("x", "a"), ("y", "b"), (None, "c")])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(image_bytes(8, 8))
    return {
        "": (SourceConfig(), "source.path is empty"),
        "missing": (SourceConfig(path=str(tmp_path / "missing.csv")), "no such file"),
        "suffix": (SourceConfig(path=str(tmp_path / "t.xlsx")), "ends in .parquet, .csv, .tsv, .jsonl"),
        "no bytes": (SourceConfig(path=str(tmp_path / "none.csv")), "no column 'url'; its columns are none"),
        "no rows": (SourceConfig(path=str(tmp_path / "header.csv")), "it has no rows"),
        "blank": (SourceConfig(path=str(tmp_path / "blank.jsonl")), "no line that is a JSON object"),
        "broken": (SourceConfig(path=str(tmp_path / "broken.parquet")), "does not read as PARQUET"),
        "columns": (SourceConfig(path=str(tmp_path / "other.parquet")), "no column 'url'; its columns are link, text"),
        "unusable": (SourceConfig(path=str(tmp_path / "bad.parquet")), "none of the 3 rows .* 'url not http\\(s\\)' \\(2 rows\\)"),
        "folder": (SourceConfig(path=str(tmp_path / "empty")), "expected images .* there are none"),
        "no captions": (SourceConfig(path=str(tmp_path / "pictures")), "none of the 1 rows .* 'caption missing'"),
        "url column": (SourceConfig(path=str(tmp_path / "pictures"), url_column="link"), "no effect on a folder"),
        "split column": (SourceConfig(path=str(tmp_path / "pictures"), split_column="split"), "need a captions table"),
    }


def test_an_unreadable_source_is_one_line_and_leaves_the_setting_free_to_be_put_right(tmp_path: Path) -> None:
    for name, (config, message) in errors(tmp_path).items():
        with pytest.raises(UnclipError, match=message) as caught:
            build_source(tmp_path / f"out {name}", config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / f"out {name}" / "manifest.json").exists()


@pytest.mark.parametrize("broken", [{"heldout_fraction": 1.0}, {"shard_size": 0}, {"shard_size": 100_001}, {"url_column": ""}])
def test_a_config_that_makes_no_sense_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        SourceConfig(**broken)


def test_a_world_is_a_folder_whose_links_lead_to_its_pictures(tmp_path: Path) -> None:
    write_world(tmp_path / "world", WorldConfig(num_train=5, num_heldout=2, image_size=32))
    config = SourceConfig(path=str(tmp_path / "world"))
    manifest = build_source(tmp_path / "out", config)
    assert manifest.counts["splits"] == {"heldout-pair": 2, "heldout-scene": 2, "train": 5}
    assert json.loads((tmp_path / "out/serve.json").read_text())["folder"] == "../world"  # a root may be moved
    served, first = served_folder(tmp_path / "out"), table(tmp_path / "out")[0]
    assert served is not None
    with serving(*served), urlopen(first["url"]) as answer:
        assert answer.read() == (tmp_path / "world/images/train-000000.png").read_bytes()


def test_a_folder_keeps_its_links_when_it_grows(tmp_path: Path) -> None:
    (tmp_path / "pictures/sub").mkdir(parents=True)
    for name in ("b.png", "sub/c d.png", "a.JPG"):
        (tmp_path / "pictures" / name).write_bytes(image_bytes(8, 8))
        (tmp_path / "pictures" / name).with_suffix(".txt").write_text(f"about {name}")
    config = SourceConfig(path=str(tmp_path / "pictures"))
    build_source(tmp_path / "out", config)
    before = table(tmp_path / "out")
    assert [row["caption"] for row in before] == ["about a.JPG", "about b.png", "about sub/c d.png"]
    inputs = source_inputs(config)
    (tmp_path / "pictures/aa.png").write_bytes(image_bytes(8, 8))
    assert source_inputs(config) != inputs
    manifest = build_source(tmp_path / "out", config)
    assert table(tmp_path / "out") == before
    assert manifest.counts["rejected"] == {"caption missing": 1}
    (tmp_path / "pictures/aa.txt").write_text("about aa.png")
    build_source(tmp_path / "out", config)
    assert table(tmp_path / "out")[:3] == before
    assert table(tmp_path / "out")[3]["shard"] == 1


def test_a_captions_table_must_name_files_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(image_bytes(8, 8))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(image_bytes(8, 8))
    rows = ["a.png,fine,", "../secret.png,outside,", f"{tmp_path}/secret.png,absolute,", "b.png,absent,", ",nameless,"]
    (tmp_path / "pictures/captions.csv").write_text("file,caption,note\n" + "\n".join(rows) + "\n")
    manifest = build_source(tmp_path / "out", SourceConfig(path=str(tmp_path / "pictures")))
    assert manifest.counts["kept"] == 1
    assert rejected(tmp_path / "out") == {1: "image missing", 2: "image missing", 3: "image missing", 4: "url missing"}


PRIVATE = [
    "127.0.0.1", "127.1", "0x7f000001", "2130706433", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "::1", "fe80::1", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "224.0.0.1",
    "localhost", "LOCALHOST.", "a.localhost", "metadata.google.internal",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_places_are_known_in_every_spelling(host: str) -> None:
    assert is_private_name(host)


@pytest.mark.parametrize("host", ["93.184.215.14", "2606:2800:21f::1", "images.example", "1e100.net", "localhost.example", "::ffff:8.8.8.8"])
def test_public_places_are_left_alone(host: str) -> None:
    assert not is_private_name(host)


def test_an_interface_name_does_not_hide_an_address() -> None:
    assert not is_public("fe80::1%eth0")


@given(st.text(max_size=40))
def test_a_cleaned_url_is_plain_ascii_and_stays_as_it_is(text: str) -> None:
    link = f"http://images.example/{text}"
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in link.strip()):
        with pytest.raises(RefusedError, match="url malformed"):
            cleaned_url(link, allow_private=False)
        return
    cleaned = cleaned_url(link, allow_private=False)
    assert cleaned.isascii()
    assert " " not in cleaned
    assert cleaned_url(cleaned, allow_private=False) == cleaned


def test_a_header_that_holds_lines_is_still_one_line_of_error(tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_bytes(b'"\n')
    with pytest.raises(UnclipError, match="has no column 'url'") as caught:
        build_source(tmp_path / "source", SourceConfig(path=str(tmp_path / "links.csv")))
    assert "\n" not in str(caught.value)


def test_several_tables_are_one_in_the_order_of_their_names_and_a_new_file_is_new_rows(tmp_path: Path) -> None:
    lists, out = tmp_path / "lists", tmp_path / "out"
    lists.mkdir()
    (lists / "b.csv").write_text("url,caption\nhttp://a.example/3.png,three\nhttp://a.example/1.png,one\n")
    (lists / "a.csv").write_text("caption,url\none,http://a.example/1.png\ntwo,http://a.example/2.png\n")
    (lists / "sub.csv").mkdir()
    config = SourceConfig(path=str(lists / "*.csv"), shard_size=2)
    first = build_source(out, config)
    assert [row["caption"] for row in table(out)] == ["one", "two", "three"]
    assert (first.counts["rows_in"], rejected(out)) == (4, {3: "duplicate url and caption"})
    assert build_source(out, config) == first
    (lists / "aa.csv").write_text("url,caption\nhttp://a.example/4.png,four\nhttp://a.example/2.png,two\n")
    grown = build_source(out, config)
    assert [(row["caption"], row["shard"]) for row in table(out)] == [("one", 0), ("two", 0), ("three", 1), ("four", 2)]
    assert (grown.counts["new"], grown.counts["gone"]) == (1, 0)


def test_a_pattern_that_fits_nothing_or_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"zip")
    (tmp_path / "[1].csv").write_text("url,caption\nhttp://a.example/1.png,one\n")
    with pytest.raises(UnclipError, match="no file fits that pattern"):
        source_inputs(SourceConfig(path=str(tmp_path / "*.tsv")))
    with pytest.raises(UnclipError, match="expected a table that ends in .*, got a.zip"):
        source_inputs(SourceConfig(path=str(tmp_path / "*")))
    assert source_inputs(SourceConfig(path=str(tmp_path / "[1].csv")))  # a name that looks like a pattern, and is there


@pytest.mark.parametrize("path", ["s3://key:secret@bucket/a.csv", "file:///data/a.csv"])
def test_a_url_that_a_root_should_not_remember_is_no_config(path: str) -> None:
    with pytest.raises(UnclipError, match="holds credentials|give the path"):
        SourceConfig(path=path)
