"""Shards and an embedding store written by hand, in which a picture and its vectors both say which row they are of."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from unclip.data.contracts import embedding_schema
from unclip.data.download import DownloadConfig
from unclip.data.embed import EmbedConfig, write_part
from unclip.data.manifest import Stage

E, S = 4, 3
ROWS = 12  # in a shard, of which every sixth is held out
Draw = Callable[[int, int], Image.Image]


def plain(part: int, row: int) -> Image.Image:
    """One colour: the shard in red, the row in green."""
    return Image.new("RGB", (20 + row, 24), (part, row, 7))


def caption_of(part: int, row: int) -> str:
    """Every third says where things are."""
    return f"a dot {part} {row}" + (" on the Left" if row % 3 == 0 else "")


def encoded(picture: Image.Image, suffix: str = "png") -> bytes:
    out = io.BytesIO()
    picture.save(out, {"png": "png", "jpg": "jpeg"}[suffix])
    return out.getvalue()


def key_of(part: int, row: int) -> str:
    return f"{part:05d}{row:05d}"


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """A tar with these members, in order."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def members_of(part: int, draw: Draw = plain, suffix: str = "png") -> dict[str, bytes]:
    """What the tar of a shard holds."""
    found: dict[str, bytes] = {}
    for row in range(ROWS):
        found |= {f"{key_of(part, row)}.{suffix}": encoded(draw(part, row), suffix), f"{key_of(part, row)}.txt": caption_of(part, row).encode()}
    return found


def write_shard(shards: Path, part: int, members: Mapping[str, bytes]) -> None:
    """A shard with a record of what is in it."""
    stage = Stage(shards, "download", DownloadConfig(), {})
    name = f"{part:05d}"
    write_tar(shards / f"{name}.tar", members)
    kept = sum(not member.endswith(".txt") for member in members)
    stage.record_part(name, made_from="", rows_in=kept, kept=kept, rejected={}, files=[f"{name}.tar"], seconds=0.0)


def write_store(store: Path, parts: int) -> None:
    """A finished store of the first shards; text states are as many as the row's number and one."""
    stage = Stage(store, "embed", EmbedConfig(), {})
    schema = embedding_schema(E, text_tokens=True).with_metadata({"text_width": str(S)})
    for part in range(parts):
        rows = range(ROWS)
        vectors = [np.array([part, row, 0, 1], np.float16) for row in rows]
        columns = {
            "key": [key_of(part, row) for row in rows], "caption": [caption_of(part, row) for row in rows],
            "split": ["heldout" if row % 6 == 5 else "train" for row in rows], "image_emb": vectors, "text_emb": vectors,
            "token_ids": [[1] * (row + 1) for row in rows], "text_tokens": [np.full((row + 1) * S, row, np.float16) for row in rows],
        }  # fmt: skip
        blank = {"string": [""] * ROWS, "int32": [1] * ROWS, "float": [0.5] * ROWS}
        arrays = [pa.array(columns.get(field.name, blank.get(str(field.type))), field.type) for field in schema]
        write_part(store / f"{part:05d}.parquet", pa.table(arrays, schema=schema))
    stage.finish(counts={}, digest=f"{parts} parts")


def write_pairs(folder: Path, *, parts: int = 3, draw: Draw = plain, suffix: str = "png") -> tuple[Path, Path]:
    """Shards and their store; 10 rows of each are trained on."""
    shards, store = folder / "shards", folder / "store"
    for part in range(parts):
        write_shard(shards, part, members_of(part, draw, suffix))
    write_store(store, parts)
    return shards, store
