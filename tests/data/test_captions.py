"""Captions from files of strangers: lines or a table's column, and what can't be used is named by its place."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unclip.data.captions import MAX_CAPTION, check_captions, read_captions
from unclip.files import UnclipError


def test_lines_are_captions_and_empty_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffein Stern\r\n\n  eine 猫 \n\x0bnot a line break: \u2028 nor this\n".encode())
    assert read_captions(tmp_path / "a.txt") == ["ein Stern", "eine 猫", "not a line break: \u2028 nor this"]


def test_tables_have_a_column_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('caption,n\n"a, b",1\nc,2\n')
    assert read_captions(tmp_path / "a.csv") == ["a, b", "c"]
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    assert read_captions(tmp_path / "a.parquet", column="text") == ["a", "b"]
    with pytest.raises(UnclipError, match="no column 'caption'"):
        read_captions(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "expected captions in .*a.txt"),
        ("a.txt", b"fine\n\xff\xfe\n", "line 2 of .*a.txt is not valid UTF-8"),
        ("a.txt", b"fine\n" + b"x" * (MAX_CAPTION + 1), "line 2 of .*a.txt has 10,001 characters"),
        ("a.csv", b"caption\nfine\n\"\"\n", "row 2 of .*a.csv is empty"),
        ("a.jsonl", b'{"caption": "fine"}\n{"caption": null}\n', "row 2 of .*a.jsonl has no caption"),
        ("a.jsonl", b'{"caption": "fine"}\n{', "row 2 of .*a.jsonl does not read"),
        ("a.jsonl", b'{"caption": "\\ud800"}\n', "row 1 of .*a.jsonl is not valid UTF-8"),
    ],
)  # fmt: skip
def test_what_cant_be_used_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnclipError, match=words):
        read_captions(tmp_path / name)


def test_no_file_and_no_caption(tmp_path: Path) -> None:
    with pytest.raises(UnclipError, match="there is none"):
        read_captions(tmp_path / "a.txt")
    with pytest.raises(UnclipError, match="got none"):
        check_captions([])
    with pytest.raises(UnclipError, match="caption 2 is empty"):
        check_captions(["fine", " "])
    assert check_captions([" a "]) == ["a"]
