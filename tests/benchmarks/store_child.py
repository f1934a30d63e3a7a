"""One measured process of the store's benchmark: `python -m tests.benchmarks.store_child TASK CONTENDER FOLDER PEERS` prints a line of JSON.

Times are CPU seconds of the process and its threads; each contender works on the same files, with one thread.
"""

import glob
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch

from tests.benchmarks.child import peak_memory
from unclip.data.plain import as_float32
from unclip.data.store import normalised

BATCH = 8192
K = 10
REPEATS, SECONDS = 3, 2.0  # passes, and CPU seconds of all, at the least: one pass over a memory map takes milliseconds
MODEL = "ViT-S-32-alt"


Pass = Callable[[], Iterator[np.ndarray]]  # one pass over what was opened before


def read_memory_map(folder: Path) -> Pass:
    whole = np.load(folder / "vectors.npy", mmap_mode="r")
    return lambda: (as_float32(whole[start : start + BATCH]) for start in range(0, len(whole), BATCH))


def read_cache(folder: Path) -> Pass:
    from unclip.data.cache import open_pairs

    emb = open_pairs(folder / "store", split="train", text_tokens=False).image_emb
    return lambda: (as_float32(emb[start : start + BATCH]) for start in range(0, len(emb), BATCH))


def read_store(folder: Path) -> Pass:
    from unclip.data.store import iter_batches

    return lambda: (as_float32(batch["image_emb"]) for batch in iter_batches(folder / "store", ["image_emb"], batch_size=BATCH))


def read_embedding_reader(folder: Path) -> Pass:
    from embedding_reader import EmbeddingReader

    reader = EmbeddingReader(embeddings_folder=str(folder / "parts"), file_format="parquet", embedding_column="image_emb", meta_columns=["key"])
    return lambda: (emb for emb, _ in reader(batch_size=BATCH, show_progress=False))


READERS: dict[str, Callable[[Path], Pass]] = {
    "memory map": read_memory_map, "unclip, training cache": read_cache, "unclip, Parquet": read_store, "embedding-reader, Parquet": read_embedding_reader,
}  # fmt: skip


def read(contender: str, folder: Path) -> dict[str, Any]:
    """Rows a second as float32 batches; the first pass, which warms the disk's cache, does not count."""
    seconds, rows, total, one_pass = [], 0, 0.0, READERS[contender](folder)
    while len(seconds) <= REPEATS or sum(seconds) < SECONDS:
        started, rows, total = time.process_time(), 0, 0.0
        for batch in one_pass():
            assert batch.dtype == np.float32
            rows += len(batch)
            total += float(batch[0, 0])
        seconds.append(time.process_time() - started)
    return {"rate": rows / min(seconds[1:]), "rows": rows, "checksum": total}


def index(contender: str, folder: Path) -> dict[str, Any]:
    """Build and search: CPU seconds, milliseconds a query, recall@10 against a plain product, and what it takes on disk."""
    vectors, queries = normalised(np.load(folder / "vectors.npy")), normalised(np.load(folder / "queries.npy"))
    started = time.process_time()
    if contender == "autofaiss":
        from autofaiss import build_index

        # saved below, as ours is: by itself it also writes what it measured, as JSON, and stumbles over numpy 2's float32 there
        built, _ = build_index(
            str(folder / "unit"), save_on_disk=False, max_index_memory_usage="4G", current_memory_available="8G", metric_type="ip", nb_cores=1
        )
        assert built is not None, "autofaiss gave no index"
        faiss.write_index(built, str(folder / "auto.index"))
        searched: Any = built
        size = (folder / "auto.index").stat().st_size
    else:
        from unclip.data.index import INDEX, IndexConfig, build_index, open_index

        out = folder / contender.replace(" ", "-")
        build_index(folder / "store", out, IndexConfig(kind=contender.removeprefix("unclip, "), recall_target=0.8))  # type: ignore[arg-type]
        searched = open_index(out)
        size = (out / INDEX).stat().st_size
    build, started = time.process_time() - started, time.process_time()
    found = np.concatenate([searched.search(query[None], K)[1] for query in queries])
    each = (time.process_time() - started) / len(queries)
    truth = np.argpartition(-(queries @ vectors.T), K, axis=1)[:, :K]
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    return {"build_seconds": build, "query_seconds": each, "recall_at_10": float(recall), "bytes": size}


