"""The embed stage: every shard's pictures and captions through CLIP into one Parquet part, in the same order.

Pictures are decoded and preprocessed in worker processes ahead of the model; vectors are stored as CLIP gives them, not
normalised, because a norm can't be recovered later.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unclip.clip import Clip, TextFeatures, load_clip, preprocess_of
from unclip.data import stats
from unclip.data.contracts import embedding_schema
from unclip.data.manifest import Manifest, Part, Stage, finished_manifest, identity, read_part, runtime
from unclip.data.shards import curated_part, kept_rows, read_shard, shards_digest
from unclip.files import UnclipError, fingerprint, remove_leftovers, replacing
from unclip.progress import Bar, progress

ROW_GROUP = 8192
VECTORS = ("image_emb", "text_emb", "text_tokens")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What the store holds.

    Attributes:
        text_tokens: whether the caption's token states are kept too; prior and decoder use them as context.
        batch_size, num_workers: pictures in one forward pass, and processes that decode ahead of it.
    """

    __pydantic_config__ = {"extra": "forbid"}

    text_tokens: bool = True
    batch_size: int = runtime(256)
    num_workers: int = runtime(1)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(f"batch_size must be at least 1 and num_workers at least 0, got {self.batch_size} and {self.num_workers}")


def embed_inputs(shards: Path, clip: Path) -> dict[str, str]:
    """What the stage would read today."""
    return {"shards": shards_digest(shards), "clip": finished_manifest(clip, "clip").digest}


def embed(shards: Path, clip_folder: Path, out: Path, config: EmbedConfig, *, device: str = "cpu") -> Manifest:
    """Embeds all shards that are not yet embedded, and writes `stats.json` over all of them.

    Raises:
        UnclipError: a shard is broken, or the folder holds another CLIP's embeddings.
    """
    inputs = embed_inputs(shards, clip_folder)
    _refuse_other_clip(out, clip_folder, inputs["clip"])
    stage = Stage(out, "embed", config, inputs)
    remove_leftovers(out)
    sources = [_finished_shard(shards, path.stem) for path in sorted(shards.glob("*.tar"))]
    made_from = {source.name: part_origin(source.digest, inputs["clip"], identity(config)) for source in sources}
    done = {source.name: stage.done_part(source.name, made_from[source.name]) for source in sources}
    todo = [source for source in sources if done[source.name] is None]
    parts: list[Part] = [part for part in done.values() if part is not None]
    if todo:
        clip = load_clip(clip_folder, device=device)
        rows = sum(source.kept for source in sources)
        with progress("embed", rows, unit="pair", done=rows - sum(source.kept for source in todo)) as bar, _decoding(clip_folder, config.num_workers) as submit:
            for source in todo:
                parts.append(_embed_shard(stage, source, shards, clip, config, made_from[source.name], submit, bar))
    for stale in {path.stem for path in out.glob("[0-9]*.parquet")} - {source.name for source in sources}:
        raise UnclipError(f"{out / stale}.parquet has no shard in {shards}; remove it and its .json, or bring the shard back")
    parts.sort(key=lambda part: part.name)
    stats.write_stats(out)
    return stage.finish_parts(parts)


def part_origin(shard_digest: str, clip_digest: str, config: Mapping[str, Any]) -> str:
    """What a part of the store is made from, as a fingerprint."""
    return fingerprint([shard_digest, clip_digest, dict(config)])


def _finished_shard(shards: Path, name: str) -> Part:
    """The record of a shard, of what `curate` left of it where it has been there."""
    part = read_part(shards, name)
    if part is None:
        raise UnclipError(f"{shards / name}.tar has no record {name}.json, so it is not known to be whole; run `unclip download` again")
    return curated_part(shards, part)


def _refuse_other_clip(out: Path, clip_folder: Path, digest: str) -> None:
    for path in sorted(out.glob("[0-9]*.json"))[:1]:
        table = out / f"{path.stem}.parquet"
        held = pq.read_schema(table).metadata.get(b"clip_digest", b"").decode() if table.exists() else digest
        if held != digest:
            raise UnclipError(
                f"{out} holds embeddings of the CLIP {held}, expected {digest} of {clip_folder}; one store never mixes two: remove it, or set another clip.name"
            )


@contextmanager
def _decoding(clip_folder: Path, num_workers: int) -> Iterator[Callable[[list[bytes]], Future[np.ndarray]]]:
    """Yields `submit(images) -> Future of a (B, 3, H, H) float32 array`; with no workers it is done on result()."""
    decode = partial(_decode, str(clip_folder))
    if num_workers == 0:
        with ThreadPoolExecutor(1) as here:
            yield partial(here.submit, decode)
        return
    with ProcessPoolExecutor(num_workers, get_context("spawn")) as pool:
        try:
            yield partial(pool.submit, decode)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_preprocess_of = cache(preprocess_of)  # once a worker process


