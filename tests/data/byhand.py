"""Shards and stores written by hand, whole with their records, for stages that come after `download` or `embed`."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from unclip.data.contracts import SHARD, embedding_schema, part_name
from unclip.data.download import DownloadConfig
from unclip.data.embed import EmbedConfig, write_part
from unclip.data.manifest import Stage
from unclip.files import replacing


def png(seed: int, width: int = 8, height: int = 8, *, level: int = 6) -> bytes:
    """A picture of noise; another level of compression gives other bytes of the same pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format="PNG", compress_level=level)
    return written.getvalue()


@dataclass(frozen=True)
class Shown:
    """A row of a shard."""

    caption: str
    image: bytes = field(default_factory=lambda: png(0))
    split: str = "train"


def write_shards(folder: Path, shards: Sequence[Sequence[Shown]]) -> Path:
    """One tar with its table and record for each; a link that failed stands in each table too."""
    stage = Stage(folder, "download", DownloadConfig(), {"source": "by hand"})
    parts = []
    for number, rows in enumerate(shards):
        name = part_name(number)
        entries = []
        with replacing(folder / f"{name}.tar") as aside, tarfile.open(aside, "w") as tar:
            for at, row in enumerate(rows):
                key = f"{name}{at:05d}"
                width, height = Image.open(io.BytesIO(row.image)).size
                for suffix, content in (("png", row.image), ("txt", row.caption.encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                about = {"id": f"id{key}", "url": "http://a.example/", "caption": row.caption, "split": row.split, "status": "kept", "detail": ""}
                entries.append({"key": key} | about | {"sha256": hashlib.sha256(row.image).hexdigest(), "width": width, "height": height})
        gone = {
            "key": f"{name}99999",
            "id": f"gone{name}",
            "url": "http://a.example/",
            "caption": "gone",
            "split": "train",
            "status": "not found",
            "detail": "",
        }
        pq.write_table(pa.Table.from_pylist([*entries, gone], schema=SHARD), folder / f"{name}.parquet")
        files = [f"{name}.tar", f"{name}.parquet"]
        content = hashlib.sha256(repr(rows).encode()).hexdigest()
        parts.append(stage.record_part(name, made_from=content, rows_in=len(rows) + 1, kept=len(rows), rejected={"not found": 1}, files=files, seconds=0))
    stage.finish_parts(parts)
    return folder


@dataclass(frozen=True)
class Vector:
    """A row of a store."""

    image_emb: Sequence[float]
    split: str = "train"
    similarity: float = 0.5
    side: int = 64


def write_store(folder: Path, parts: Sequence[Sequence[Vector]]) -> Path:
    """One Parquet part for each, with what a finished `embed` leaves; the key of row r of part p is p in five digits, r in five."""
    stage = Stage(folder, "embed", EmbedConfig(text_tokens=False), {"shards": "by hand"})
    width = len(parts[0][0].image_emb)
    schema = embedding_schema(width, text_tokens=False).with_metadata({"text_width": "1", "clip_digest": "by hand"})
    records = []
    for number, rows in enumerate(parts):
        name = part_name(number)
        vectors = list(np.array([row.image_emb for row in rows], np.float16).reshape(-1, width))
        columns = {
            "key": [f"{name}{at:05d}" for at in range(len(rows))], "split": [row.split for row in rows], "similarity": [row.similarity for row in rows],
            "width": [row.side + 3 for row in rows], "height": [row.side for row in rows], "image_emb": vectors, "text_emb": vectors,
            "token_ids": [[1]] * len(rows), **{text: [f"{text} {at}" for at in range(len(rows))] for text in ("caption", "url", "sha256")},
        }  # fmt: skip
        write_part(folder / f"{name}.parquet", pa.table([pa.array(columns[kind.name], kind.type) for kind in schema], schema=schema))
        made_from = hashlib.sha256(repr(rows).encode()).hexdigest()
        record = stage.record_part(name, made_from=made_from, rows_in=len(rows), kept=len(rows), rejected={}, files=[f"{name}.parquet"], seconds=0)
        records.append(record)
    stage.finish_parts(records)
    return folder
