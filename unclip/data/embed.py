"""The embed stage: every shard's pictures and captions through CLIP into one Parquet part, in the same order.

Pictures are decoded and preprocessed in worker processes ahead of the model, across shards; captions go through it sorted
by length, which is exact and pads little. Vectors are stored as CLIP gives them, not normalised, because a norm can't be
recovered later. Several processes, on one machine or several, may embed a root together: each takes the next shard that
no other has, and one that dies leaves its shard to the others. Or Ray brings the shards to its machines, one at a time to
each process.
"""

import io
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unclip.clip import Clip, Precision, load_clip, preprocess_of
from unclip.data import stats
from unclip.data.cluster import RayConfig, on_cluster
from unclip.data.contracts import embedding_schema
from unclip.data.embed_work import Work
from unclip.data.fetch import die_with
from unclip.data.manifest import Manifest, Part, Stage, finished_manifest, identity, read_part, runtime
from unclip.data.shards import Sample, curated_part, kept_rows, read_shard, shards_digest
from unclip.files import UnclipError, fingerprint, remove_leftovers, replacing
from unclip.progress import Bar, progress

ROW_GROUP = 8192
AHEAD = 2  # batches that are decoded before they are wanted, besides one a worker
VECTORS = ("image_emb", "text_emb", "text_tokens")