def _decode(clip_folder: str, images: list[bytes]) -> np.ndarray:
    preprocess = _preprocess_of(Path(clip_folder))
    out: np.ndarray = torch.stack([preprocess(Image.open(io.BytesIO(content))) for content in images]).numpy()
    return out


def _embed_shard(
    stage: Stage, source: Part, shards: Path, clip: Clip, config: EmbedConfig, made_from: str, submit: Callable[[list[bytes]], Future[np.ndarray]], bar: Bar
) -> Part:
    started = time.monotonic()
    kept = kept_rows(shards / f"{source.name}.tar")
    samples = list(read_shard(shards / f"{source.name}.tar"))
    if [sample.key for sample in samples] != kept["key"].to_pylist():
        raise UnclipError(
            f"{shards / source.name}.tar and .parquet disagree on their keys; remove both and {source.name}.json, and run `unclip download` again"
        )
    chunks = [samples[i : i + config.batch_size] for i in range(0, len(samples), config.batch_size)]
    futures = [submit([sample.image for sample in chunk]) for chunk in chunks]
    columns: dict[str, list[Any]] = {name: [] for name in ("image_emb", "text_emb", "similarity", "token_ids", "text_tokens")}
    for chunk, future in zip(chunks, futures, strict=True):
        image_emb = clip.encode_images(torch.from_numpy(future.result())).cpu()
        text = clip.encode_texts([sample.caption for sample in chunk])
        _collect(columns, image_emb, text)
        bar.advance(len(chunk))
    schema = embedding_schema(clip.emb_width, text_tokens=config.text_tokens).with_metadata(_metadata(clip, stage))
    arrays = {name: kept[name].combine_chunks() for name in ("key", "caption", "url", "sha256", "width", "height", "split")} | {
        name: _as_arrow(name, values, schema) for name, values in columns.items() if name in schema.names
    }
    table = pa.table([arrays[name] for name in schema.names], schema=schema)
    with replacing(stage.folder / f"{source.name}.parquet") as aside:
        write_part(aside, table)
    return stage.record_part(
        source.name,
        made_from=made_from,
        rows_in=len(kept),
        kept=len(table),
        rejected={},
        files=[f"{source.name}.parquet"],
        seconds=time.monotonic() - started,
    )


def _collect(columns: dict[str, list[Any]], image_emb: Tensor, text: TextFeatures) -> None:
    columns["image_emb"].append(image_emb.half().numpy())
    columns["text_emb"].append(text.text_emb.cpu().half().numpy())
    columns["similarity"].append(F.cosine_similarity(image_emb, text.text_emb.cpu(), dim=-1).numpy())
    lengths = text.text_mask.sum(dim=1).tolist()
    for row, length in enumerate(lengths):
        columns["token_ids"].append(text.token_ids[row, :length].cpu().numpy().astype(np.int32))
        columns["text_tokens"].append(text.text_tokens[row, :length].cpu().half().numpy().reshape(-1))


def _as_arrow(name: str, values: list[np.ndarray], schema: pa.Schema) -> pa.Array:
    kind = schema.field(name).type
    flat = np.concatenate(values).reshape(-1) if values else np.zeros(0, np.float16)
    if name == "similarity":
        return pa.array(flat.astype(np.float32))
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float16)), type=kind)
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind.value_type), type=kind)


def _metadata(clip: Clip, stage: Stage) -> dict[str, str]:
    return {
        "clip_name": clip.name, "clip_origin": clip.origin, "clip_weights": clip.weights_hash, "clip_digest": stage.inputs["clip"],
        "clip_preprocess": str(clip.preprocess_config), "text_width": str(clip.text_width), "normalised": "false",
    }  # fmt: skip


def write_part(path: Path, table: pa.Table) -> None:
    """Writes a part with the store's encodings: vectors plain and uncompressed, ZSTD for the rest, page checksums.

    A dictionary or statistics on a vector column only cost time; pyarrow's defaults read four times slower.
    """
    names = [name for name in table.schema.names if name not in VECTORS]
    compression = {_leaf(table.schema, name): "none" if name in VECTORS else "zstd" for name in table.schema.names}
    pq.write_table(
        table,
        path,
        row_group_size=ROW_GROUP,
        compression=compression,
        use_dictionary=["split"],
        write_statistics=[_leaf(table.schema, name) for name in names],
        write_page_checksum=True,
    )


def _leaf(schema: pa.Schema, name: str) -> str:
    return f"{name}.list.element" if pa.types.is_nested(schema.field(name).type) else name
