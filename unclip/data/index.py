"""The index stage: a FAISS index over the store's image embeddings, with the table of its keys, and searching it.

`index.json` beside them says which parts of the store it holds and how it was learned, so that new parts are added to it
and nothing is learned again until the data have drifted. The recall is measured at every build, and must reach its target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa

from unclip.data.index_kinds import Choice, Kind, cells_of, choose, distance_to_cells, make, search_parameters
from unclip.data.index_recall import Queries, measure_recall, read_queries
from unclip.data.manifest import Manifest, Stage, finished_manifest
from unclip.data.store import emb_width, iter_batches, normalised, num_rows, part_digest, part_paths, rows_digest
from unclip.files import UnclipError, fingerprint, read_json, remove_leftovers, replacing, sha256_file, write_json
from unclip.progress import Bar, progress

INDEX, KEYS, RECORD = "index.faiss", "keys.arrow", "index.json"
KEY_SCHEMA = pa.schema([
    *(pa.field(name, pa.string(), nullable=False) for name in ("key", "caption", "url", "split")),
    *(pa.field(name, pa.int32(), nullable=False) for name in ("width", "height")),
    pa.field("similarity", pa.float32(), nullable=False),
])  # fmt: skip
FIRST_NPROBE = 8
MOST_GROWN = 4  # times the rows that the cells were learned for; then there are too few of them
ROWS_FOR_DRIFT = 512  # of each batch of the new parts
SEED = 0


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Which index, and how it is checked.

    Attributes:
        kind: "auto" chooses by the number of rows and the memory (see `unclip.data.index_kinds`).
        max_memory_gib: what a search may hold in memory.
        num_queries: rows that are searched again after the build, once by picture and once by caption.
        recall_target: share of their true ten nearest that must be found; more cells are searched until it is reached, and
            where that does not help the build fails.
        max_drift: how much farther than at first (times) new vectors may lie from the cells before these are learned again.
    """

    __pydantic_config__ = {"extra": "forbid"}

    kind: Literal["auto"] | Kind = "auto"
    max_memory_gib: float = 4.0
    num_queries: int = 200
    recall_target: float = 0.95
    max_drift: float = 1.25

    def __post_init__(self) -> None:
        if self.max_memory_gib <= 0:
            raise ValueError(f"max_memory_gib must be positive, got {self.max_memory_gib}")
        if self.num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {self.num_queries}")
        if not 0.0 < self.recall_target <= 1.0:
            raise ValueError(f"recall_target must be in (0, 1], got {self.recall_target}")
        if self.max_drift < 1.0:
            raise ValueError(f"max_drift must be at least 1, got {self.max_drift}")


@dataclass(frozen=True)
class Record:
    """What an index holds and how it was learned.

    Attributes:
        parts: name and digest of each part of the store, in the order of its vectors.
        choice: the kind and its sizes.
        nprobe: cells that a search looks into; 0 without cells.
        trained_rows, trained_distance: rows that there were when the cells were learned, and how far from them they lay.
        keys_digest, index_digest: of the two files that belong to it.
    """

    parts: tuple[tuple[str, str], ...]
    choice: Choice
    nprobe: int
    trained_rows: int
    trained_distance: float
    index_digest: str
    keys_digest: str


def index_inputs(store: Path) -> dict[str, str]:
    """What the stage would read today."""
    return {"embeddings": rows_digest(store)}


