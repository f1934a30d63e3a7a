"""How much of the way a prior closes, in closed form; and what reached which target."""

from typing import Any

import numpy as np
import pytest
from rich.console import Console

from unclip.evaluation.headline import headline
from unclip.evaluation.heldout import TEXT, TRUE
from unclip.evaluation.judge import Judge, report_of
from unclip.evaluation.picture_ladder import TOGETHER, closed_by, measure_picture_ladder
from unclip.evaluation.picture_ladder_plot import places_of
from unclip.evaluation.summary import ladder_table, targets_table
from unclip.evaluation.targets import measure_targets
from unclip.evaluation.ways import CAPTION_ALONE, REAL, SHUFFLED, TEXT_DECODER, Way, hidden_name

PRIOR = "diffusion best of 2"
WAYS = [
    Way(TRUE, TRUE), Way(PRIOR, PRIOR), Way(TEXT, TEXT), Way(TEXT_DECODER, TEXT, decoder="text"),
    *(Way(hidden_name(name), name, hidden="text") for name in (TRUE, PRIOR, TEXT)), Way(CAPTION_ALONE, TEXT, hidden="image"),
]  # fmt: skip


def shares(num: int, right: float) -> np.ndarray:
    return (np.arange(num) < round(num * right)).astype(np.float64)


def judged(num: int = 100, **given: float) -> dict[str, dict[str, np.ndarray]]:
    rates = {REAL: 1.0, TRUE: 0.9, PRIOR: 0.7, TEXT: 0.5, TEXT_DECODER: 0.8, CAPTION_ALONE: 0.6, SHUFFLED: 0.01}
    rates |= {hidden_name(TRUE): 0.6, hidden_name(PRIOR): 0.2, hidden_name(TEXT): 0.2}
    return {row: {"all_right": shares(num, rate), "binding": np.where(np.arange(num) < 10, 1.0, np.nan)} for row, rate in (rates | given).items()}


def ladder() -> dict[str, Any]:
    judge = Judge("program", "", ["all_right"], {"heldout-pair": judged(50), "heldout-scene": judged(100), "train": judged(20)})
    distances = {"n": 4, "axes": 1, "rows": {row: {"clip": 1.0, "random": 2.0} for row in judged()}}
    return measure_picture_ladder(WAYS, judge, "all_right", distances, seed=0)


def test_the_way_closed_runs_from_text_to_truth_among_those_that_see_the_same() -> None:
    values = {row: found["all_right"] for row, found in judged().items()}
    closed = {way.name: closed_by(way, values, seed=0) for way in WAYS}
    assert closed[PRIOR]["closed"] == pytest.approx((0.7 - 0.5) / (0.9 - 0.5))
    assert closed[PRIOR]["closed_low"] < 0.5 < closed[PRIOR]["closed_high"]
    assert closed[hidden_name(PRIOR)]["closed"] == pytest.approx(0.0)
    for name in (TRUE, TEXT, hidden_name(TRUE), hidden_name(TEXT), TEXT_DECODER, CAPTION_ALONE):
        assert closed[name] == {"closed": None, "closed_low": None, "closed_high": None}


def test_there_is_no_way_where_the_ends_are_level() -> None:
    values = {row: found["all_right"] for row, found in judged(**{TRUE: 0.5}).items()}
    assert closed_by(WAYS[1], values, seed=0)["closed"] is None


def test_the_ladder_holds_every_way_and_the_held_out_splits_as_one() -> None:
    found = ladder()
    assert [row["name"] for row in found["rows"]] == [REAL, *(way.name for way in WAYS)]
    assert found["splits"] == ["heldout-pair", "heldout-scene", TOGETHER, "train"]
    assert found["main"] == TOGETHER
    prior = next(row for row in found["rows"] if row["name"] == PRIOR)
    assert prior["splits"][TOGETHER]["number"] == 150
    assert prior["splits"][TOGETHER]["mean"] == pytest.approx(0.7)
    assert prior["binding"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "number": 20}
    assert prior["frechet_random"] == 2.0


def test_groups_stand_apart_in_the_plot() -> None:
    places = places_of(ladder()["rows"])
    steps = np.diff(places)
    assert steps.min() == pytest.approx(1.0)
    assert (steps > 1.5).sum() == 3  # the real pictures, both conditions, the embedding alone, the caption alone


def test_a_target_is_what_the_judge_said_of_the_chosen_row() -> None:
    judge = Judge("program", "", ["all_right", "binding"], {"heldout-scene": judged(100)})
    section = {"judges": [report_of(judge, seed=0)]}
    all_right, binding = measure_targets("shapes", section, PRIOR)
    assert (all_right["value"], all_right["target"], all_right["number"]) == (pytest.approx(0.7), 0.6, 100)
    assert (binding["value"], binding["target"]) == (1.0, 0.9)
    assert measure_targets("", section, PRIOR) == []
    assert (all_right["reached"], binding["reached"]) == (True, True)
    without = {split: {row: found | {"binding": np.full(100, np.nan)} for row, found in rows.items()} for split, rows in judge.judged.items()}
    unbound = measure_targets("shapes", {"judges": [report_of(Judge("program", "", [], without), seed=0)]}, PRIOR)[1]
    assert (unbound["value"], unbound["number"], unbound["reached"]) == (None, 0, False)
    targets = [all_right | {"value": 0.5, "reached": False}, binding, unbound]
    report: dict[str, Any] = {
        "counts": {"splits": {"train": 10, "heldout-scene": 5}}, "targets": targets, "ladder": ladder(), "chosen": PRIOR, "prior": {}, "clip": {}, "stages": [],
    }  # fmt: skip
    assert [tile["state"] for tile in headline(report)] == ["", "bad", "good", "bad", ""]
    assert targets_table(report) is not None
    assert targets_table(report | {"targets": []}) is None
    console = Console(width=80, record=True)
    console.print(ladder_table(report))
    console.print(targets_table(report))
    shown = console.export_text()
    for words in ("decoder trained on text", "text as image", "caption alone", "70%", "embedding alone", "held out"):
        assert words in shown
    assert "…" not in shown


def test_the_ladder_of_the_largest_report_fits_eighty_columns() -> None:
    """All splits of the shapes world, binding, the longest names and an upsampler: every row keeps its line."""
    report = {"chosen": PRIOR, "ladder": ladder()}
    number = {"mean": 1.0, "low": 1.0, "high": 1.0, "number": 100, "closed": 1.0}
    splits = ["heldout-pair", "heldout-scene", "train", TOGETHER]
    longest = ["autoregressive best of 16", f"{PRIOR}, upsampled to 1024 pixels", *(row["name"] for row in ladder()["rows"])]
    rows = [{"name": name, "sees": "embedding and caption", "splits": dict.fromkeys(splits, number), "binding": number} for name in longest]
    console = Console(width=80, record=True)
    console.print(ladder_table({**report, "ladder": ladder() | {"rows": rows, "splits": splits}}))
    shown = console.export_text()
    assert "…" not in shown
    assert len(shown.splitlines()) == len(rows) + 7  # title, head in two lines, rule, one heading, two empty ones
    assert "upsampled to 1024 pixels" in shown
