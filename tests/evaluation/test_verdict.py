"""The verdict names a winner where the interval does, and nobody where it does not."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from unclip.evaluation.cosine import spread
from unclip.evaluation.heldout import NEAREST, TEXT, TRUE, Predictions
from unclip.evaluation.intervals import resampled
from unclip.evaluation.verdict import compare_draws, compare_recall, compare_spread, give_verdict, spread_resampled

RNG = np.random.default_rng(0)
OURS = "diffusion best of 2"


@pytest.mark.parametrize(
    ("ours", "theirs", "winner", "says"),
    [
        ([1] * 30, [0] * 30, OURS, f"{OURS} wins"),
        ([0] * 30, [1] * 30, "linear", "linear wins"),
        ([1, 0] * 15, [1, 0] * 15, None, "holds 0: this may be chance"),
        ([1] + [0] * 29, [0] * 30, None, "holds 0: this may be chance"),
        ([1] * 5, [0] * 5, None, "fewer than 20 captions carry no verdict"),
    ],
)
def test_in_recall_the_winner_is_the_one_that_the_interval_names(ours: list[int], theirs: list[int], winner: str | None, says: str) -> None:
    found = compare_recall({OURS: np.array(ours, bool), "linear": np.array(theirs, bool), TEXT: np.zeros(len(ours), bool)}, OURS, seed=0)
    assert found["winner"] == winner
    assert says in found["sentence"]
    assert ("nobody wins" in found["sentence"]) == (winner is None)
    assert found["difference"] == pytest.approx(np.mean(ours) - np.mean(theirs))


def test_the_rival_is_the_best_baseline_and_never_oneself() -> None:
    hits = {"linear": np.eye(1, 40, dtype=bool)[0], NEAREST: np.ones(40, bool), TEXT: np.zeros(40, bool), TRUE: np.ones(40, bool), OURS: np.zeros(40, bool)}
    assert compare_recall(hits, OURS, seed=0)["rival"] == NEAREST
    assert compare_recall(hits, NEAREST, seed=0)["rival"] == "linear"


def test_the_interval_is_of_the_paired_difference() -> None:
    # 100 captions of which both find the same 50, and one more each way: far surer than two unpaired shares of one half
    ours = np.array([1] * 50 + [0] * 50, bool)
    found = compare_recall({OURS: ours, "linear": np.roll(ours, 1)}, OURS, seed=0)
    assert (found["low"], found["high"]) == (pytest.approx(-0.03, abs=0.011), pytest.approx(0.03, abs=0.011))


def predictions(draws: np.ndarray) -> Predictions:
    rows = {TRUE: RNG.normal(size=(len(draws), 4)), "diffusion x1": draws[:, 0], OURS: draws[:, 1], "linear": draws.mean(axis=1), TEXT: draws[:, 0]}
    return Predictions(rows, {"diffusion x1": draws}, OURS, "linear")


@pytest.mark.parametrize(("noise", "real", "winner"), [(0.5, 0.4, OURS), (0.5, 0.01, "every baseline"), (0.0, 0.4, None)])
def test_draws_win_where_they_lie_about_as_far_apart_as_real_images(noise: float, real: float, winner: str | None) -> None:
    draws = np.eye(4)[0] + noise * RNG.normal(size=(40, 2, 4))
    found = compare_draws(predictions(draws), np.full(40, real), seed=0)
    assert found is not None
    assert found["winner"] == winner
    assert found["ratio"] == pytest.approx(np.mean([spread(pair) for pair in draws]) / real, abs=1e-5)


def test_without_real_images_of_one_caption_the_answers_to_all_captions_are_compared() -> None:
    draws = RNG.normal(size=(60, 2, 4)) + np.eye(4)[0]
    verdict = give_verdict("test", dict.fromkeys((OURS, "linear"), np.zeros(60, bool)), predictions(draws), np.full(60, np.nan), seed=0)
    assert verdict["spread"]["sentence"].startswith("In spread over captions")
    assert verdict["sentence"] == f"test: {verdict['recall']['sentence']} {verdict['spread']['sentence']}"
    truth = RNG.normal(size=(60, 4))
    rows = {TRUE: truth, OURS: truth + 0.01, "linear": truth + 2.0, TEXT: truth + 5.0}
    assert compare_spread(rows, OURS, seed=0)["winner"] == OURS  # type: ignore[index]
    assert compare_spread(rows | {OURS: rows["linear"], "linear": rows[OURS]}, OURS, seed=0)["winner"] == "linear"  # type: ignore[index]
    assert compare_spread({name: emb[:1] for name, emb in rows.items()}, OURS, seed=0) is None


def test_the_resampled_spread_is_the_mean_over_pairs_of_different_rows() -> None:
    emb = RNG.normal(size=(6, 4)) + 1.0
    value, values = spread_resampled(emb, seed=3)
    assert value == pytest.approx(pdist(emb, "cosine").mean(), abs=1e-6)
    for number in range(5):
        drawn = np.repeat(np.arange(6), resampled(6, 3)[number].astype(int))
        pairs = [pdist(emb[[a, b]], "cosine")[0] for a in drawn for b in drawn if a != b]
        assert values[number] == pytest.approx(np.mean(pairs), abs=1e-6)
