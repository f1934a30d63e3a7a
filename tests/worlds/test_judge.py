"""The judge reads real pictures rightly, sees every kind of mistake, and gives nothing for pictures of nothing."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from unclip.worlds.judge import SCORES, look, score
from unclip.worlds.shapes import BACKGROUNDS, Object, Scene, render, scenes

FEW = 120


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("split", ["train", "heldout-pair"])
def test_fresh_pictures_are_read_rightly_99_times_in_100(size: int, split: str) -> None:
    rng = np.random.default_rng(7)
    results = [score(render(scene, size=size, rng=rng), scene) for scene in islice(scenes(split, rng), 500)]  # type: ignore[arg-type]
    assert np.mean([result["all_right"] or 0.0 for result in results]) >= 0.99


def other(value: str, choices: tuple[str, ...]) -> str:
    return next(choice for choice in choices if choice != value)


def changed(scene: Scene, **attribute: str) -> Scene:
    return replace(scene, objects=(replace(scene.objects[0], **attribute), *scene.objects[1:]))


def mistakes(scene: Scene) -> dict[str, Scene]:
    """Scenes that differ from this one in one thing, by the score that must notice."""
    first = scene.objects[0]
    far = {"red": "blue", "blue": "yellow", "yellow": "purple", "green": "red"}.get(first.colour, "green")
    wrong = {
        "colour": changed(scene, colour=far),
        "shape": changed(scene, shape=other(first.shape, ("square", "star"))),
        "size": changed(scene, size=other(first.size, ("small", "large"))),
        "background": replace(scene, background=other(str(scene.background), tuple(BACKGROUNDS))),
    }
    if scene.relation is None:
        wrong["count"] = Scene((first, Object("small", far, "cross")), "left of", scene.background)
    else:
        wrong["count"] = Scene((first,), None, scene.background)
        wrong["relation"] = replace(scene, objects=scene.objects[::-1])
    return wrong


def test_every_kind_of_mistake_costs_its_own_score() -> None:
    rng = np.random.default_rng(11)
    noticed: dict[str, list[bool]] = {}
    for scene in islice(scenes("train", rng), FEW):
        for name, wrong in mistakes(scene).items():
            result = score(render(wrong, size=64, rng=rng), scene)
            assert result["all_right"] is not None
            noticed.setdefault(name, []).append((result[name] or 0.0) < 1.0 and result["all_right"] == 0.0)
    assert set(noticed) == set(SCORES) - {"all_right"}
    assert {name: np.mean(seen) >= 0.99 for name, seen in noticed.items()} == dict.fromkeys(noticed, True)


def test_an_object_that_is_missing_counts_as_wrong_in_all_it_should_have_been() -> None:
    scene = Scene((Object("small", "red", "circle"), Object("large", "blue", "star")), "above", "white")
    alone = replace(scene, objects=scene.objects[1:], relation=None)
    result = score(render(alone, size=64, rng=np.random.default_rng(0)), scene)
    assert {name: result[name] for name in SCORES} == {
        "background": 1.0,
        "count": 0.0,
        "colour": 0.5,
        "size": 0.5,
        "shape": 0.5,
        "relation": 0.0,
        "all_right": 0.0,
    }


def test_what_a_caption_does_not_say_is_not_scored() -> None:
    scene = Scene((Object("small", "red", "circle"),), None, "black")
    result = score(render(scene, size=64, rng=np.random.default_rng(0)), replace(scene, background=None))
    assert result["background"] is None
    assert result["relation"] is None
    assert result["all_right"] == 1.0


@pytest.mark.parametrize("kind", ["blank", "noise", "grey noise"])
def test_pictures_of_nothing_score_nothing(kind: str) -> None:
    rng = np.random.default_rng(5)
    results = []
    for scene in islice(scenes("train", rng), 60):
        picture = np.full((64, 64, 3), BACKGROUNDS[str(scene.background)], np.uint8)
        if kind == "noise":
            picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        if kind == "grey noise":
            picture = np.repeat(rng.integers(0, 256, (64, 64, 1), dtype=np.uint8), 3, axis=2)
        results.append(score(picture, scene))
    assert all(result["all_right"] == 0.0 for result in results)
    if kind == "blank":
        assert all(result[name] in (0.0, None) for result in results for name in ("colour", "shape", "size", "relation"))


def test_the_largest_object_is_seen_first_and_where_it_stands() -> None:
    scene = Scene((Object("small", "red", "circle"), Object("large", "blue", "square")), "left of", "white")
    background, seen = look(render(scene, size=64, rng=np.random.default_rng(0)))
    assert background == "white"
    assert [found.kind for found in seen] == list(scene.objects[::-1])
    assert seen[0].centre[0] > 0.5 > seen[1].centre[0]


BLUE_STAR, RED_RING = Object("small", "blue", "star"), Object("large", "red", "ring")


def bound(*drawn: Object, asked: tuple[Object, ...] = (BLUE_STAR, RED_RING)) -> tuple[float | None, float | None]:
    """Binding and swap of a picture with these objects, side by side."""
    relation = "left of" if len(drawn) > 1 else None
    picture = render(Scene(drawn, relation, "white"), size=64, rng=np.random.default_rng(3))
    result = score(picture, Scene(asked, "left of" if len(asked) > 1 else None, None))
    return result["binding"], result["swapped"]


def test_attributes_on_the_wrong_objects_are_a_swap() -> None:
    assert bound(BLUE_STAR, RED_RING) == (1.0, 0.0)
    assert bound(RED_RING, BLUE_STAR) == (1.0, 0.0)  # the relation is wrong, not the binding
    for name in ("size", "colour", "shape"):
        swapped = (replace(BLUE_STAR, **{name: getattr(RED_RING, name)}), replace(RED_RING, **{name: getattr(BLUE_STAR, name)}))
        assert bound(*swapped) == (0.0, 1.0), name


def test_binding_is_judged_only_where_the_attributes_asked_are_there() -> None:
    assert bound(BLUE_STAR, replace(RED_RING, colour="green")) == (None, 0.0)
    assert bound(BLUE_STAR) == (None, 0.0)


def test_objects_that_differ_in_one_attribute_can_not_be_bound_wrongly() -> None:
    alike = replace(BLUE_STAR, colour="red")
    assert bound(BLUE_STAR, alike, asked=(alike, BLUE_STAR)) == (None, None)
    assert bound(BLUE_STAR, asked=(BLUE_STAR,)) == (None, None)


def test_an_object_is_recalled_when_all_of_it_is_right() -> None:
    picture = render(Scene((BLUE_STAR, replace(RED_RING, colour="green")), "left of", "white"), size=64, rng=np.random.default_rng(3))
    result = score(picture, Scene((BLUE_STAR, RED_RING), "left of", "white"))
    assert (result["object"], result["colour"], result["shape"]) == (0.5, 0.5, 1.0)
