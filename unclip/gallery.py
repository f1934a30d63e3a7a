"""A folder of pictures that were made: single files that say how they came about, a contact sheet, and a record.

The folder is written whole or not at all, and takes the place of nothing that another program made.
"""

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unclip.files import UnclipError, read_json, replacing, write_json

RECORD, SHEET, CANDIDATES = "record.json", "sheet.png", "candidates.parquet"
TEXT_KEY = "unclip"  # of the PNG text that holds a picture's settings as JSON
MADE_BY = "unclip"
NAME_LENGTH = 40  # characters of a caption in a file's name
FRAME_SIDE = 256  # pixels that the frames of an animation are enlarged to, about
FRAME_MILLISECONDS, END_MILLISECONDS = 120, 800


@dataclass(frozen=True)
class Gallery:
    """What a folder shall hold.

    Attributes:
        pictures: (n, H, W, 3) uint8.
        names: n texts that the files are named after; anything may stand in them.
        about: how each picture came about, as JSON content; it goes into the file itself too.
        settings: what holds for all of them.
        sheet: the contact sheet.
        tables: further tables, by file name; frames: of an animation, by file name (.gif, .png or .webp).
        more: further pictures as they are, by file name.
    """

    pictures: np.ndarray
    names: Sequence[str]
    about: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    sheet: Image.Image
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    frames: Mapping[str, np.ndarray] = field(default_factory=dict)
    more: Mapping[str, np.ndarray] = field(default_factory=dict)


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuses a folder to write to before any work is done.

    Raises:
        UnclipError: it has the name of a file, or can't be made; or it is there, and `overwrite` is not set or it holds something else.
    """
    if out.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif", ".webp", ".json"):
        raise UnclipError(f"--out names a folder of pictures, got {out}; leave out its {out.suffix}")
    if not out.exists() and not out.is_symlink():
        above = next(folder for folder in out.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UnclipError(f"{out} can't be made: {above} is {'a folder that this user may not write to' if above.is_dir() else 'a file'}")
        return
    if not out.is_dir() or out.is_symlink():
        raise UnclipError(f"{out} is there and is no folder; give another --out")
    there = {path.name for path in out.iterdir()}
    ours = _files_of(out) if RECORD in there else set()
    if strange := sorted(there - ours):
        raise UnclipError(f"{out} holds {strange[0]!r}, which was not made with such a folder; give another --out, nothing there is touched")
    if there and not overwrite:
        raise UnclipError(f"{out} holds pictures already; give another --out, or --overwrite to replace the whole folder")


def _files_of(out: Path) -> set[str]:
    """The files that a folder of ours was written with; none if it is not ours."""
    content = read_json(out / RECORD)
    return {RECORD, *content["files"]} if isinstance(content, dict) and content.get("made_by") == MADE_BY else set()


def write_gallery(out: Path, gallery: Gallery, *, overwrite: bool) -> list[Path]:
    """Writes the folder, and returns the files of the single pictures.

    Raises:
        UnclipError: see `check_place`; or the folder can't be written.
    """
    check_place(out, overwrite=overwrite)
    try:
        return _written(out, gallery)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # which every command says in its own words
        raise UnclipError(f"{out} can't be written ({error.strerror or error})") from None


def _written(out: Path, gallery: Gallery) -> list[Path]:
    files = file_names(gallery.names)
    common = {"made_by": MADE_BY, "version": version("unclip"), "settings": dict(gallery.settings)}
    with replacing(out) as aside:
        aside.mkdir(parents=True)
        for file, picture, about in zip(files, gallery.pictures, gallery.about, strict=True):
            Image.fromarray(picture).save(aside / file, format="PNG", pnginfo=png_text(common | {"picture": dict(about)}))
        gallery.sheet.save(aside / SHEET, format="PNG", pnginfo=png_text(common))
        for name, picture in gallery.more.items():
            Image.fromarray(picture).save(aside / name, format="PNG")
        for name, table in gallery.tables.items():
            pq.write_table(table, aside / name)
        for name, frames in gallery.frames.items():
            save_animation(aside / name, frames)
        pictures = [{"file": file, **about} for file, about in zip(files, gallery.about, strict=True)]
        write_json(aside / RECORD, common | {"pictures": pictures, "files": sorted(path.name for path in aside.iterdir())})
    return [out / file for file in files]


def file_names(texts: Sequence[str]) -> list[str]:
    """A name for each picture: its number, and what is left of its text in plain letters and digits."""
    digits = max(4, len(str(len(texts) - 1)))
    return [f"{number:0{digits}d}{_plain(text)}.png" for number, text in enumerate(texts)]


def _plain(text: str) -> str:
    letters = normalize("NFKD", text[: 4 * NAME_LENGTH]).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:NAME_LENGTH].rstrip("-")
    return f"-{words}" if words else ""


def png_text(content: Mapping[str, Any]) -> PngInfo:
    """JSON as the text of a PNG: in ASCII with escapes, so that no caption can break the format."""
    text = PngInfo()
    text.add_itxt("Software", MADE_BY)
    text.add_itxt(TEXT_KEY, json.dumps(content, sort_keys=True))
    return text


def read_png_text(path: Path) -> dict[str, Any]:
    """What a picture of ours says of itself: version, settings, and how it came about.

    Raises:
        UnclipError: it says nothing.
    """
    try:
        with Image.open(path) as picture:
            said = getattr(picture, "text", {}).get(TEXT_KEY)
    except OSError:
        said = None
    if said is None:
        raise UnclipError(f"expected a picture that unclip made, with the PNG text {TEXT_KEY!r}, got {path}")
    content: dict[str, Any] = json.loads(said)
    return content


def save_animation(path: Path, frames: np.ndarray) -> None:
    """Frames (n, H, W, 3) uint8 to and fro as a GIF, an APNG or a WebP by the suffix, enlarged to about 256 pixels."""
    factor = max(1, round(FRAME_SIDE / max(frames.shape[1:3])))
    height, width = (side * factor for side in frames.shape[1:3])
    shown = [Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST) for frame in frames]
    order = [*shown, *shown[-2:0:-1]]
    durations = [END_MILLISECONDS if place in (0, len(shown) - 1) else FRAME_MILLISECONDS for place in range(len(order))]
    more: dict[str, Any] = {".gif": {}, ".png": {"default_image": False}, ".webp": {"lossless": True}}[path.suffix]
    order[0].save(path, save_all=True, append_images=order[1:], duration=durations, loop=0, **more)


def candidates_table(captions: Sequence[str], candidates: np.ndarray, similarities: np.ndarray) -> pa.Table:
    """A row for every candidate of the prior: (n, k, E) embeddings and (n, k) similarities to n captions."""
    num, draws, width = candidates.shape
    chosen = similarities.argmax(axis=1)
    vectors = np.ascontiguousarray(candidates.astype(np.float32)).reshape(-1)
    return pa.table({
        "picture": np.repeat(np.arange(num, dtype=np.int32), draws),
        "caption": [caption for caption in captions for _ in range(draws)],
        "candidate": np.tile(np.arange(draws, dtype=np.int32), num),
        "chosen": (np.arange(draws) == chosen[:, None]).reshape(-1),
        "similarity": similarities.astype(np.float32).reshape(-1),
        "image_emb": pa.FixedSizeListArray.from_arrays(pa.array(vectors), width),
    })  # fmt: skip