def embed(contender: str, folder: Path) -> dict[str, Any]:
    """Pairs a second from finished shards to written embeddings; "bare forward": both towers on batches that stand in memory."""
    if contender == "unclip":
        from unclip.clip import load_clip
        from unclip.data.embed import EmbedConfig
        from unclip.data.embed import embed as embed_stage

        load_clip(folder / "clip").encode_texts(["a"])  # imports and first allocations, as for the others
        started = time.process_time()
        rows = embed_stage(folder / "shards", folder / "clip", folder / "embedded", EmbedConfig(num_workers=0, batch_size=64)).counts["kept"]
        return {"rate": rows / (time.process_time() - started), "rows": rows}
    if contender == "bare forward":
        return _bare(folder)
    from all_clip import load_clip as load_theirs
    from clip_retrieval.clip_inference.main import main as clip_inference

    clip_model = f"open_clip:{MODEL}/{folder / 'weights.pt'}"
    for warmed in ({"clip_cache_path": None}, {"warmup_batch_size": 64, "clip_cache_path": None}):  # as it asks itself, its cache goes by the words
        load_theirs(clip_model=clip_model, use_jit=False, **warmed)  # loading and two batches to warm up, which are not counted
    started = time.process_time()
    clip_inference(
        input_dataset=one_pattern(sorted(glob.glob(str(folder / "shards" / "*.tar")))), output_folder=str(folder / "inference"), input_format="webdataset",
        clip_model=clip_model, batch_size=64, num_prepro_workers=0, enable_metadata=True, enable_wandb=False, use_jit=False, output_partition_count=1,
        wds_image_key="jpg",
    )  # fmt: skip
    seconds = time.process_time() - started
    rows = sum(len(np.load(path)) for path in glob.glob(str(folder / "inference" / "img_emb" / "*.npy")))
    return {"rate": rows / seconds, "rows": rows}


def one_pattern(paths: list[str]) -> str:
    """The one string that clip-retrieval takes for several files, in braces as a shell has them."""
    return paths[0] if len(paths) == 1 else "{" + ",".join(paths) + "}"


def _bare(folder: Path) -> dict[str, Any]:
    from unclip.clip import load_clip
    from unclip.data.shards import read_shard

    clip = load_clip(folder / "clip")
    captions = [sample.caption for path in sorted((folder / "shards").glob("*.tar")) for sample in read_shard(path)]
    size = clip.preprocess_config["size"]
    side = size if isinstance(size, int) else size[0]
    pixels, tokens = torch.zeros(64, 3, side, side), clip.tokenize(captions)
    started = time.process_time()
    for start in range(0, len(captions), 64):
        rows = tokens[start : start + 64]
        clip.encode_images(pixels[: len(rows)])
        clip.encode_token_ids(rows)
    return {"rate": len(captions) / (time.process_time() - started), "rows": len(captions)}


TASKS: dict[str, Callable[[str, Path], dict[str, Any]]] = {"read": read, "index": index, "embed": embed}


def main(task: str, contender: str, folder: Path, peers: Path) -> None:
    sys.path.append(str(peers))  # after ours, so that nothing but the peers comes from there
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    pa.set_cpu_count(1)
    before = peak_memory()
    answer = TASKS[task](contender, folder)
    # on a line of its own: clip-retrieval leaves one open
    print("\n" + json.dumps(answer | {"peak_memory_bytes": peak_memory(), "imported_bytes": before}), file=sys.__stdout__)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
