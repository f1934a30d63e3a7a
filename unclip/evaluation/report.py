"""The evaluate stage: runs every measurement and writes the report."""

import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from unclip.clip import Clip
from unclip.data.index import Index, open_index
from unclip.data.manifest import Manifest, Stage, identity, versions
from unclip.evaluation import clip, counts, curves, judge, ladder_plot, page, prior, sweeps
from unclip.evaluation.config import EvaluateSection, evaluate_inputs
from unclip.evaluation.heldout import SHAPES, TRAIN, HeldOut, Predictions, predict, read_held_out, read_pictures
from unclip.evaluation.pictures import comparison_sheet, contact_sheet, save_png
from unclip.files import fingerprint, read_json, remove_leftovers, replacing
from unclip.generate import Models
from unclip.layout import Paths
from unclip.prior.condition import Prior, PriorKind

STAGE = "evaluate"
REPORT, PAGE, GRID, METRICS, PICTURES, CURVES = "report.json", "index.html", "grid.png", "metrics.parquet", "pictures", "curves.png"
LADDER = "prior.png"
SHOWN_KINDS = {judge.REAL: "real", judge.DECODED: "reconstructed from its embedding", judge.PRIOR: "generated from the caption"}
TABLE = pa.schema([(name, pa.string()) for name in ("section", "row", "metric")] + [("value", pa.float64())])


def evaluate(paths: Paths, models: Models, priors: Mapping[PriorKind, Prior], section: EvaluateSection) -> Manifest:
    """Measures all and leaves `report.json`, `index.html`, `grid.png`, `metrics.parquet` and `pictures/`.

    Raises:
        UnclipError: an earlier stage has not finished, or there is no held-out row.
    """
    started = time.monotonic()
    stage = Stage(paths.report, STAGE, section, evaluate_inputs(paths))
    remove_leftovers(paths.report)
    seed, config = section.generate.seed, section.evaluate
    manifests, index = counts.read_manifests(paths), open_index(paths.index)
    splits = read_held_out(paths.embeddings, config, seed=seed)
    real = read_pictures(paths.shards, splits, image_size=models.decoder.config.unet.image_size)
    predictions, measured = measure_priors(paths, splits, models.clip, priors, index, section)
    pictures = [
        judge.make_pictures(held, seen, predicted, models, section.generate, num=config.num_pictures, batch_size=config.batch_size)
        for held, seen, predicted in zip(splits, real, predictions, strict=True)
    ]
    judged = judge.measure_judges(splits, real, pictures, models.clip, index, world=section.world, seed=seed)
    curve = curves.read_curves(paths, priors)
    report: dict[str, Any] = {
        "title": paths.root.name,
        "world": section.world,
        "counts": counts.measure_counts(manifests, paths.embeddings),
        "leakage": manifests["select"].counts["leakage"],
        "clip": clip.measure_clip(splits, world=section.world, seed=seed),
        **measured,
        "judge": judged,
        "quality": {"gap_closed": judge.gap_closed(judged, predictions[0].baseline)},
        "index": {name: value for name, value in manifests["index"].counts.items() if name in ("kept", "recall_at_10")},
        "curves": curves.summarise_curves(curve),
        "pictures": _write_pictures(paths.report, splits, pictures, section, predictions[0].baseline),
        "environment": environment(models, section.generate.seed),
        "config": {name: manifest.config for name, manifest in manifests.items()} | {STAGE: identity(section)},
    }
    curves.draw_curves(paths.report / CURVES, curve)
    ladder_plot.draw_ladder(paths.report / LADDER, report["prior"], report["sweeps"])
    own = counts.stage_cost(STAGE, time.monotonic() - started, counts.own_peak_memory(), parts=None, steps=None)
    report["stages"] = [*counts.measure_stages(manifests), own]
    report, report["not_a_number"] = without_nan(report)
    report["headline"] = headline(report)
    with replacing(paths.report / REPORT) as aside:  # not sorted: the order of the rows is that of the page
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(paths.report / METRICS) as aside:
        pq.write_table(pa.Table.from_pylist(list(long_rows(report)), schema=TABLE), aside, compression="zstd")
    with replacing(paths.report / PAGE) as aside:
        aside.write_text(page.render(read_json(paths.report / REPORT), paths.report), encoding="utf-8")
    captions = sum(len(held.test) for held in splits)
    made = sum(len(of_split[judge.PRIOR]) for of_split in pictures)
    digested = {name: report[name] for name in ("clip", "prior", "sweeps", "judge")}
    return stage.finish(counts={"rows_in": captions, "kept": captions, "rejected": {}, "pictures": made}, digest=fingerprint(digested))


