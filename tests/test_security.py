"""Captions, links, keys and file names come from strangers: whatever they hold, it is text wherever it arrives.

Where else: links and redirects (data/test_web.py), the folder server (data/test_serve.py), nonsense of all kinds
(data/test_fuzz.py), the pages of reports (evaluation/test_report.py and test_prior_report.py).
"""

import csv
import io
import re
import tarfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from tests.data.faults import image_bytes
from unclip.cli.app import _leave
from unclip.cli.search import _shown
from unclip.data.contracts import SOURCE, read_table
from unclip.data.index import KEY_SCHEMA
from unclip.data.shards import read_shard
from unclip.data.source import REJECTED_TABLE, TABLE, SourceConfig, build_source
from unclip.evaluation.ladder_plot import _draw_bars
from unclip.evaluation.pictures import contact_sheet
from unclip.evaluation.summary import ladder_table, targets_table
from unclip.files import UnclipError
from unclip.gallery import Gallery, read_png_text, write_gallery
from unclip.printable import markdown_text, printable, printable_lines, spreadsheet_cell
from unclip.progress import progress
from unclip.search import Hit, as_cells, hit_table, rows_where

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "../../etc/passwd", "$(rm -rf ~)", "`reboot`", "a; DROP TABLE rows; --", "' OR '1'='1",
    "{{7*7}}", "{% include '/etc/passwd' %}", "line\nbreak\r\nunclip: all is well", "nul\0byte",
    "\x1b[2J\x1b]0;title\x07", "\x9b31m", "right \u202eto left\u2066",
    "[red]red[/red]", "[/]", "[link=http://a.example]here[/link]", "=HYPERLINK(\"http://a.example\")", "+1+1", "-1", "@SUM(A1)",
    "$\\frac{1}{", "%s%n{0}", "~root",
    "[click](javascript:alert(1))", "| a | b |", "C:\\con", "x" * 100_000, "e\u0301" * 5000, "\u2028",
]  # fmt: skip
COMMANDS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")  # but for the end of a line


def on_a_terminal(*shown: Any) -> str:
    """What a terminal gets, without the colours that are ours."""
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    for one in shown:
        console.print(one)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_commands_a_terminal(text: str) -> None:
    assert not COMMANDS.search(printable(text))
    assert "\n" not in printable(text)
    assert not COMMANDS.search(printable_lines(text))


def test_other_scripts_and_emoji_stay_as_they_are() -> None:
    for text in ("猫と犬", "café", "👩‍👩‍👧 family", "עברית", "a \\ b"):
        assert printable(text) == printable_lines(text) == text


def hits_of(texts: list[str]) -> pa.Table:
    return hit_table(texts, [[Hit(0.5, f"0000{row:06d}", text, f"http://a.example/{row}", "train")] for row, text in enumerate(texts)])


def test_a_table_of_hits_shows_captions_as_they_are() -> None:
    texts = [text for text in HOSTILE if len(text) < 1000]
    shown = on_a_terminal(*(_shown(hits_of([text]), several=True) for text in texts))
    assert not COMMANDS.search(shown)
    assert "[red]red[/red]" in shown
    assert "\\x1b[2J" in shown


def test_a_spreadsheet_computes_no_caption(tmp_path: Path) -> None:
    pyarrow.csv.write_csv(as_cells(hits_of(HOSTILE)), tmp_path / "hits.csv")
    rows = list(csv.DictReader((tmp_path / "hits.csv").open(newline="", encoding="utf-8"), strict=True))
    assert len(rows) == len(HOSTILE)
    for row, text in zip(rows, HOSTILE, strict=True):
        assert row["caption"].lstrip()[:1] not in ("=", "+", "-", "@")
        assert not COMMANDS.search(row["caption"])
        assert row["caption"].removeprefix("'") == printable(text).removeprefix("'")
    assert spreadsheet_cell("a = b") == "a = b"