def build_index(store: Path, out: Path, config: IndexConfig) -> Manifest:
    """Indexes all normalised image embeddings (inner product, so scores are cosines) and measures recall@10.

    Where the folder has an index over the first parts of the store, just the others are added.

    Raises:
        UnclipError: the recall is under its target however many cells are searched, or no kind fits into the memory.
    """
    stage = Stage(out, "index", config, index_inputs(store))
    remove_leftovers(out)
    rows, width = num_rows(store), emb_width(store)
    choice = choose(config.kind, rows, width, int(config.max_memory_gib * 2**30))
    parts = tuple((path.stem, part_digest(path)) for path in part_paths(store))
    queries = read_queries(store, rows, num=config.num_queries, training_rows=choice.training_rows, seed=SEED)
    earlier = _usable(out, choice, parts, rows)
    index, record, grown = _grown(store, out, earlier, queries, parts, config) if earlier else (*_learned(store, choice, queries, parts, rows), 0)
    recall, nprobe = _reach(index, queries, choice, config.recall_target, first=record.nprobe)
    if recall["worst"] < config.recall_target and grown:  # cells that were learned for fewer rows may be what is wrong
        index, record = _learned(store, choice, queries, parts, rows)
        recall, nprobe = _reach(index, queries, choice, config.recall_target, first=record.nprobe)
        grown = 0
    if recall["worst"] < config.recall_target:
        raise UnclipError(
            f"the {choice.kind} index of {store} finds {recall['worst']:.3f} of the true ten nearest, searching all that it may,"
            f" expected at least {config.recall_target} (index.recall_target); choose an index.kind with more bytes a vector, or raise index.max_memory_gib"
        )
    with replacing(out / INDEX) as aside:
        faiss.write_index(index, str(aside))
    _write_keys(store, out / KEYS)
    written = {"nprobe": nprobe, "index_digest": sha256_file(out / INDEX), "keys_digest": sha256_file(out / KEYS)}
    write_json(out / RECORD, asdict(record) | written | {"recall": recall, "queries": len(queries.rows)})
    counts = {"rows_in": rows, "kept": index.ntotal, "rejected": {}, "recall_at_10": recall["worst"], "kind": choice.kind, "nprobe": nprobe, "grown_by": grown}
    return stage.finish(counts=counts, digest=fingerprint(written)[:16])


def _read_record(folder: Path) -> Record:
    content = read_json(folder / RECORD)
    fields = {name: content[name] for name in ("nprobe", "trained_rows", "trained_distance", "index_digest", "keys_digest")}
    return Record(parts=tuple((name, digest) for name, digest in content["parts"]), choice=Choice(**content["choice"]), **fields)


def _usable(out: Path, choice: Choice, parts: Sequence[tuple[str, str]], rows: int) -> Record | None:
    """The record of an index that the parts which it lacks can be added to; None where there is none, or it was made otherwise."""
    if not (out / RECORD).is_file():
        return None
    try:
        record = _read_record(out)
    except (KeyError, TypeError, ValueError):
        return None  # of another version
    is_begun = record.parts == tuple(parts[: len(record.parts)])
    # the cells stay as they are while the rows grow, though the rule would have more of them by now
    is_alike = record.choice.kind == choice.kind and record.choice.code_bytes == choice.code_bytes
    is_whole = (out / INDEX).is_file() and sha256_file(out / INDEX) == record.index_digest
    return record if is_begun and is_alike and is_whole and rows <= MOST_GROWN * record.trained_rows else None


def _learned(store: Path, choice: Choice, queries: Queries, parts: Sequence[tuple[str, str]], rows: int) -> tuple[Any, Record]:
    """An index over all parts, learned on the sample."""
    index = make(choice, emb_width(store))
    if choice.training_rows:
        index.train(queries.sample)
    with progress("index", rows, unit="vector") as bar:
        _add(index, store, [name for name, _ in parts], bar)
    distance = distance_to_cells(index, queries.sample) if choice.has_cells else 0.0
    return index, Record(tuple(parts), choice, FIRST_NPROBE if choice.has_cells else 0, rows, distance, "", "")


