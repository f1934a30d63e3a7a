"""The stage `select`: rules that need embeddings drop rows of the store, or move them to another split.

Pairs that CLIP finds unlike go; of near duplicates the best picture stays; and no cluster of near duplicates lies on
both sides of training and evaluation. How near the two come is measured, before and after.

Decisions stand: when the store has grown, new rows are held against those that were kept, and yield to them, also where
they are better (`prefer` "best" decides all anew). So the result of a root that grew depends on when its rows came;
remove the folder to decide as if all had come at once. Rows that have left the store leave no trace here.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unclip.data.clusters import CLUSTERS, decide_clusters, write_clusters
from unclip.data.contracts import SELECTED as SCHEMA
from unclip.data.contracts import read_table
from unclip.data.leakage import LEAKAGE, TRAIN, Sides, chosen_queries, nearest_training, summary
from unclip.data.manifest import MANIFEST, Manifest, Stage, finished_manifest, identity, read_manifest
from unclip.data.neighbours import Search
from unclip.data.rules import RULES, write_rules
from unclip.data.selection import PARTS, ROWS
from unclip.data.source import MAX_SHARD_SIZE
from unclip.data.stats import STATS, write_stats
from unclip.data.store import emb_width, iter_batches, part_paths
from unclip.data.verdicts import DUPLICATE, KEPT, STATUSES, UNDECIDED, Crossing, Verdicts, drop_low, similarity_limit
from unclip.files import UnclipError, fingerprint, remove, remove_leftovers, replacing
from unclip.layout import SELECTED

STAGE = "select"
LEAKAGE_TABLE = "leakage.parquet"
# what stands in which record: the decisions apart from the tables on them, which may be made again without losing any
RECORDS = {"rows": [ROWS], "tables": [STATS, RULES, CLUSTERS, LEAKAGE_TABLE]}
LIMIT = b"similarity_limit"  # in the schema metadata of ROWS


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which rows of the store the models see.

    Attributes:
        min_similarity: least similarity of picture and caption (CLIP score); -1 is no rule. It means another thing for every CLIP.
        keep_fraction: of the rows, those with the highest similarity; rows that come later are held against the same limit.
        near_similarity: two pictures whose embeddings have at least this cosine are near duplicates.
        near_duplicates: whether clusters of them are dropped but for the best picture (larger shorter side, then similarity,
            then key), only reported, or not looked for.
        crossing: whether a cluster may lie in training and evaluation ("allow"), or its training rows are dropped ("drop"),
            or its evaluation rows become training rows ("move").
        prefer: whether decisions stand when rows come later, or all is decided anew and a better copy takes the place.
        exact_rows: up to so many rows every pair is compared; beyond, those in nearby cells of k-means.
        probes: cells that each row is compared with.
        leakage_rows: evaluation rows, drawn evenly, whose nearest training row is looked up; 0 leaves the measure out.
    """

    __pydantic_config__ = {"extra": "forbid"}

    min_similarity: float = -1.0
    keep_fraction: float = 1.0
    near_similarity: float = 0.95
    near_duplicates: Literal["ignore", "report", "drop"] = "ignore"
    crossing: Crossing = "allow"
    prefer: Literal["earlier", "best"] = "earlier"
    exact_rows: int = 50_000
    probes: int = 4
    leakage_rows: int = 10_000

    def __post_init__(self) -> None:
        for name in ("min_similarity", "near_similarity"):
            if not -1.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [-1, 1], got {getattr(self, name)}")
        if not 0.0 < self.keep_fraction <= 1.0:
            raise ValueError(f"keep_fraction must be in (0, 1], got {self.keep_fraction}")
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")
        for name in ("exact_rows", "leakage_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def needs_clusters(self) -> bool:
        """Whether any rule looks at neighbours."""
        return self.near_duplicates != "ignore" or self.crossing != "allow"


def select_inputs(store: Path) -> dict[str, str]:
    """What the stage would read today."""
    return {"embeddings": finished_manifest(store, "embed").digest}


def select(store: Path, config: SelectConfig) -> Manifest:
    """Leaves `rows.parquet` (see contracts.SELECTED) in `store/_selected/`, which all readers of the store go by, and the
    tables `rules`, `clusters` and `leakage`.

    Raises:
        UnclipError: fewer than two training rows are left.
    """
    out = store / SELECTED
    begun = read_manifest(out) is not None
    stage = Stage(out, STAGE, config, select_inputs(store))
    remove_leftovers(out)
    rows = _read_rows(store)
    limit = _take_over(rows, out) if config.prefer == "earlier" else None
    if limit is None:
        limit = similarity_limit(rows.similarity, least=config.min_similarity, fraction=config.keep_fraction)
    drop_low(rows, limit)
    if config.needs_clusters and (rows.status == UNDECIDED).any():
        _decide_clusters(store, rows, config, out)
    rows.status[rows.status == UNDECIDED] = KEPT
    kept = rows.status == KEPT
    num_training = int((kept & (rows.split == _number(rows, TRAIN))).sum())
    if num_training < 2:
        if not begun:
            remove(out / MANIFEST)  # so that the rule which was too strict can be put right
        raise UnclipError(f"the rules of select leave {num_training} rows for training, expected at least 2; loosen them")
    _write_rows(out, rows, store, limit)
    write_stats(store, selected=True)
    write_rules(out, [out / ROWS])
    write_clusters(out, rows)
    leakage = _measure_leakage(store, rows, out, config)
    made_from = fingerprint([stage.inputs, identity(config)])
    num_kept, rejected = int(kept.sum()), rows.rejected()
    records = {
        name: stage.record_part(name, made_from=made_from, rows_in=len(rows), kept=num_kept, rejected=rejected, files=files, seconds=0.0)
        for name, files in RECORDS.items()
    }
    moved, sizes = int((kept & (rows.split != rows.came)).sum()), np.bincount(rows.cluster[rows.cluster >= 0])
    clusters = {"moved": moved, "clusters": int((sizes > 0).sum()), "largest_cluster": int(sizes.max(initial=0))}
    # what stands on the whole store need not be made again because all of it was selected
    untouched = num_kept == len(rows) and not moved
    digest = stage.inputs["embeddings"] if untouched else fingerprint([stage.inputs, records["rows"].files[ROWS][1]])
    return stage.finish(counts={"rows_in": len(rows), "kept": num_kept, "rejected": rejected} | clusters | {"leakage": leakage}, digest=digest)


def _number(rows: Verdicts, split: str) -> int:
    """The number of a split; one that no row is in gets a number too."""
    if split not in rows.splits:
        rows.splits.append(split)
    return rows.splits.index(split)


def _read_rows(store: Path) -> Verdicts:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("split", "similarity", "side")}
    keys: list[pa.Array] = []
    splits: list[str] = []
    for batch in iter_batches(store, ["key", "split", "similarity", "width", "height"], selected=False):
        found, codes = np.unique(batch["split"].astype(str), return_inverse=True)
        splits += [name for name in found.tolist() if name not in splits]
        columns["split"].append(np.array([splits.index(name) for name in found.tolist()], np.int32)[codes])
        columns["side"].append(np.minimum(batch["width"], batch["height"]))
        columns["similarity"].append(batch["similarity"])
        keys.append(pa.array(batch["key"], pa.string()))
    split, similarity, side = (np.concatenate(values) for values in columns.values())
    num = len(split)
    return Verdicts(
        keys=pa.concat_arrays(keys), splits=splits, came=split, split=split.copy(), similarity=similarity, side=side, status=np.full(num, UNDECIDED, np.int8),
        value=np.full(num, np.nan), limit=np.full(num, np.nan), other=np.full(num, -1, np.int64), cluster=np.full(num, -1, np.int64),
    )  # fmt: skip


