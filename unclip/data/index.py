"""The FAISS index over the store's image embeddings, exact, with the table of its keys, and searching it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.manifest import Manifest, Stage, finished_manifest
from unclip.data.store import emb_width, iter_batches, num_rows, rows_digest
from unclip.files import UnclipError, remove_leftovers, replacing, sha256_file, write_json
from unclip.progress import progress

INDEX, KEYS, RECALL = "index.faiss", "keys.parquet", "recall.json"
KEY_COLUMNS = ["key", "caption", "url", "split"]


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How the index is checked.

    Attributes:
        num_queries: stored vectors that are searched again after the build, against a plain matrix product.
        recall_target: share of their true ten nearest that must be found; the build fails below it.
    """

    __pydantic_config__ = {"extra": "forbid"}

    num_queries: int = 200
    recall_target: float = 0.99


def index_inputs(store: Path) -> dict[str, str]:
    """What the stage would read today."""
    return {"embeddings": rows_digest(store)}


def build_index(store: Path, out: Path, config: IndexConfig) -> Manifest:
    """Indexes all normalised image embeddings (float32, inner product, so scores are cosines) and measures recall@10.

    Raises:
        UnclipError: the recall is under its target.
    """
    stage = Stage(out, "index", config, index_inputs(store))
    remove_leftovers(out)
    index = faiss.IndexFlatIP(emb_width(store))
    keys: list[pa.Table] = []
    rows = num_rows(store)
    with progress("index", rows, unit="vector") as bar:
        for batch in iter_batches(store, [*KEY_COLUMNS, "image_emb"]):
            index.add(normalised(batch["image_emb"]))
            keys.append(pa.table({name: pa.array(batch[name], pa.string()) for name in KEY_COLUMNS}))
            bar.advance(len(batch["key"]))
    recall = _measure_recall(index, store, config.num_queries)
    if recall < config.recall_target:
        raise UnclipError(f"the index of {store} finds {recall:.3f} of the true ten nearest, expected at least {config.recall_target}; see index.recall_target")
    with replacing(out / INDEX) as aside:
        faiss.write_index(index, str(aside))
    with replacing(out / KEYS) as aside:
        pq.write_table(pa.concat_tables(keys), aside, compression="zstd")
    write_json(out / RECALL, {"recall_at_10": recall, "queries": min(config.num_queries, index.ntotal)})
    counts = {"rows_in": rows, "kept": index.ntotal, "rejected": {}, "recall_at_10": recall}
    return stage.finish(counts=counts, digest=sha256_file(out / INDEX)[:16])


def normalised(vectors: np.ndarray) -> np.ndarray:
    """(n, E) of any float type -> unit rows in float32."""
    wide = np.ascontiguousarray(vectors, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _measure_recall(index: Any, store: Path, num_queries: int) -> float:
    """Recall@10 against a plain product of the stored vectors; ties count as found."""
    vectors = np.concatenate([normalised(batch["image_emb"]) for batch in iter_batches(store, ["image_emb"])])
    chosen = np.random.default_rng(0).choice(len(vectors), size=min(num_queries, len(vectors)), replace=False)
    k = min(10, len(vectors))
    _, found = index.search(vectors[chosen], k)
    truth = vectors[chosen] @ vectors.T
    threshold = np.sort(truth, axis=1)[:, -k][:, None] - 1e-5  # float32 rounding
    return float((np.take_along_axis(truth, found, axis=1) >= threshold).mean())


@dataclass(frozen=True)
class Index:
    """An opened index: the FAISS object, and the row of `keys` that each of its vectors stands for."""

    faiss_index: Any
    keys: pa.Table

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, E) vectors of any norm -> cosines (Q, k) and row numbers (Q, k), best first."""
        if queries.shape[1] != self.faiss_index.d:
            raise UnclipError(f"the index holds vectors of width {self.faiss_index.d}, the query has {queries.shape[1]}; it was embedded by another CLIP")
        scores, rows = self.faiss_index.search(normalised(queries), min(k, self.faiss_index.ntotal))
        return scores, rows


def open_index(folder: Path) -> Index:
    """Opens a finished index.

    Raises:
        UnclipError: it is not finished, or index and key table do not have the same number of rows.
    """
    finished_manifest(folder, "index")
    try:
        opened = faiss.read_index(str(folder / INDEX))
    except RuntimeError as error:
        raise UnclipError(f"{folder / INDEX} does not open ({str(error).splitlines()[0][:200]}); remove {folder} and run `unclip index` again") from None
    keys = pq.read_table(folder / KEYS)
    if opened.ntotal != len(keys):
        raise UnclipError(f"{folder} has {opened.ntotal} vectors but {len(keys)} keys; remove it and run `unclip index` again")
    return Index(opened, keys)