def test_a_condition_is_a_comparison_and_nothing_else() -> None:
    columns = {field.name: pa.array([text if pa.types.is_string(field.type) else 1 for text in HOSTILE], field.type) for field in KEY_SCHEMA}
    keys = pa.table(columns, schema=KEY_SCHEMA)
    for row, text in enumerate(HOSTILE):
        if text == text.strip() and "\n" not in text and "\u2028" not in text:
            assert np.flatnonzero(rows_where(keys, [f"caption={text}"])).tolist() == [row]
    for condition in ("caption=x' OR '1'='1", "caption=x; DROP TABLE rows"):
        assert not rows_where(keys, [condition]).any()
    for column in ("caption) OR (1", "1; DROP TABLE x; caption", "__class__"):
        with pytest.raises(UnclipError):
            rows_where(keys, [f"{column}=x"])


def test_generated_files_stay_in_their_folder_and_say_what_was_asked(tmp_path: Path) -> None:
    pictures = np.zeros((len(HOSTILE), 4, 4, 3), np.uint8)
    about = [{"caption": text} for text in HOSTILE]
    files = write_gallery(tmp_path / "out/made", Gallery(pictures, HOSTILE, about, {}, contact_sheet(pictures, HOSTILE)), overwrite=False)
    assert {path.parent for path in files} == {tmp_path / "out/made"}
    assert all(re.fullmatch(r"[a-z0-9-]{1,50}\.png", path.name) for path in files)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert [read_png_text(path)["picture"]["caption"] for path in files] == HOSTILE


def test_a_caption_of_a_million_letters_costs_no_time_on_a_sheet() -> None:
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    started = time.process_time()
    for text in ("x" * 1_000_000, " ".join(["word"] * 200_000)):
        contact_sheet(picture, [text])
    assert time.process_time() - started < 2


def test_a_table_of_strangers_writes_nothing_but_its_own_files(tmp_path: Path) -> None:
    links = [f"http://a.example/{text}" for text in HOSTILE] + HOSTILE
    pq.write_table(pa.table({"url": links, "caption": HOSTILE * 2}), tmp_path / "links.parquet")
    out = tmp_path / "root/source"
    manifest = build_source(out, SourceConfig(path=str(tmp_path / "links.parquet")))
    assert manifest.counts["rows_in"] == 2 * len(HOSTILE)
    assert {path.name for path in tmp_path.iterdir()} == {"links.parquet", "root"}
    assert {path.name for path in out.iterdir()} == {TABLE, REJECTED_TABLE, "manifest.json"}
    kept = read_table(out / TABLE, SOURCE).to_pylist()
    assert all(row["url"].isascii() and row["url"].startswith("http://a.example/") and not COMMANDS.search(row["url"]) for row in kept)
    assert {row["caption"] for row in kept} <= {text.strip() for text in HOSTILE}  # as they are: they are words


@pytest.mark.parametrize("split", ["../../../tmp/evil", "/etc", ".hidden", "a/b", "[/]", "$\\frac{", "<b>", "x" * 65, "a\nb", "nul\0", "=1"])
def test_the_name_of_a_split_is_a_name(split: str, tmp_path: Path) -> None:
    """It names folders, and stands in plots, tables and pages."""
    pq.write_table(pa.table({"url": ["http://a.example/1"], "caption": ["a"], "fold": [split]}), tmp_path / "links.parquet")
    with pytest.raises(UnclipError, match="a split is named by"):
        build_source(tmp_path / "source", SourceConfig(path=str(tmp_path / "links.parquet"), split_column="fold"))


@pytest.mark.parametrize("name", ["../precious.png", "/etc/passwd", "..%2fprecious.png", "sub/../../precious.png", "link.png", "nul\0.png", "a\\..\\b.png"])
def test_a_captions_table_names_no_file_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in ("precious.png", "pictures/a.png"):
        (tmp_path / file).write_bytes(image_bytes(32, 32))
    (folder / "link.png").symlink_to(tmp_path / "precious.png")
    pq.write_table(pa.table({"file": [name, "a.png"], "caption": ["x", "y"]}), folder / "captions.parquet")
    build_source(tmp_path / "source", SourceConfig(path=str(folder), heldout_fraction=0.0))
    assert [row["caption"] for row in read_table(tmp_path / "source" / TABLE, SOURCE).to_pylist()] == ["y"]
    assert [row["reason"] for row in pq.read_table(tmp_path / "source" / REJECTED_TABLE).to_pylist()] == ["image missing"]