def _take_over(rows: Verdicts, out: Path) -> float | None:
    """Takes over what was decided before on rows that are the same; the limit of similarity, None where nothing was."""
    if not (out / ROWS).is_file():
        return None
    table = read_table(out / ROWS, SCHEMA)
    places = pc.index_in(rows.keys, value_set=table["key"].combine_chunks())
    known = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
    held = table.take(places.drop_null())
    same = held["similarity"].to_numpy() == rows.similarity[known]
    known, held = known[same], held.filter(pa.array(same))
    for split in pc.unique(held["split"]).to_pylist():
        _number(rows, split)
    rows.status[known] = pc.index_in(held["status"], value_set=pa.array(STATUSES)).to_numpy()
    rows.split[known] = pc.index_in(held["split"], value_set=pa.array(rows.splits)).to_numpy()
    rows.value[known], rows.limit[known] = (held[name].to_numpy(zero_copy_only=False) for name in ("value", "limit"))
    rows.other[known] = pc.fill_null(pc.index_in(held["other"].combine_chunks(), value_set=rows.keys), -1).to_numpy()  # null where it has gone
    in_cluster = np.flatnonzero(held["cluster"].is_valid().to_numpy())
    _, first, cluster = np.unique(np.array(held["cluster"].drop_null().to_pylist(), str), return_index=True, return_inverse=True)
    rows.cluster[known[in_cluster]] = known[in_cluster][first[cluster]]  # the row that gave the cluster its name may have gone
    return float((table.schema.metadata or pq.read_schema(out / ROWS).metadata)[LIMIT])


def _decide_clusters(store: Path, rows: Verdicts, config: SelectConfig, out: Path) -> None:
    takes_part, is_new = np.isin(rows.status, (UNDECIDED, KEPT, DUPLICATE)), rows.status == UNDECIDED
    asked = [select_inputs(store), identity(config), *(hashlib.sha256(np.packbits(mask).tobytes()).hexdigest() for mask in (takes_part, is_new))]
    scratch = out / f"links-{fingerprint(asked)}"
    for stale in set(out.glob("links-*")) - {scratch}:
        remove(stale)
    search = Search(config.near_similarity, config.exact_rows, config.probes)
    train, drop = _number(rows, TRAIN), config.near_duplicates == "drop"
    decide_clusters(
        rows, lambda: _vectors(store, takes_part), takes_part, emb_width(store), search, train=train, crossing=config.crossing, drop=drop, scratch=scratch
    )
    remove(scratch)


def _vectors(store: Path, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of row numbers and image embeddings of the chosen rows (n,) bool."""
    begin = 0
    for batch in iter_batches(store, ["image_emb"], selected=False):
        rows = np.flatnonzero(chosen[begin : begin + len(batch["image_emb"])])
        yield begin + rows, batch["image_emb"][rows]
        begin += len(batch["image_emb"])


def _write_rows(out: Path, rows: Verdicts, store: Path, limit: float) -> None:
    paths = part_paths(store)
    ends = np.cumsum([pq.read_metadata(path).num_rows for path in paths])
    metadata = {PARTS: " ".join(path.stem for path in paths), LIMIT: repr(limit)}
    with replacing(out / ROWS) as aside, pq.ParquetWriter(aside, SCHEMA.with_metadata(metadata), compression="zstd", write_page_checksum=True) as file:
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            file.write_table(_table(rows, slice(begin, end)), row_group_size=MAX_SHARD_SIZE)


def _table(rows: Verdicts, part: slice) -> pa.Table:
    limit = rows.limit[part]
    columns = {
        "key": rows.keys.slice(part.start, part.stop - part.start),
        "split": pa.array(np.array(rows.splits, object)[rows.split[part]], pa.string()),
        "status": pa.array(np.array(STATUSES, object)[rows.status[part]], pa.string()),
        "value": pa.array(rows.value[part], mask=np.isnan(limit)),
        "limit": pa.array(limit, mask=np.isnan(limit)),
        "other": _keys_at(rows, rows.other[part]),
        "cluster": _keys_at(rows, rows.cluster[part]),
        "similarity": pa.array(rows.similarity[part], pa.float32()),
    }
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _keys_at(rows: Verdicts, numbers: np.ndarray) -> pa.Array:
    """The keys of rows; null where the number is negative."""
    return rows.keys.take(pa.array(numbers, mask=numbers < 0))


def _measure_leakage(store: Path, rows: Verdicts, out: Path, config: SelectConfig) -> dict[str, Any]:
    """Writes the table of evaluation rows and their nearest training rows; returns what it says of each split, before and after."""
    train = _number(rows, TRAIN)
    came, now = rows.came != train, (rows.split != train) & (rows.status == KEPT)
    queries = chosen_queries(came, config.leakage_rows)
    stays = now[queries]
    sides = [Sides(queries, ~came)]
    if not stays.all() or not np.array_equal(~came, (rows.split == train) & (rows.status == KEPT)):
        sides.append(Sides(queries[stays], (rows.split == train) & (rows.status == KEPT)))
    found = nearest_training(lambda: _vectors(store, np.ones(len(rows), bool)), emb_width(store), sides)
    before, after = found[0], found[-1]
    split = np.array(rows.splits, object)[rows.came[queries]]
    columns: dict[str, Any] = {"key": _keys_at(rows, queries), "split": pa.array(split, pa.string())}
    for name, answer, asked in (("before", before, np.ones(len(queries), bool)), ("after", after, stays)):
        cosines, nearest = np.full(len(queries), -np.inf, np.float32), np.full(len(queries), -1, np.int64)
        cosines[asked], nearest[asked] = answer.cosines, answer.rows
        columns[f"similarity_{name}"] = pa.array(cosines, pa.float32(), mask=nearest < 0)
        columns[f"nearest_{name}"] = _keys_at(rows, nearest)
    with replacing(out / LEAKAGE_TABLE) as aside:
        pq.write_table(pa.table([columns[name] for name in LEAKAGE.names], schema=LEAKAGE), aside)
    of_split = {
        name: {
            "before": summary(before.cosines[split == name], config.near_similarity),
            "after": summary(after.cosines[split[stays] == name], config.near_similarity),
        }
        for name in sorted(set(split.tolist()))
    }
    return {"threshold": config.near_similarity, "splits": of_split}