def _grown(store: Path, out: Path, record: Record, queries: Queries, parts: Sequence[tuple[str, str]], config: IndexConfig) -> tuple[Any, Record, int]:
    """The index of the folder with the parts that it lacks added, and how many vectors these have; learned anew where they lie far from its cells."""
    index = faiss.read_index(str(out / INDEX))
    before, new = index.ntotal, [name for name, _ in parts[len(record.parts) :]]
    rows = num_rows(store)
    if new and record.choice.has_cells:
        drawn = np.concatenate([normalised(vectors[:ROWS_FOR_DRIFT]) for vectors in _vectors(store, new)])
        if distance_to_cells(index, drawn) > config.max_drift * record.trained_distance:
            return *_learned(store, choose(config.kind, rows, emb_width(store), int(config.max_memory_gib * 2**30)), queries, parts, rows), 0
    with progress("index", rows, unit="vector", done=before) as bar:
        _add(index, store, new, bar)
    return index, Record(tuple(parts), record.choice, record.nprobe, record.trained_rows, record.trained_distance, "", ""), index.ntotal - before


def _vectors(store: Path, names: Sequence[str]) -> Iterator[np.ndarray]:
    for batch in iter_batches(store, ["image_emb"], parts=names):
        yield batch["image_emb"]


def _add(index: Any, store: Path, names: Sequence[str], bar: Bar) -> None:
    for vectors in _vectors(store, names):
        index.add(normalised(vectors))
        bar.advance(len(vectors))


def _reach(index: Any, queries: Queries, choice: Choice, target: float, *, first: int) -> tuple[dict[str, float], int]:
    """The recall with the fewest cells that reach the target, doubled from `first` on, and how many these are."""
    nprobe, most = first, cells_of(index).nlist if choice.has_cells else 0
    while True:
        recall = measure_recall(partial(_search, index, nprobe), queries)
        if recall["worst"] >= target or nprobe >= most:
            return recall, nprobe
        nprobe = min(2 * nprobe, most)


def _search(index: Any, nprobe: int, vectors: np.ndarray, k: int) -> np.ndarray:
    _, found = index.search(vectors, min(k, index.ntotal), params=search_parameters(index, nprobe=nprobe, rows=None))
    return np.asarray(found)


def _write_keys(store: Path, path: Path) -> None:
    """Arrow, not Parquet: it is mapped into memory, and a search reads just the rows that it found."""
    with replacing(path) as aside, pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, KEY_SCHEMA) as writer:
        for batch in iter_batches(store, KEY_SCHEMA.names):
            writer.write_table(pa.table([pa.array(batch[field.name], field.type) for field in KEY_SCHEMA], schema=KEY_SCHEMA))


@dataclass(frozen=True)
class Index:
    """An opened index: the FAISS object, the row of `keys` that each of its vectors stands for, and the cells that a search looks into."""

    faiss_index: Any
    keys: pa.Table
    nprobe: int = 0

    def search(self, queries: np.ndarray, k: int, *, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(Q, E) vectors of any norm -> cosines (Q, k) and row numbers (Q, k), best first.

        Args:
            rows: (n,) bool, which may be found; all without it. Where fewer than k are found, the row number is -1.
        """
        if queries.shape[1] != self.faiss_index.d:
            raise UnclipError(f"the index holds vectors of width {self.faiss_index.d}, the query has {queries.shape[1]}; it was embedded by another CLIP")
        most = self.faiss_index.ntotal if rows is None else int(rows.sum())
        parameters = search_parameters(self.faiss_index, nprobe=self.nprobe, rows=rows)
        scores, found = self.faiss_index.search(normalised(queries), min(k, max(most, 1)), params=parameters)
        return scores, found


def open_index(folder: Path) -> Index:
    """Opens a finished index, mapped into memory.

    Raises:
        UnclipError: it is not finished, or a file of it is not what was written.
    """
    finished_manifest(folder, "index")
    record = _read_record(folder)
    try:
        opened = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
        keys = pa.ipc.open_file(pa.memory_map(str(folder / KEYS))).read_all()
    except (RuntimeError, OSError, pa.ArrowInvalid) as error:
        raise UnclipError(f"{folder} does not open ({str(error).splitlines()[0][:200]}); remove it and run `unclip index` again") from None
    if opened.ntotal != len(keys):
        raise UnclipError(f"{folder} has {opened.ntotal} vectors but {len(keys)} keys; remove it and run `unclip index` again")
    return Index(opened, keys, record.nprobe)
