"""The books: they balance, and are flagged where they do not."""

import copy
from typing import Any

import pytest

from unclip.evaluation.counts import add_up, human_bytes, own_peak_memory

SPLITS = {"train": 76, "heldout": 10}
COUNTS: dict[str, dict[str, Any]] = {
    "source": {"rows_in": 105, "kept": 100, "rejected": {"url missing": 5}, "rows": 100},
    "download": {"rows_in": 100, "kept": 91, "rejected": {"not found": 8, "timed out": 1}},
    "curate": {"rows_in": 91, "kept": 89, "rejected": {"caption is a link": 2}},
    "clip": {"rows_in": 80, "kept": 80, "rejected": {}},
    "embed": {"rows_in": 89, "kept": 88, "rejected": {"other": 1}},
    "select": {"rows_in": 88, "kept": 86, "rejected": {"near duplicate": 2}, "moved": 3},
    "index": {"rows_in": 86, "kept": 86, "rejected": {}},
    "prior": {"rows_in": 76, "kept": 76, "rejected": {}},
    "decoder": {"rows_in": 77, "kept": 75, "rejected": {"embedding missing": 1, "image missing": 1}},
}


def test_books_that_balance_are_said_to() -> None:
    counted = add_up(COUNTS, SPLITS)
    assert counted["adds_up"]
    assert counted["problems"] == []
    assert [row["stage"] for row in counted["rows"]] == list(COUNTS)
    assert counted["rows"][1]["rejected"] == {"not found": 8, "timed out": 1}


@pytest.mark.parametrize(
    ("stage", "name", "value", "said"),
    [
        ("download", "kept", 90, "download: 100 rows came in, but 90 kept and 9 rejected make 99"),
        ("curate", "rows_in", 90, "curate: 90 rows came in, but the stages before it left 91"),
        ("embed", "rows_in", 90, "embed: 90 rows came in, but the stages before it left 89"),
        ("select", "rows_in", 89, "select: 89 rows came in, but the stages before it left 88"),
        ("index", "rows_in", 87, "index: 87 rows came in, but the stages before it left 86"),
        ("prior", "rows_in", 75, "prior: 75 rows came in, but the stages before it left 76"),
        ("decoder", "rows_in", 78, "decoder: 78 rows came in, but the stages before it left 77"),
        ("source", "rows", 101, "download: 100 rows came in, but the stages before it left 101"),
    ],
)
def test_a_row_that_is_lost_is_flagged_where_it_was_lost(stage: str, name: str, value: int, said: str) -> None:
    counts = copy.deepcopy(COUNTS)
    counts[stage][name] = value
    counted = add_up(counts, SPLITS)
    assert not counted["adds_up"]
    assert any(problem.startswith(said) for problem in counted["problems"])
    flagged = {row["stage"] for row in counted["rows"] if not row["adds_up"]}
    assert said.split(":")[0] in flagged


def test_a_store_with_other_rows_than_its_manifest_says_is_flagged() -> None:
    assert "the store gives 87" in add_up(COUNTS, SPLITS | {"other": 1})["problems"][-1]


def test_a_published_clip_has_no_rows_and_a_grown_source_keeps_its_old_ones() -> None:
    counts = copy.deepcopy(COUNTS)
    counts["clip"] = {"steps": 0}
    counts["source"] = {"rows_in": 20, "kept": 15, "rejected": {"url missing": 5}, "rows": 100}
    counted = add_up(counts, SPLITS)
    assert counted["adds_up"]
    assert counted["rows"][3]["rows_in"] is None


def test_bytes_are_told_in_units() -> None:
    assert [human_bytes(num) for num in (12, 1536, 3 * 2**30, 5 * 2**50)] == ["12 bytes", "1.5 KiB", "3.0 GiB", "5120.0 TiB"]
    assert 2**20 < own_peak_memory() < 2**45
