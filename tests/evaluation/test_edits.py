"""Edits by words: what counts as one, on real renders whose answer is known, and the same pictures as `unclip edit` draws."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.conftest import SECTION, Root
from unclip.evaluation.edits import JUDGED_THETAS, draw_edits, judge_edit, measure_edits
from unclip.generate import Models
from unclip.manipulate.edit import edit
from unclip.manipulate.latent import deterministic
from unclip.worlds.shapes import Object, Scene, parse_caption, render

BEFORE = Scene((Object("small", "red", "circle"), Object("large", "blue", "star")), "left of", "white")


def recoloured(scene: Scene, *colours: str) -> Scene:
    return dataclasses.replace(scene, objects=tuple(dataclasses.replace(thing, colour=colour) for thing, colour in zip(scene.objects, colours, strict=True)))


def drawn(scene: Scene) -> np.ndarray:
    return render(scene, size=64, rng=np.random.default_rng(0))


AFTER = recoloured(BEFORE, "green", "blue")


@pytest.mark.parametrize(
    ("shown", "changed", "kept"),
    [
        (AFTER, True, True),
        (BEFORE, False, True),  # nothing happened
        (recoloured(BEFORE, "green", "green"), True, False),  # the other object went along
        (recoloured(BEFORE, "blue", "green"), True, False),  # on the wrong object
        (dataclasses.replace(AFTER, background="black"), True, False),
        (dataclasses.replace(AFTER, objects=AFTER.objects[:1], relation=None), True, False),
        (dataclasses.replace(AFTER, relation="above"), True, False),
        (dataclasses.replace(AFTER, objects=(Object("small", "green", "ring"), AFTER.objects[1])), True, False),
        (dataclasses.replace(AFTER, objects=(Object("large", "green", "circle"), AFTER.objects[1])), True, False),
        (recoloured(BEFORE, "red", "green"), False, False),
    ],
)
def test_an_edit_is_the_new_colour_without_the_old_and_all_else_as_it_was(shown: Scene, *, changed: bool, kept: bool) -> None:
    assert judge_edit(drawn(shown), BEFORE, AFTER) == (changed, kept)


def test_a_colour_that_the_other_object_has_too_must_be_there_twice() -> None:
    after = recoloured(BEFORE, "blue", "blue")
    assert judge_edit(drawn(after), BEFORE, after) == (True, True)
    assert judge_edit(drawn(BEFORE), BEFORE, after) == (False, True)
    one = dataclasses.replace(after, objects=after.objects[1:], relation=None)
    assert judge_edit(drawn(one), BEFORE, after)[0] is False


def test_pictures_that_are_all_right_are_counted_so(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [("a small red circle left of a large blue star, white background", "a small green circle left of a large blue star, white background")] * 4
    made = [np.stack([drawn(scene) for scene in (AFTER,) * num + (BEFORE,) * (4 - num)]) for num in range(4)]
    monkeypatch.setattr("unclip.evaluation.edits.draw_edits", lambda *_: made)
    monkeypatch.setattr("unclip.evaluation.edits._told_apart", lambda *_: True)
    found = measure_edits(np.stack([drawn(BEFORE)] * 4), dict(enumerate(captions)), Models(None, None, None), SECTION.generate, seed=0)  # type: ignore[arg-type]
    assert [one["theta"] for one in found] == list(JUDGED_THETAS)
    assert [one["changed"]["mean"] for one in found] == [0.0, 0.25, 0.5, 0.75]
    assert [one["kept"]["mean"] for one in found] == [1.0] * 4
    assert [one["both"]["mean"] for one in found] == [0.0, 0.25, 0.5, 0.75]


def test_all_edits_at_once_are_those_that_the_command_draws_one_by_one(root: Root) -> None:
    config = dataclasses.replace(deterministic(SECTION.generate), guidance_scale=1.0)
    scenes = [parse_caption(f"a {thing} on a grey background") for thing in ("small red star", "large blue ring")]
    pictures = [Image.fromarray(render(scene, size=16, rng=np.random.default_rng(row))) for row, scene in enumerate(scenes)]
    before, after = ["a small red star", "a large blue ring"], ["a small cyan star", "a large red ring"]
    together = draw_edits(pictures, before, after, root.models, config)
    for row, picture in enumerate(pictures):
        alone = edit(root.models, picture, config, before=before[row], after=after[row], thetas=JUDGED_THETAS).pictures
        for theta, made in enumerate(together):
            assert np.abs(made[row].astype(int) - alone[theta]).max() <= 1, "up to the rounding of a batch"
