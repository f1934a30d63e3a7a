"""What the Prefect page shows of a run: counts, metrics, pictures, progress. Copies only; the files on disk are the results.

A server that is away never stops the work: what it would have been shown is dropped with a warning.
"""

import base64
import io
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from PIL import Image
from prefect.artifacts import create_image_artifact, create_link_artifact, create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.logging import get_logger

from unclip.evaluation.gate import numbers_of
from unclip.files import read_json
from unclip.models import paths_of
from unclip.night import Night

MAX_IMAGE_BYTES = 700_000  # as base64 a third more: Prefect keeps it in its database
MAX_METRIC_ROWS = 300
NOT_METRICS = ("config", "environment")  # sections of the report that the run page shows already, or nobody looks for there
SECONDS_BETWEEN_UPDATES = 10.0
UNREACHABLE = (httpx.HTTPError, RuntimeError)  # Prefect's client raises a plain RuntimeError where it can't connect
COUNTED = re.compile(r": ([\d,]+)/([\d,]+), ")  # the lines of unclip.progress

_log = get_logger("unclip")
T = TypeVar("T")


def show_counts(counts: Mapping[str, Mapping[str, Any]]) -> None:
    """A table of the rows that went in, were kept and were rejected, one line a stage."""
    rows = [_counts_row(stage, counted) for stage, counted in counts.items()]
    _offer(lambda: create_table_artifact(rows, key=f"{next(iter(counts))}-counts" if len(counts) == 1 else "counts", description="Rows in = kept + rejected"))


def _counts_row(stage: str, counted: Mapping[str, Any]) -> dict[str, Any]:
    rejected = counted.get("rejected") or {}
    others = flat({name: value for name, value in counted.items() if name not in ("rows_in", "kept", "rejected")})
    return {
        "stage": stage,
        "rows in": counted.get("rows_in", ""),
        "kept": counted.get("kept", ""),
        "rejected": sum(rejected.values()) if "kept" in counted else "",
        "reasons": ", ".join(f"{reason} {number}" for reason, number in sorted(rejected.items())),
        "more": ", ".join(f"{name} {value}" for name, value in sorted(others.items())),
    }


def show_report(report: Path) -> None:
    """The metrics, the sample grid and the place of a report folder; what is not there is left out."""
    if (report / "report.json").is_file():
        metrics = flat({section: content for section, content in read_json(report / "report.json").items() if section not in NOT_METRICS})
        rows = [{"metric": name, "value": value} for name, value in list(metrics.items())[:MAX_METRIC_ROWS]]
        _offer(lambda: create_table_artifact(rows, key="metrics", description=f"From {report / 'report.json'}"))
    if (report / "grid.png").is_file():
        picture = data_uri(report / "grid.png")
        _offer(lambda: create_image_artifact(picture, key="samples", description=f"From {report / 'grid.png'}"))
    if (report / "index.html").is_file():
        page = (report / "index.html").absolute()
        _offer(lambda: create_link_artifact(page.as_uri(), link_text=str(page), key="report", description="Open this page on the machine that made it"))


def show_numbers(night: Night) -> None:
    """What was measured of a version, and by how much it differs from the models that it was measured against."""
    report = read_json(paths_of(night.config).report / "report.json")
    before = None if night.rival is None else read_json(paths_of(night.rival).report / "report.json")
    earlier = {} if before is None else numbers_of(before)
    rows = []
    for name, value in numbers_of(report).items():
        was = earlier.get(name)
        change = None if value is None or was is None else value - was
        rows.append({"number": name, night.version.name: _shown(value), "in use before": _shown(was), "change": _shown(change)})
    _offer(lambda: create_table_artifact(rows, key="versions", description=f"{night.version.name} beside {night.version.parent or 'nothing'}"))


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def flat(content: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested metrics as one level: {"prior": {"cosine": 0.7}} is {"prior.cosine": 0.7}."""
    if isinstance(content, Mapping):
        return {name: value for key, inner in content.items() for name, value in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}
    return {prefix: content if isinstance(content, str | int | float | bool) else json.dumps(content)}


def data_uri(picture: Path, max_bytes: int = MAX_IMAGE_BYTES) -> str:
    """A picture as a data: URI, as a page from a server can show it; halved until it is small enough."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    while True:
        written = io.BytesIO()
        image.save(written, format="JPEG", quality=85)
        if written.tell() <= max_bytes:
            return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)


class Progress:
    """A progress bar on the run's page, moved by the lines that a stage says, at most once in ten seconds."""

    def __init__(self, stage: str) -> None:
        self._key = f"{stage}-progress"
        self._artifact: UUID | None = None
        self._next = 0.0

    def read(self, line: str) -> None:
        """Moves the bar if the line counts something."""
        percent = percent_in(line)
        if percent is None or (time.monotonic() < self._next and percent < 100):
            return
        if self._artifact is None:
            self._artifact = cast(UUID | None, _offer(lambda: create_progress_artifact(percent, key=self._key, description=line)))
        else:
            artifact = self._artifact
            _offer(lambda: update_progress_artifact(artifact, percent, description=line))
        self._next = time.monotonic() + SECONDS_BETWEEN_UPDATES


def percent_in(line: str) -> float | None:
    """How far a line of `unclip.progress` says that the work is, None where it is no such line."""
    counted = COUNTED.search(line)
    if counted is None:
        return None
    done, total = (int(number.replace(",", "")) for number in counted.groups())
    return min(100.0, 100.0 * done / total) if total else 100.0


def _offer(show: Callable[[], T]) -> T | None:
    try:
        return show()
    except UNREACHABLE as error:
        _log.warning("the Prefect server took no artifact (%s: %s); the work goes on", type(error).__name__, error)
        return None