def measure_priors(
    paths: Paths, splits: Sequence[HeldOut], clip: Clip, priors: Mapping[PriorKind, Prior], index: Index, section: EvaluateSection
) -> tuple[list[Predictions], dict[str, Any]]:
    """What needs no decoder: the predictions of each split, and the sections `prior` and `sweeps` of the report."""
    config, generate = section.evaluate, section.generate
    predictions = [
        predict(held.test, clip, priors, paths.embeddings, generate, prior=section.prior, batch_size=config.batch_size, label=held.split) for held in splits
    ]
    return predictions, {
        "prior": prior.measure_prior(splits, predictions, index, paths.embeddings, world=section.world, seed=generate.seed),
        "sweeps": sweeps.measure_sweeps(splits, clip, priors, index, paths.embeddings, generate, config, world=section.world),
    }


def _write_pictures(
    folder: Path, splits: Sequence[HeldOut], pictures: Sequence[Mapping[str, np.ndarray]], section: EvaluateSection, baseline: str
) -> dict[str, Any]:
    """Writes the samples and sheets, and says what is where, relative to the report's folder."""
    num = section.evaluate.num_shown
    samples: list[dict[str, Any]] = []
    comparisons: dict[str, str] = {}
    with replacing(folder / PICTURES) as aside:
        aside.mkdir()
        for number, (held, made) in enumerate(zip(splits, pictures, strict=True)):
            captions = held.test.captions[:num]
            for row, (caption, key, picture) in enumerate(zip(captions, held.test.keys[:num], made[judge.PRIOR][:num], strict=True)):
                name = f"sample-{number}-{row:03d}.png"
                Image.fromarray(picture).save(aside / name)
                wrong = judge.wrong_parts(picture, caption) if section.world == SHAPES else None
                samples.append({"split": held.split, "key": key, "caption": caption, "file": f"{PICTURES}/{name}", "wrong": wrong})
            # numbered, since the name of a split may hold anything
            comparisons[held.split] = f"{PICTURES}/compared-{number}.png"
            shown_kinds = SHOWN_KINDS | {baseline: f"from the {baseline}"}
            rows = {label: made[kind][: len(captions)] for kind, label in shown_kinds.items()}
            comparison_sheet(rows, captions).save(aside / f"compared-{number}.png")
    shown = np.concatenate([made[judge.PRIOR][:num] for made in pictures])
    save_png(folder / GRID, contact_sheet(shown, [sample["caption"] for sample in samples]))
    return {"grid": GRID, "curves": CURVES, "ladder": LADDER, "samples": samples, "comparisons": comparisons}


