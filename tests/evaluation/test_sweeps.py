"""The curves: on rows that the ladder never sees, each answer counted for itself, and what can't be drawn left out with its reason."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch

from tests.evaluation.conftest import NUM_HELDOUT, SECTION, Root
from unclip.data.index import open_index
from unclip.data.store import normalised
from unclip.diffusion.sampling import SamplerName
from unclip.evaluation import sweeps
from unclip.evaluation.config import EvaluateConfig
from unclip.evaluation.cosine import spreads
from unclip.evaluation.heldout import read_held_out
from unclip.evaluation.recall import Gallery
from unclip.files import UnclipError
from unclip.generate import draw_candidates, text_condition


@pytest.mark.parametrize(("wanted", "test", "validation"), [(64, 4, 1), (0, 5, 0)])
def test_no_row_is_both_in_the_ladder_and_in_the_curves(root: Root, wanted: int, test: int, validation: int) -> None:
    config = EvaluateConfig(num_captions=500, num_validation=wanted)
    for held in read_held_out(root.paths.embeddings, config, seed=0):
        assert (len(held.test), len(held.validation)) == (test, validation)
        assert not set(held.test.keys) & set(held.validation.keys)
        assert len(set(held.test.keys) | set(held.validation.keys)) == NUM_HELDOUT


def test_the_ladder_s_rows_stay_when_the_number_of_captions_falls(root: Root) -> None:
    many, few = (read_held_out(root.paths.embeddings, dataclasses.replace(SECTION.evaluate, num_captions=num), seed=0)[0] for num in (4, 3))
    assert few.test.keys == many.test.keys[:3]
    assert few.validation.keys == many.validation.keys


def test_the_best_of_each_group_is_picked() -> None:
    draws = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)
    texts = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    cosines = (normalised(draws.reshape(-1, 3)).reshape(5, 8, 3) * normalised(texts)[:, None]).sum(-1)
    for num in (1, 2, 4, 8):
        picks = sweeps.pick_best(draws, texts, num)
        assert picks.shape == (5, 8 // num, 3)
        for row in range(5):
            for group in range(8 // num):
                best = group * num + cosines[row, group * num : (group + 1) * num].argmax()
                assert (picks[row, group] == draws[row, best]).all()


def test_a_point_averages_the_answers_to_a_caption(root: Root) -> None:
    held = read_held_out(root.paths.embeddings, SECTION.evaluate, seed=0)[0].test
    gallery = Gallery(open_index(root.paths.index), world="shapes")
    wanted = gallery.places(held.keys)
    found_and_not = np.stack([held.true_emb, -held.true_emb], axis=1)  # the second answer is the worst there is
    point = sweeps.measure_point(found_and_not, held, gallery, wanted, np.array([1.0, np.nan, np.nan, np.nan]), seed=0)
    assert point["recall_at_10"] == point["low"] == point["high"] == 0.5
    assert point["image_cosine"] == pytest.approx(0.0, abs=1e-6)
    assert (point["draw_spread"], point["draw_spread_ratio"]) == (pytest.approx(2.0), pytest.approx(2.0))
    alone = sweeps.measure_point(held.true_emb[:, None], held, gallery, wanted, np.full(4, np.nan), seed=0)
    assert (alone["recall_at_10"], alone["draw_spread"], alone["draw_spread_ratio"]) == (1.0, None, None)


def test_every_curve_is_drawn_of_every_prior_that_is_sampled(root: Root) -> None:
    found = measured(root)
    assert found["captions"] == 2  # a quarter of five, in each of two splits
    assert {point["prior"] for point in found["points"]} == {"diffusion"}
    values = {curve: [point["value"] for point in found["points"] if point["curve"] == curve] for curve in (sweeps.BEST_OF, sweeps.GUIDANCE)}
    assert values == {"best of n": [1, 2, 4, 8], "guidance": [1.0, 2.0]}
    steps = {(point["sampler"], point["value"]) for point in found["points"] + found["left_out"] if point["curve"] == sweeps.STEPS}
    assert steps == {(name, num) for name in get_args(SamplerName) for num in (2, 4)}
    assert [point["draw_spread"] is None for point in found["points"][:4]] == [False, False, False, True]  # the best of 8 is one answer
    assert found["points"][0]["draw_spread"] == found["points"][4]["draw_spread"]  # no guidance is the settings in use: the same draws


def test_a_curve_s_draws_are_those_of_the_prior(root: Root) -> None:
    held = read_held_out(root.paths.embeddings, SECTION.evaluate, seed=0)[1].validation
    asked = dataclasses.replace(SECTION.generate, num_candidates=2)
    with torch.no_grad():
        expected = draw_candidates(root.priors["diffusion"], text_condition(root.models.clip, held.captions), asked, rows=range(len(held)))
    drawn = sweeps.draw(held, root.models.clip, root.priors["diffusion"], SECTION.generate, SECTION.generate.prior, 2, 1)
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    assert spreads(drawn).min() > 0


def test_a_setting_that_a_prior_refuses_is_left_out_with_the_reason(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sweeps.draw_candidates

    def refuse(prior, condition, config, *, rows):  # type: ignore[no-untyped-def]
        if config.prior.sampler == "ddim":
            raise UnclipError("no variance was measured")
        return draw(prior, condition, config, rows=rows)

    monkeypatch.setattr(sweeps, "draw_candidates", refuse)
    found = measured(root)
    assert {(point["sampler"], point["value"], point["reason"]) for point in found["left_out"] if point["sampler"] == "ddim"} == {
        ("ddim", 2, "no variance was measured"), ("ddim", 4, "no variance was measured"),
    }  # fmt: skip
    assert all(point["sampler"] != "ddim" for point in found["points"])


def test_without_validation_rows_there_are_no_curves(root: Root) -> None:
    found = measured(root, num_validation=0)
    assert (found["captions"], found["asked"], found["points"]) == (0, 0, [])


def measured(root: Root, **changed: int) -> dict:  # type: ignore[type-arg]
    config = dataclasses.replace(SECTION.evaluate, **changed)
    splits = read_held_out(root.paths.embeddings, config, seed=0)
    index = open_index(root.paths.index)
    return sweeps.measure_sweeps(splits, root.models.clip, root.priors, index, root.paths.embeddings, SECTION.generate, config, world="shapes")