Submit = Callable[[list[bytes]], Future[Tensor]]  # encoded pictures -> (B, 3, H, H) float32, as soon as they are decoded


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What the store holds.

    Attributes:
        text_tokens: whether the caption's token states are kept too; prior and decoder use them as context.
        precision: what CLIP computes in; "bf16" and "fp16" are for GPUs. Similarities are computed in float32 whatever it is.
        batch_size, num_workers: pictures in one forward pass, and processes that decode ahead of it.
        shared: whether several processes embed this root together.
        engine: "ray" embeds on a Ray cluster, whose machines mount the root under the same path; num_workers is that of each process.
        ray: which cluster, and what a process takes of it.
        compile: whether CLIP goes through torch.compile.
    """

    __pydantic_config__ = {"extra": "forbid"}

    text_tokens: bool = True
    precision: Precision = "fp32"
    batch_size: int = runtime(256)
    num_workers: int = runtime(1)
    shared: bool = runtime(False)
    engine: Literal["here", "ray"] = runtime("here")
    ray: RayConfig = field(default_factory=RayConfig, metadata={"runtime": True})
    compile: bool = runtime(False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(f"batch_size must be at least 1 and num_workers at least 0, got {self.batch_size} and {self.num_workers}")
        if self.engine == "here" and self.ray != RayConfig():
            raise ValueError(f"the settings of ray are for engine 'ray', got engine {self.engine!r}")
        if self.engine == "ray" and self.shared:
            raise ValueError("engine 'ray' gives each shard to one process by itself; expected shared false, got true")


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
    if not config.shared:
        remove_leftovers(out)
    sources = [_finished_shard(shards, path.stem) for path in sorted(shards.glob("*.tar"))]
    for stale in {path.stem for path in out.glob("[0-9]*.parquet")} - {source.name for source in sources}:
        raise UnclipError(f"{out / stale}.parquet has no shard in {shards}; remove it and its .json, or bring the shard back")
    work = Work(stage, sources, {source.name: part_origin(source.digest, inputs["clip"], identity(config)) for source in sources}, config.shared)
    if todo := work.left():
        rows = sum(source.kept for source in sources)
        with progress("embed", rows, unit="pair", done=rows - sum(source.kept for source in todo)) as bar:
            (_embed_on_ray if config.engine == "ray" else _embed_here)(work, shards, clip_folder, config, device, bar)
    stats.write_stats(out)
    return stage.finish_parts([part for part in map(work.done, sources) if part is not None])


def _embed_here(work: Work, shards: Path, clip_folder: Path, config: EmbedConfig, device: str, bar: Bar) -> None:
    clip = load_clip(clip_folder, device=device, precision=config.precision, compiled=config.compile)
    with _decoding(clip_folder, config.num_workers) as submit:
        _embed_all(work, shards, clip, submit, config, bar)


def _embed_on_ray(work: Work, shards: Path, clip_folder: Path, config: EmbedConfig, _device: str, bar: Bar) -> None:
    """The device is that of the machines which do the work, not of this one."""
    todo = {source.name: source for source in work.left()}
    paths = shards.resolve(), clip_folder.resolve()  # Ray's processes have a working directory of their own
    for name, _ in on_cluster(partial(embed_shard, *paths, config), {name: work.only(source) for name, source in todo.items()}, config.ray):
        bar.advance(todo[name].kept)


def embed_shard(shards: Path, clip_folder: Path, config: EmbedConfig, work: Work) -> None:
    """Embeds what little work there is, in a process that is kept for more: it holds the CLIP and the processes that decode."""
    clip, submit, _ = _held(clip_folder, config)
    _embed_all(work, shards, clip, submit, config, None)


@cache
def _held(clip_folder: Path, config: EmbedConfig) -> tuple[Clip, Submit, ExitStack]:
    decoding = ExitStack()  # held too, for what decodes would end with it; closed by the end of this process
    clip = load_clip(clip_folder, device="cuda" if config.ray.gpus else "cpu", precision=config.precision, compiled=config.compile)
    return clip, decoding.enter_context(_decoding(clip_folder, config.num_workers)), decoding


def _embed_all(work: Work, shards: Path, clip: Clip, submit: Submit, config: EmbedConfig, bar: Bar | None) -> None:
    while work.left():
        num = 0
        chunks = _ahead(_chunks(work, shards, config.batch_size, submit), config.num_workers + AHEAD)
        for source, of_source in itertools.groupby(chunks, key=lambda chunk: chunk.source):
            _embed_shard(work, source, of_source, shards, clip, config, bar)
            num += 1
        if not num:
            work.wait()


@dataclass(frozen=True)
class _Chunk:
    """Some samples of a shard, and their pictures (b, 3, H, H) as soon as they are decoded."""

    source: Part
    samples: list[Sample]
    pixels: Future[Tensor]


def _chunks(work: Work, shards: Path, batch_size: int, submit: Submit) -> Iterator[_Chunk]:
    for source in work.take():
        samples = list(read_shard(shards / f"{source.name}.tar"))
        for start in range(0, max(1, len(samples)), batch_size):  # a shard without pictures has a part too
            chunk = samples[start : start + batch_size]
            yield _Chunk(source, chunk, submit([sample.image for sample in chunk]))


def _ahead(chunks: Iterator[_Chunk], num: int) -> Iterator[_Chunk]:
    """The same chunks, each begun `num` chunks before it is wanted, so that the model never waits and memory stays bounded."""
    begun: deque[_Chunk] = deque()
    for chunk in chunks:
        begun.append(chunk)
        if len(begun) > num:
            yield begun.popleft()
    yield from begun


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
def _decoding(clip_folder: Path, num_workers: int) -> Iterator[Submit]:
    """Yields `submit(images) -> Future of (B, 3, H, H) float32`, which comes from a worker through shared memory; without workers a thread does it."""
    decode = partial(_decode, str(clip_folder))
    if num_workers == 0:
        with ThreadPoolExecutor(1) as here:
            yield partial(here.submit, decode)
        return
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=die_with, initargs=(os.getpid(),)) as pool:
        try:
            yield partial(pool.submit, decode)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_preprocess_of = cache(preprocess_of)  # once a worker process


def _decode(clip_folder: str, images: list[bytes]) -> Tensor:
    torch.set_num_threads(1)
    preprocess = _preprocess_of(Path(clip_folder))
    pictures = [preprocess(Image.open(io.BytesIO(content))) for content in images]
    return torch.stack(pictures) if pictures else torch.zeros(0)


def _embed_shard(work: Work, source: Part, chunks: Iterable[_Chunk], shards: Path, clip: Clip, config: EmbedConfig, bar: Bar | None) -> None:
    started = time.monotonic()
    kept = kept_rows(shards / f"{source.name}.tar")
    image_emb: list[Tensor] = []
    samples: list[Sample] = []
    for chunk in chunks:
        if chunk.samples:
            image_emb.append(clip.encode_images(chunk.pixels.result()).cpu())
        samples += chunk.samples
        if bar is not None:
            bar.advance(len(chunk.samples))
    if [sample.key for sample in samples] != kept["key"].to_pylist():
        raise UnclipError(
            f"{shards / source.name}.tar and .parquet disagree on their keys; remove both and {source.name}.json, and run `unclip download` again"
        )
    columns = _embed_captions(clip, [sample.caption for sample in samples], config.batch_size)
    columns |= _of_images(torch.cat(image_emb) if image_emb else torch.zeros(0, clip.emb_width), columns["text_emb"])
    schema = embedding_schema(clip.emb_width, text_tokens=config.text_tokens).with_metadata(_metadata(clip, work.stage))
    arrays = {name: kept[name].combine_chunks() for name in ("key", "caption", "url", "sha256", "width", "height", "split")} | {
        name: _as_arrow(name, values, schema) for name, values in columns.items() if name in schema.names
    }
    table = pa.table([arrays[name] for name in schema.names], schema=schema)
    with replacing(work.stage.folder / f"{source.name}.parquet") as aside:
        write_part(aside, table)
    work.record(source, source.kept, len(table), time.monotonic() - started)


def _embed_captions(clip: Clip, captions: list[str], batch_size: int) -> dict[str, list[np.ndarray]]:
    """What the store holds of captions, in their order; they go through CLIP in the order of their lengths."""
    text_emb = np.zeros((len(captions), clip.emb_width), np.float32)
    ids: list[np.ndarray] = [np.zeros(0)] * len(captions)
    states: list[np.ndarray] = [np.zeros(0)] * len(captions)
    tokens = clip.tokenize(captions) if captions else torch.zeros(0, 1, dtype=torch.long)
    order = np.argsort(tokens.argmax(dim=-1).numpy(), kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        text = clip.encode_token_ids(tokens[torch.from_numpy(rows)])
        text_emb[rows] = text.text_emb.cpu().numpy()
        lengths = text.text_mask.sum(dim=1).tolist()
        for place, (row, length) in enumerate(zip(rows.tolist(), lengths, strict=True)):
            ids[row] = text.token_ids[place, :length].cpu().numpy().astype(np.int32)
            states[row] = text.text_tokens[place, :length].cpu().half().numpy().reshape(-1)
    return {"text_emb": [text_emb], "token_ids": ids, "text_tokens": states}


def _of_images(image_emb: Tensor, text_emb: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    similarity = F.cosine_similarity(image_emb, torch.from_numpy(np.concatenate(text_emb)), dim=-1)
    return {"image_emb": [image_emb.numpy()], "similarity": [similarity.numpy()]}


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
