"""Embedding stores of made-up vectors with the records that the stages after embed ask for, part by part."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from unclip.data.contracts import embedding_schema, part_name
from unclip.data.embed import write_part
from unclip.data.manifest import Stage
from unclip.files import write_json

WIDTH = 16


def vectors(num: int, *, seed: int, width: int = WIDTH, centre: float = 0.0) -> np.ndarray:
    """(num, width) of a cloud with a few directions that matter, as embeddings have."""
    rng = np.random.default_rng(seed)
    strength = 1.0 / (1.0 + np.arange(width))
    return (rng.normal(size=(num, width)) * strength + centre * np.eye(width)[-1]).astype(np.float16)


def write_part_of(store: Path, number: int, image_emb: np.ndarray, *, captions: list[str] | None = None) -> None:
    """One part with its record; captions are the pictures' numbers unless given, text embeddings lie near the pictures'."""
    store.mkdir(parents=True, exist_ok=True)
    rows, width = image_emb.shape
    name = part_name(number)
    keys = [f"{name}{row:05d}" for row in range(rows)]
    text_emb = (image_emb + 0.1 * np.random.default_rng(number).normal(size=image_emb.shape)).astype(np.float16)
    schema = embedding_schema(width, text_tokens=False).with_metadata({"text_width": "1", "clip_digest": "made up"})

    def fixed(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=schema.field("image_emb").type)

    columns = {
        "key": keys, "caption": captions or [f"picture {key}" for key in keys], "url": [f"http://127.0.0.1/{key}" for key in keys],
        "sha256": ["0" * 64] * rows, "width": [64 + row for row in range(rows)], "height": [64] * rows,
        "split": ["heldout" if row % 10 == 0 else "train" for row in range(rows)], "image_emb": fixed(image_emb), "text_emb": fixed(text_emb),
        "similarity": np.linspace(0, 1, rows, dtype=np.float32), "token_ids": [[1, 2]] * rows,
    }  # fmt: skip
    write_part(store / f"{name}.parquet", pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema))
    stage = Stage.__new__(Stage)
    stage.folder = store
    stage.record_part(name, made_from=name, rows_in=rows, kept=rows, rejected={}, files=[f"{name}.parquet"], seconds=0.0)
    parts = [json.loads(path.read_text()) for path in sorted(store.glob("[0-9]*.json"))]
    kept = sum(part["kept"] for part in parts)
    digest = str(sorted(str(part["files"]) for part in parts))
    manifest = {"stage": "embed", "config": {}, "inputs": {}, "finished": True, "digest": digest, "counts": {"rows_in": kept, "kept": kept, "rejected": {}}}
    write_json(store / "manifest.json", manifest)
