"""The record of a generation: the sheet, the settings with every candidate's similarity, and the candidates themselves."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unclip.files import replacing, write_json
from unclip.generate import GenerateConfig, Generated
from unclip.prior.condition import PriorKind


def write_generation(out: Path, sheet: Image.Image, made: Generated, config: GenerateConfig, kind: PriorKind | None) -> None:
    """Writes OUT.png (with the settings as PNG text), OUT.json and OUT.parquet (one row a candidate)."""
    settings = dataclasses.asdict(config) | {"prior_kind": kind or "none"}
    chosen = made.similarities.argmax(dim=1).tolist()
    pictures = [
        {"caption": caption, "chosen": best, "similarities": [round(value, 6) for value in row.tolist()]}
        for caption, best, row in zip(made.captions, chosen, made.similarities, strict=True)
    ]
    text = PngInfo()
    for name, value in {"captions": sorted(set(made.captions)), **settings}.items():
        text.add_itxt(f"unclip {name}", str(value))
    with replacing(out) as aside:
        sheet.save(aside, format="PNG", pnginfo=text)
    write_json(out.with_suffix(".json"), {"settings": settings, "pictures": pictures})
    num, candidates, width = made.candidates.shape
    vectors = np.ascontiguousarray(made.candidates.numpy().astype(np.float32)).reshape(-1)
    table = pa.table({
        "picture": np.repeat(np.arange(num, dtype=np.int32), candidates),
        "caption": [caption for caption in made.captions for _ in range(candidates)],
        "candidate": np.tile(np.arange(candidates, dtype=np.int32), num),
        "chosen": [draw == best for best in chosen for draw in range(candidates)],
        "similarity": made.similarities.reshape(-1).numpy(),
        "image_emb": pa.FixedSizeListArray.from_arrays(pa.array(vectors), width),
    })  # fmt: skip
    with replacing(out.with_suffix(".parquet")) as aside:
        pq.write_table(table, aside)
