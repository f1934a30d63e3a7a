"""Artifacts: what a report folder holds is shown, small enough, and a server that is away stops nothing."""

import base64
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.artifacts import MAX_IMAGE_BYTES, Progress, announce, data_uri, flat, percent_in, show_counts, show_report
from unclip.progress import Bar

COUNTS = {"source": {"rows_in": 120, "kept": 117, "rejected": {"no caption": 3}, "shards": 3}, "index": {"rows": 117}}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(json.dumps({"prior": {"cosine": 0.7, "interval": [0.6, 0.8]}}))
    (tmp_path / "index.html").write_text("<p>report</p>")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)  # 3 MB as it is
    Image.fromarray(noise).save(tmp_path / "grid.png")
    return tmp_path


def test_a_report_folder_is_shown(harness: None, report: Path) -> None:
    @flow
    def show() -> None:
        show_counts(COUNTS)
        show_report(report)
        progress = Progress("embed")
        progress.read("embed: 30/120, 4.0 rows/s, 23 s left")
        progress.read("embed: 31/120, 4.0 rows/s, 23 s left")  # too soon to be shown
        progress.read("embed: 120/120, 4.0 rows/s")

    show()
    with get_client(sync_client=True) as client:
        shown = {one.key: one.data for one in client.read_artifacts()}
    assert shown.keys() == {"counts", "metrics", "samples", "report", "embed-progress"}
    assert json.loads(shown["counts"])[0] == {"stage": "source", "rows in": 120, "kept": 117, "rejected": 3, "reasons": "no caption 3", "more": "shards 3"}
    assert {"metric": "prior.cosine", "value": 0.7} in json.loads(shown["metrics"])
    assert shown["samples"].startswith("data:image/jpeg;base64,")
    assert (report / "index.html").as_uri() in shown["report"]
    assert shown["embed-progress"] == 100.0


def test_what_a_report_does_not_hold_is_left_out(tmp_path: Path) -> None:
    show_report(tmp_path)


@pytest.mark.filterwarnings("ignore:Artifact creation outside")
def test_a_dead_server_stops_nothing() -> None:
    started = time.monotonic()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        show_counts(COUNTS)
        Progress("embed").read("embed: 30/120, 4.0 rows/s")
        announce("disk-low", "3 GB are free, and the prior would take 5")
    assert time.monotonic() - started < 60


def test_a_picture_becomes_small_enough_and_stays_a_picture(report: Path) -> None:
    kind, _, content = data_uri(report / "grid.png").partition(",")
    written = base64.b64decode(content)
    assert kind == "data:image/jpeg;base64"
    assert len(written) <= MAX_IMAGE_BYTES
    assert Image.open(io.BytesIO(written)).size == (750, 750)


def test_nested_metrics_become_one_level() -> None:
    assert flat({"a": {"b": 1, "c": {"d": "x"}}, "e": [1, 2], "f": None}) == {"a.b": 1, "a.c.d": "x", "e": "[1, 2]", "f": "null"}


def test_the_lines_of_the_stages_own_progress_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("embed", 4000, "rows", 0, None)
    bar.advance(1000)
    bar.end()
    assert percent_in(capsys.readouterr().err) == 25.0


@pytest.mark.parametrize("line", ["loss 0.1", "see http://127.0.0.1:80/a", "12/24"])
def test_other_lines_move_nothing(line: str) -> None:
    assert percent_in(line) is None
