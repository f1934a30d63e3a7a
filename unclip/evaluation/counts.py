"""Where did every row go, and what did each stage cost? Read from the manifests of all stages."""

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unclip.data.manifest import MANIFEST, Manifest, finished_manifest
from unclip.data.store import splits_of
from unclip.evaluation.heldout import TRAIN
from unclip.layout import Paths

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def stage_folders(paths: Paths) -> dict[str, Path]:
    """The folder of each stage that comes before the evaluation, in their order; a root without upsamplers has none of theirs."""
    folders = {
        "source": paths.source, "download": paths.shards, "curate": paths.curated, "clip": paths.clip, "embed": paths.embeddings,
        "select": paths.selected, "index": paths.index, "prior": paths.prior, "decoder": paths.decoder,
    }  # fmt: skip
    return folders | ({"upsampler": paths.upsampler} if (paths.upsampler / MANIFEST).is_file() else {})


def read_manifests(paths: Paths) -> dict[str, Manifest]:
    """The manifest of every stage before this one.

    Raises:
        UnclipError: one has not finished.
    """
    return {stage: finished_manifest(folder, stage) for stage, folder in stage_folders(paths).items()}


def measure_counts(manifests: Mapping[str, Manifest], store: Path) -> dict[str, Any]:
    """The rows of every stage, and whether they add up, within each stage and from one to the next."""
    return add_up({stage: manifest.counts for stage, manifest in manifests.items()}, splits_of(store))


def add_up(counts: Mapping[str, Mapping[str, Any]], splits: Mapping[str, int]) -> dict[str, Any]:
    """Compares the counts of stages with each other, given the rows that each split of the store has.

    Returns:
        `rows`, one entry a stage; `splits`; `adds_up`; and `problems`, a sentence for each thing that does not add up.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    expected = expected_rows(counts, splits)
    for stage, counted in counts.items():
        if "rows_in" not in counted:  # a published CLIP was not trained on any row
            rows.append({"stage": stage, "rows_in": None, "kept": None, "rejected": {}, "expected": None, "adds_up": True})
            continue
        rows_in, kept, rejected = counted["rows_in"], counted["kept"], dict(counted["rejected"])
        found = []
        if rows_in != kept + sum(rejected.values()):
            found.append(f"{stage}: {rows_in} rows came in, but {kept} kept and {sum(rejected.values())} rejected make {kept + sum(rejected.values())}")
        if stage in expected and rows_in != expected[stage]:
            found.append(f"{stage}: {rows_in} rows came in, but the stages before it left {expected[stage]} for it; run it again")
        rows.append({"stage": stage, "rows_in": rows_in, "kept": kept, "rejected": rejected, "expected": expected.get(stage), "adds_up": not found})
        problems += found
    if sum(splits.values()) != counts["select"]["kept"]:
        problems.append(f"select: {counts['select']['kept']} rows were kept, but the store gives {sum(splits.values())}; run `unclip embed` again")
    return {"rows": rows, "splits": dict(splits), "adds_up": not problems, "problems": problems}


def expected_rows(counts: Mapping[str, Mapping[str, Any]], splits: Mapping[str, int]) -> dict[str, int]:
    """The rows that each stage must have been given, from what the stages before it left.

    A CLIP trained here is made once and stays as it is when the shards grow, so nothing can be expected of its rows.
    """
    source = counts["source"]
    unembedded = counts["decoder"].get("rejected", {}).get("embedding missing", 0)  # pictures that the store does not know
    return {
        "download": source.get("rows", source["kept"]),  # a source that grew keeps the rows of its earlier runs
        "curate": counts["download"]["kept"],
        "embed": counts["curate"]["kept"],
        "select": counts["embed"]["kept"],
        "index": counts["select"]["kept"],
        "prior": splits.get(TRAIN, 0),
        "decoder": splits.get(TRAIN, 0) + unembedded,
        "upsampler": splits.get(TRAIN, 0) + unembedded,  # the pictures that the decoder is trained on
    }


def measure_stages(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """Seconds, peak memory and parts of each stage."""
    return [stage_cost(stage, m.seconds, m.peak_memory_bytes, parts=m.counts.get("parts"), steps=m.counts.get("steps")) for stage, m in manifests.items()]


def stage_cost(stage: str, seconds: float, peak_memory_bytes: int, *, parts: int | None, steps: int | None) -> dict[str, Any]:
    """One line of the cost table; `parts` and `steps` are None where a stage has none."""
    return {
        "stage": stage, "seconds": round(seconds, 3), "peak_memory_bytes": peak_memory_bytes, "peak_memory": human_bytes(peak_memory_bytes),
        "parts": parts, "steps": steps,
    }  # fmt: skip


def human_bytes(num: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in UNITS[:-1]:
        if num < 1024:
            return f"{num:.0f} {unit}" if unit == UNITS[0] else f"{num:.1f} {unit}"
        num /= 1024
    return f"{num:.1f} {UNITS[-1]}"


def own_peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