def environment(models: Models, seed: int) -> dict[str, Any]:
    """What the evaluation ran on."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory": counts.human_bytes(psutil.virtual_memory().total),
        "device": str(models.clip.device),
        "torch_threads": torch.get_num_threads(),
        "seed": seed,
        "clip": {"name": models.clip.name, "origin": models.clip.origin, "weights": models.clip.weights_hash},
    }


def headline(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The few numbers that one wants to see first: label, value, kind ("count", "share" or "seconds") and a note."""
    splits = report["counts"]["splits"]
    held_out = sum(number for name, number in splits.items() if name != TRAIN)
    tiles: list[dict[str, Any]] = [{"label": "training pairs", "value": splits.get(TRAIN, 0), "kind": "count", "note": f"{held_out:,} held out"}]
    ours = report["judge"]["judges"][-1]
    metric = report["quality"]["gap_closed"]["metric"]
    for split, found in ours["splits"].items():
        value, ceiling = found["rows"][judge.PRIOR][metric], found["rows"][judge.DECODED][metric]["mean"]
        label = "pictures with everything right" if metric == "all_right" else "pictures among the five nearest by pixels"
        note = f"{split}; {value['low']:.0%} to {value['high']:.0%}; with the true embedding {ceiling:.0%}"
        tiles.append({"label": label, "value": value["mean"], "kind": "share", "note": note})
    for split, found in report["prior"].items():
        rows, rival = found["rows"], found["verdict"]["recall"]["rival"]
        note = f"{split}; the best baseline ({rival}) {rows[rival]['recall_at_10']:.0%}, of {found['gallery']:,} pictures"
        tiles.append({"label": "prior recall@10", "value": rows[found["chosen"]]["recall_at_10"], "kind": "share", "note": note})
    for split, found in report["clip"].items():
        tiles.append({"label": "CLIP recall@1", "value": found["recall_at_1"], "kind": "share", "note": f"{split}; of {found['gallery']:,} pictures"})
    tiles.append({"label": "all stages", "value": sum(stage["seconds"] for stage in report["stages"]), "kind": "seconds", "note": "their last runs, added up"})
    return tiles


def long_rows(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every number of the report as section, row, metric, value, for whoever compares runs."""
    for row in report["counts"]["rows"]:
        numbers = {name: row[name] for name in ("rows_in", "kept")} | {f"rejected: {reason}": number for reason, number in row["rejected"].items()}
        yield from _entries("counts", row["stage"], numbers)
    for split, times in report["leakage"].get("splits", {}).items():
        for time_of, numbers in times.items():
            yield from _entries("leakage", f"{split} / {time_of}", numbers)
    for split, numbers in report["clip"].items():
        yield from _entries("clip", split, numbers)
    for split, found in report["prior"].items():
        for name, row in found["rows"].items():
            intervals = row["intervals"] | {"draw_spread_ratio": row["draw_spread_ratio_interval"]}
            ends = {f"{metric} {end}": value for metric, pair in intervals.items() if pair for end, value in zip(("low", "high"), pair, strict=True)}
            yield from _entries("prior", f"{split} / {name}", {metric: value for metric, value in row.items() if "interval" not in metric} | ends)
        yield from _entries("prior", f"{split} / real images of one caption", {"draw_spread": found["real_spread"]["value"]})
    for point in report["sweeps"]["points"]:
        of_point = {name: value for name, value in point.items() if name not in ("curve", "prior", "sampler", "value")}
        label = " / ".join(part for part in (point["curve"], point["prior"], point["sampler"]) if part)
        yield from _entries("sweeps", f"{label} / {point['value']:g}", of_point)
    for one in report["judge"]["judges"]:
        for split, found in one["splits"].items():
            for kind, metrics in found["rows"].items():
                for metric, numbers in metrics.items():
                    yield from _entries("judge", f"{split} / {one['name']} / {kind}", {f"{metric} {name}": value for name, value in numbers.items()})
    for stage in report["stages"]:
        yield from _entries("stages", stage["stage"], {name: stage[name] for name in ("seconds", "peak_memory_bytes")})
    for name, numbers in report["curves"].items():
        yield from _entries("curves", name, numbers)


def _entries(section: str, row: str, numbers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, value in numbers.items():
        if value is not None:
            yield {"section": section, "row": row, "metric": metric, "value": float(value)}


def without_nan(report: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same with None for every number that JSON can't hold, and the paths of those."""
    found: list[str] = []

    def cleaned(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {str(name): cleaned(inner, f"{path}.{name}" if path else str(name)) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(inner, f"{path}.{number}") for number, inner in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            found.append(path)
            return None
        return value

    return cleaned(report, ""), found