def test_members_of_a_foreign_tar_are_read_and_never_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "in/shards"
    folder.mkdir(parents=True)
    members = {"../../escaped.png": image_bytes(32, 32), "../../escaped.txt": b"a caption", "/absolute.png": image_bytes(32, 32), "/absolute.txt": b"another"}
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
    assert [sample.caption for sample in read_shard(folder / "00000.tar")] == ["a caption", "another"]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["in", "in/shards", "in/shards/00000.tar"]


def test_an_error_quotes_strangers_without_their_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for text in HOSTILE:
        with pytest.raises(SystemExit):
            _leave(f"{text} can't be used", 2, debug=False)
    said = capsys.readouterr().err
    assert not COMMANDS.search(said.replace("\t", ""))
    assert "[/] can't be used" in said


def test_progress_of_any_name_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        monkeypatch.setenv("FORCE_COLOR", "1") if terminal else monkeypatch.delenv("FORCE_COLOR", raising=False)
        for text in (text for text in HOSTILE if len(text) < 1000):
            with progress(text, 1, unit="row") as bar:
                bar.advance(1, note=None if terminal else "[/]")
    assert "[/red]" in capsys.readouterr().err


def test_tables_and_plots_take_splits_of_any_name() -> None:
    """Those of a root that was made before the names were looked at."""
    from matplotlib.figure import Figure

    number = {"mean": 1.0, "low": 1.0, "high": 1.0, "number": 1, "closed": None}
    for text in (text for text in HOSTILE if len(text) < 1000):
        rows = [{"name": "linear", "sees": "embedding and caption", "splits": {text: number}, "binding": None}]
        ladder = {"metric": "all_right", "judge": "program", "splits": [text], "main": text, "rows": rows}
        target = {"split": text, "label": "x", "value": 1.0, "low": 1.0, "high": 1.0, "number": 1, "target": 1.0, "reached": True}
        shown = on_a_terminal(ladder_table({"ladder": ladder, "chosen": "linear"}), targets_table({"targets": [target], "chosen": "linear"}))
        assert not COMMANDS.search(shown)
        figure = Figure()
        row = {"recall_at_10": 0.5, "intervals": {"recall_at_10": [0.4, 0.6]}}
        _draw_bars(figure.subplots(), text, {"rows": {"linear": row}, "chosen": "linear", "chance": {"recall_at_10": 0.1}, "captions": 1, "gallery": 1})
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_markdown_on_the_run_page(text: str) -> None:
    from flows.artifacts import _cell, _counts_row

    for shown in (markdown_text(text), _cell(text), _counts_row("source", {"kept": 1, "splits": {text: 1}})["more"]):
        bare = re.sub(r"\\[\\`\[\]<>|]", "", str(shown))
        assert not set("`[]<>|\n\r\0\x1b") & set(bare)


def test_pages_escape_all_that_they_are_given() -> None:
    """The pages themselves are rendered with hostile reports in evaluation/; here, that no template says otherwise."""
    templates = [path for path in resources.files("unclip.evaluation").iterdir() if path.name.endswith(".html")]
    assert len(templates) >= 5
    for path in templates:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", text), path.name
        for found in re.finditer(r"=\s*([^\"\s>]*)\{\{", re.sub(r"\{%.*?%\}", "", text)):
            raise AssertionError(f"{path.name}: an attribute without quotes holds a value: {found[0]}")


def test_a_picture_that_lies_about_itself_is_shown_as_text(tmp_path: Path) -> None:
    files = write_gallery(
        tmp_path / "made", Gallery(np.zeros((1, 4, 4, 3), np.uint8), ["x"], [{"caption": HOSTILE[11]}], {}, Image.new("RGB", (4, 4))), overwrite=False
    )
    console = Console(width=200, file=io.StringIO())
    console.print_json(data=read_png_text(files[0]))
    assert not COMMANDS.search(console.file.getvalue())  # type: ignore[attr-defined]
