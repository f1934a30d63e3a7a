"""Captions that pictures are asked for by: checked, and read from a file of lines or the caption column of a table."""

from collections.abc import Sequence
from pathlib import Path

from unclip.data.tables import READERS, read_rows
from unclip.files import UnclipError

MAX_CAPTION = 10_000  # characters: it is kept whole with every picture, though CLIP reads its first few dozen tokens


def check_captions(captions: Sequence[str]) -> list[str]:
    """The captions without space around them.

    Raises:
        UnclipError: there is none, or one is empty, too long or no text.
    """
    if not captions:
        raise UnclipError("expected at least one caption, got none")
    return [_checked(caption, f"caption {number}") for number, caption in enumerate(captions, start=1)]


def read_captions(path: Path, *, column: str = "caption") -> list[str]:
    """The captions of a file: the column of a table (.parquet, .csv, .tsv, .jsonl), or of any other file its lines, without empty ones.

    Raises:
        UnclipError: there is no such file, it has none, or one can't be used; the message says which.
    """
    if path.suffix in READERS:
        captions = [_of_row(row.values[0], f"row {number} of {path}", row.problem) for number, row in enumerate(read_rows(path, [column]), start=1)]
    else:
        captions = [_checked(line, f"line {number} of {path}") for number, line in enumerate(_lines(path), start=1) if line.strip()]
    if not captions:
        raise UnclipError(f"expected captions in {path}, one a line, but there are none")
    return captions


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n")
    except FileNotFoundError:
        raise UnclipError(f"expected a file of captions at {path}, but there is none") from None
    except OSError as error:
        raise UnclipError(f"{path} does not read as a file of captions ({error.strerror})") from None


def _of_row(value: object, where: str, problem: str) -> str:
    if problem:
        raise UnclipError(f"{where} does not read ({problem})")
    if not isinstance(value, str):
        raise UnclipError(f"{where} has no caption, but {value!r}; take it out")
    return _checked(value, where)


def _checked(caption: str, where: str) -> str:
    stripped = caption.strip()
    if not stripped:
        raise UnclipError(f"{where} is empty; expected what the picture shall show")
    if len(stripped) > MAX_CAPTION:
        raise UnclipError(f"{where} has {len(stripped):,} characters; expected at most {MAX_CAPTION:,}")
    try:
        stripped.encode()
    except UnicodeEncodeError:
        raise UnclipError(f"{where} is not valid UTF-8; write it anew in UTF-8, or take it out") from None
    return stripped
