"""The numbers of a report as a long table: section, row, metric, value, for whoever compares runs."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

TABLE = pa.schema([(name, pa.string()) for name in ("section", "row", "metric")] + [("value", pa.float64())])


def long_rows(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every number of the report as section, row, metric, value."""
    for row in report["counts"]["rows"]:
        numbers = {name: row[name] for name in ("rows_in", "kept")} | {f"rejected: {reason}": number for reason, number in row["rejected"].items()}
        yield from _entries("counts", row["stage"], numbers)
    for split, times in report["leakage"].get("splits", {}).items():
        for time_of, numbers in times.items():
            yield from _entries("leakage", f"{split} / {time_of}", numbers)
    for split, numbers in report["clip"].items():
        yield from _entries("clip", split, numbers)
    yield from _of_priors(report)
    yield from _of_pictures(report)
    for stage in report["stages"]:
        yield from _entries("stages", stage["stage"], {name: stage[name] for name in ("seconds", "peak_memory_bytes")})
    for name, numbers in report["curves"].items():
        yield from _entries("curves", name, numbers)


def _of_priors(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for split, found in report["prior"].items():
        for name, row in found["rows"].items():
            intervals = row["intervals"] | {"draw_spread_ratio": row["draw_spread_ratio_interval"]}
            ends = {f"{metric} {end}": value for metric, pair in intervals.items() if pair for end, value in zip(("low", "high"), pair, strict=True)}
            yield from _entries("prior", f"{split} / {name}", {metric: value for metric, value in row.items() if "interval" not in metric} | ends)
        for kind, gain in found["reranking"]["gains"].items():
            yield from _entries(
                "reranking", f"{split} / {kind}, best against first", {f"recall_at_10 {end}": value for end, value in gain["recall_at_10"].items()}
            )
        for name, row in (found["reranking"]["ceiling"] or {"rows": {}})["rows"].items():
            recalls = {f"{metric} {end}": value for metric in row if metric != "median_rank" for end, value in row[metric].items()}
            yield from _entries("reranking", f"{split} / {name}", recalls | {"median_rank": row["median_rank"]})
        yield from _entries("prior", f"{split} / real images of one caption", {"draw_spread": found["real_spread"]["value"]})
    for point in report["sweeps"]["points"]:
        of_point = {name: value for name, value in point.items() if name not in ("curve", "prior", "sampler", "value")}
        label = " / ".join(part for part in (point["curve"], point["prior"], point["sampler"]) if part)
        yield from _entries("sweeps", f"{label} / {point['value']:g}", of_point)


def _of_pictures(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    judges = [("judge", judge) for judge in report["judge"]["judges"]]
    if report["embedding"]["probe"]:
        judges.append(("embedding", report["embedding"]["probe"]))
    for section, judge in judges:
        for split, found in judge["splits"].items():
            for row, metrics in found["rows"].items():
                for metric, numbers in metrics.items():
                    yield from _entries(section, f"{split} / {judge['name']} / {row}", {f"{metric} {name}": value for name, value in numbers.items()})
        yield from _entries(section, f"{judge['name']} / real pictures that it was checked on", judge["checked"].get("accuracy", {}))
    for split, kinds in report["embedding"]["hard_negatives"].items():
        for kind, numbers in kinds.items():
            yield from _entries("embedding", f"{split} / captions with {kind} exchanged", numbers)
    for row in report["ladder"]["rows"]:
        for split, numbers in row["splits"].items():
            yield from _entries("ladder", f"{split} / {row['name']}", numbers)
        distances = {name: row[name] for name in ("frechet_clip", "frechet_random")}
        yield from _entries("ladder", row["name"], distances | {f"binding {name}": value for name, value in (row["binding"] or {}).items()})
    if report["copies"]:
        for name, row in report["copies"]["rows"].items():
            flagged = {f"flagged {end}": value for end, value in (row["flagged"] or {}).items()}
            yield from _entries("copies", name, {"median": row["median"], "least": row["least"]} | flagged)
        yield from _entries("copies", "real pictures", {"median": report["copies"]["real_median"], "threshold": report["copies"]["threshold"]})
    if report["manipulations"]:
        for trip in report["manipulations"]["round_trip"]:
            yield from _entries("manipulations", f"round trip / {trip['steps']}", {name: trip[name] for name in ("psnr", "max_error")})
        for varied in report["manipulations"]["variations"]:
            yield from _entries("manipulations", f"variations / eta {varied['eta']:g}", {name: varied[name] for name in ("similarity", "diversity", "number")})
        for edited in (report["manipulations"]["edits"] or {"thetas": []})["thetas"]:
            shares = {f"{name} {end}": value for name in ("changed", "kept", "both") for end, value in edited[name].items()}
            yield from _entries("manipulations", f"edits / theta {edited['theta']:g}", shares)
    for target in report["targets"]:
        yield from _entries("targets", f"{target['split']} / {target['label']}", {name: target[name] for name in ("value", "low", "high", "number", "target")})


def _entries(section: str, row: str, numbers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, value in numbers.items():
        if value is not None:
            yield {"section": section, "row": row, "metric": metric, "value": float(value)}
