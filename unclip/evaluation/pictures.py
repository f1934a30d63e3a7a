"""Sheets of pictures with their captions, drawn with Pillow."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unclip.files import replacing
from unclip.printable import printable

PAPER, INK, FAINT = (250, 250, 248), (30, 30, 30), (110, 110, 110)
FONT_SIZE, LINE = 12, 15  # pixels; LINE from one line of text to the next
GAP = 10  # pixels between pictures
CELL = 128  # pixels that a picture is enlarged to, about
MAX_LINES = 4
COLUMNS = 8
ELLIPSIS = "..."


def contact_sheet(pictures: np.ndarray, labels: Sequence[str], *, columns: int = COLUMNS, scale: int = 0) -> Image.Image:
    """Pictures in rows of `columns`, each with its label under it.

    Args:
        pictures: (n, H, W, 3) uint8.
        labels: n texts; "" for none. Long ones are broken into lines, and cut after four.
        scale: how many pixels a pixel becomes, side by side; 0 enlarges small pictures to about 128 pixels.

    Raises:
        ValueError: no picture, or not a label for each.
    """
    _check(pictures, labels)
    starts = range(0, len(pictures), columns)
    return _stacked([_block({"": pictures[i : i + columns]}, labels[i : i + columns], columns, scale) for i in starts])


def comparison_sheet(rows: Mapping[str, np.ndarray], labels: Sequence[str], *, columns: int = COLUMNS, scale: int = 0) -> Image.Image:
    """Several pictures of the same caption under each other: `rows` maps a name to (n, H, W, 3) uint8, labels are n texts.

    Raises:
        ValueError: no row or picture, or not a label for each picture.
    """
    if not rows:
        raise ValueError("expected at least one row of pictures, got none")
    for pictures in rows.values():
        _check(pictures, labels)
    starts = range(0, len(labels), columns)
    return _stacked([_block({name: made[i : i + columns] for name, made in rows.items()}, labels[i : i + columns], columns, scale) for i in starts])


def save_png(path: Path, picture: Image.Image) -> None:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as aside:
        picture.save(aside, format="PNG")


def _check(pictures: np.ndarray, labels: Sequence[str]) -> None:
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or len(pictures) == 0:
        raise ValueError(f"expected pictures of the shape (n, H, W, 3) with n at least 1, got {pictures.shape}")
    if len(pictures) != len(labels):
        raise ValueError(f"expected a label for each of {len(pictures)} pictures, got {len(labels)}")


def _block(rows: Mapping[str, np.ndarray], labels: Sequence[str], columns: int, scale: int) -> Image.Image:
    """One line of columns: rows of pictures with their names on the left, and the labels below."""
    height, width = next(iter(rows.values())).shape[1:3]
    factor = scale or max(1, round(CELL / max(height, width)))
    font = ImageFont.load_default(FONT_SIZE)
    names = {name: _broken(name, font, CELL) for name in rows}
    left = max((int(font.getlength(line)) + GAP for lines in names.values() for line in lines), default=0) if any(rows) else 0
    texts = [_broken(label, font, width * factor) for label in labels]
    cell_width, cell_height = width * factor + GAP, height * factor + GAP
    lines = max(map(len, texts))
    sheet = Image.new("RGB", (left + columns * cell_width + GAP, len(rows) * cell_height + GAP + lines * LINE), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(rows.items()):
        top = GAP + row * cell_height
        draw.multiline_text((GAP, top), "\n".join(names[name]), fill=FAINT, font=font)
        for column, picture in enumerate(pictures):
            enlarged = Image.fromarray(picture).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + GAP + column * cell_width, top))
    for column, text in enumerate(texts):
        for line, words in enumerate(text):
            draw.text((left + GAP + column * cell_width, GAP + len(rows) * cell_height - GAP // 2 + line * LINE), words, fill=INK, font=font)
    return sheet


def _broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A text in at most four lines no wider than `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if len(lines) > MAX_LINES:
            break
        word = printable(word[:width])  # a letter is a pixel wide at least; a caption may be one word of a million
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1] + ELLIPSIS]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    kept = line.removesuffix(ELLIPSIS)
    while kept and font.getlength(kept + ELLIPSIS) > width:
        kept = kept[:-1]
    return kept + ELLIPSIS


def _stacked(blocks: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet
