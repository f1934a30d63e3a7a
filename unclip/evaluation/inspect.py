"""What a result folder holds, as tables for a person: store, checkpoint, run, index, or any folder with a manifest."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from safetensors import safe_open

from unclip import checkpoint
from unclip.clip import CONFIG as CLIP_CONFIG
from unclip.data.cache import cache_sizes
from unclip.data.manifest import MANIFEST, Manifest, read_manifest
from unclip.data.rules import RULES
from unclip.data.store import iter_batches, num_rows, part_paths
from unclip.files import UnclipError, read_json
from unclip.layout import SELECTED
from unclip.printable import printable

HISTOGRAM_BINS = 12
BAR_WIDTH = 40


def inspect(path: Path) -> RenderableType:
    """Describes a result folder.

    Raises:
        UnclipError: the path is missing, or holds nothing that unclip made.
    """
    if not path.exists():
        raise UnclipError(f"expected a result of unclip in {path}, but there is no such path")
    if (path / checkpoint.CONFIG).is_file() and (path / checkpoint.MODEL).is_file():
        return _checkpoint(path)
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None:
        shown: list[RenderableType] = [_manifest(path, manifest)]
        if manifest.stage == "embed" and any(path.glob("[0-9]*.parquet")):
            shown.append(_store(path))
        if manifest.stage in ("curate", "select") and manifest.finished:
            shown.append(describe_curation(path, manifest))
        if manifest.stage == "clip" and (path / CLIP_CONFIG).is_file():
            shown.append(_table("CLIP", read_json(path / CLIP_CONFIG)["model_cfg"].items()))
        if steps := checkpoint.steps_of(path):
            shown.append(_checkpoint(checkpoint.step_folder(path, steps[-1])))
        return Group(*shown)
    folders = [folder for depth in ("*", "*/*", "*/*/*") for folder in sorted(path.glob(depth))]
    stages = [(folder, found) for folder in folders if folder.is_dir() and (found := read_manifest(folder))]
    if stages:
        return _root(path, stages)
    raise UnclipError(f"{path} holds nothing that unclip made: expected a {MANIFEST}, a checkpoint, or a data root with stage folders")


def _table(title: str, rows: Iterable[tuple[object, object]]) -> Table:
    table = Table("", "", title=Text(title), show_header=False, title_justify="left")
    for name, value in rows:
        table.add_row(Text(printable(str(name))), Text(printable(value) if isinstance(value, str) else json.dumps(value)))
    return table


def _human(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _root(path: Path, stages: list[tuple[Path, Manifest]]) -> Table:
    table = Table("folder", "stage", "state", "rows in", "kept", "rejected", "seconds", "size", title=Text(str(path)), title_justify="left")
    for folder, manifest in stages:
        counts, state = manifest.counts, "finished" if manifest.finished else "stopped before its end"
        rejected = sum(counts.get("rejected", {}).values())
        row = [
            str(folder.relative_to(path)),
            manifest.stage,
            state,
            counts.get("rows_in", ""),
            counts.get("kept", ""),
            rejected,
            f"{manifest.seconds:.1f}",
            _human(_size(folder)),
        ]
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _manifest(path: Path, manifest: Manifest) -> Table:
    state = "finished" if manifest.finished else f"stopped before its end; run `unclip {manifest.stage}` to go on"
    rows = [("stage", manifest.stage), ("state", state), ("digest", manifest.digest), ("inputs", dict(manifest.inputs)), ("counts", dict(manifest.counts))]
    rows += [
        ("seconds", f"{manifest.seconds:.1f}"),
        ("peak memory", _human(manifest.peak_memory_bytes)),
        ("size", _human(_size(path))),
        ("config", dict(manifest.config)),
    ]
    return _table(str(path), rows)


def _checkpoint(path: Path) -> Table:
    config, state = read_json(path / checkpoint.CONFIG), read_json(path / checkpoint.STATE) if (path / checkpoint.STATE).is_file() else {}
    with safe_open(path / checkpoint.MODEL, "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
    parameters = sum(int(np.prod(shape)) for shape in shapes.values())
    rows = [
        ("kind", config["kind"]),
        ("step", state.get("step", "none: closed form")),
        ("samples seen", state.get("samples", "")),
        ("parameters and buffers", f"{parameters:,} in {len(shapes)} tensors"),
    ]
    return _table(str(path), [*rows, ("network", config["network"]), ("size", _human(_size(path)))])


def _store(path: Path) -> RenderableType:
    parts = part_paths(path)
    schema = pq.read_schema(parts[0])
    said = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items() if name.startswith(b"clip") or name == b"normalised"}
    norms: dict[str, list[np.ndarray]] = {"image_emb": [], "text_emb": []}
    similarity, bad, splits = [], 0, dict[str, int]()
    for batch in iter_batches(path, ["split", "similarity", *norms], selected=False):
        finite = np.isfinite(batch["similarity"])
        for name, held in norms.items():
            lengths = np.linalg.norm(batch[name].astype(np.float32), axis=1)
            finite &= np.isfinite(lengths) & (lengths > 0)
            held.append(lengths)
        bad += int((~finite).sum())
        similarity.append(batch["similarity"][finite])
        for split, count in zip(*np.unique(batch["split"].astype(str), return_counts=True), strict=True):
            splits[str(split)] = splits.get(str(split), 0) + int(count)
    joined = {name: np.concatenate(held) for name, held in norms.items()}
    rows: list[tuple[object, object]] = [
        ("rows", f"{sum(splits.values()):,} in {len(parts)} parts"),
        ("splits", splits),
        ("selected rows", f"{num_rows(path):,}" if read_manifest(path / SELECTED) else "all: `unclip select` has not been there"),
        ("columns", ", ".join(schema.names)),
        *said.items(),
    ]
    rows += [(f"norm of {name}", f"mean {values.mean():.3f}, {values.min():.3f} to {values.max():.3f}") for name, values in joined.items()]
    rows.append(("bad rows (not finite, or zero)", str(bad)))
    rows.append(("training cache", ", ".join(f"{split} {_human(size)}" for split, size in cache_sizes(path).items()) or "none"))
    return Group(_table("embedding store", rows), Text("similarity of picture and caption"), _histogram(np.concatenate(similarity)))


def describe_curation(path: Path, manifest: Manifest) -> RenderableType:
    """What each rule of `curate` or `select` took, and of `select` how near evaluation comes to training."""
    rules = _narrow("what each rule took", "rule", "rows", "share", "allows", "measured", "such as")
    for row in pq.read_table(path / RULES).to_pylist():
        ends = [_span(row[f"least_{name}"], row[f"most_{name}"]) for name in ("limit", "value")]
        rules.add_row(*map(Text, (row["reason"], f"{row['rows']:,}", f"{row['share']:.2%}", *ends, "\n".join(row["examples"][:2]))))
    found = manifest.counts.get("leakage", {}).get("splits")
    if not found:
        return rules
    title = f"nearest training row of evaluation rows: share at a cosine of {manifest.counts['leakage']['threshold']} or more"
    leakage = _narrow(title, "split", "rows\nbefore", "share\nnear", "largest", "rows\nafter", "share\nnear", "largest")
    for split, times in found.items():
        cells = [(f"{of['rows']:,}", f"{of['share_near']:.2%}", _span(of["largest"], of["largest"])) for of in (times["before"], times["after"])]
        leakage.add_row(Text(printable(split)), *cells[0], *cells[1])
    return Group(rules, leakage)


def _narrow(title: str, first: str, *columns: str) -> Table:
    """A table that fits a narrow terminal: what stands first wraps, and all else keeps its line."""
    table = Table(first, title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _span(least: float | None, most: float | None) -> str:
    if least is None or most is None:
        return ""
    return f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"


def _histogram(values: np.ndarray) -> Table:
    counts, edges = np.histogram(values, bins=HISTOGRAM_BINS)
    table = Table(show_header=False, box=None)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        table.add_row(f"{low:.3f} to {high:.3f}", "█" * round(BAR_WIDTH * count / max(counts.max(), 1)), f"{count:,}")
    return table
