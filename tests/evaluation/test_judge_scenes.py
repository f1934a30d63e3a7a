"""Both judges of the shapes world: what they give a perfect generator, luck, and a picture with its attributes exchanged."""

import dataclasses
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest

from unclip.evaluation.classifier import Classifier, classify, shrunk
from unclip.evaluation.confusion import MISSED, in_order, measure_confusion
from unclip.evaluation.judge import summarise
from unclip.evaluation.judge_scenes import compare_all, judge_scenes, wrong_parts
from unclip.evaluation.reader import CHECKING, LEARNING, Reading, fresh_renders, read_pictures, train_reader
from unclip.evaluation.ways import REAL, SHUFFLED
from unclip.worlds.judge import Seen, look
from unclip.worlds.shapes import Object, Scene, caption, render, scenes

SIDE = 32


@pytest.fixture(scope="module")
def network() -> Classifier:
    return train_reader(image_size=SIDE, num_steps=300, seed=0)


def program(pictures: np.ndarray) -> list[Reading]:
    return [look(picture) for picture in pictures]


def rendered(asked: list[Scene], rng: np.random.Generator) -> np.ndarray:
    return np.stack([render(scene, size=SIDE, rng=rng) for scene in asked])


def test_a_perfect_generator_reaches_the_ceiling_and_other_captions_the_floor() -> None:
    rng = np.random.default_rng(0)
    asked = list(islice(scenes("heldout-scene", rng), 40))
    pictures, again = rendered(asked, rng), rendered(asked, rng)
    captions = [caption(scene, rng) for scene in asked]
    judged = judge_scenes({REAL: pictures, "perfect": again, "black": np.zeros_like(pictures)}, captions, "perfect", program)
    found = {row: summarise(values, seed=0) for row, values in judged.items()}
    assert found[REAL]["all_right"]["mean"] >= 0.95
    assert found["perfect"]["all_right"]["mean"] >= 0.95
    assert found["perfect"]["binding"]["mean"] == 1.0
    assert found["perfect"]["swapped"]["mean"] == 0.0
    assert found[SHUFFLED]["all_right"]["mean"] <= 0.05
    assert found["black"]["count"]["mean"] == 0.0
    assert "binding" not in found["black"]  # no picture has the attributes asked for
    # only scenes of two objects have a relation
    assert found[REAL]["relation"]["number"] == sum(len(scene.objects) == 2 for scene in asked)
    assert wrong_parts(pictures[0], captions[0]) == []
    assert "count" in wrong_parts(np.zeros_like(pictures[0]), captions[0])


def exchanged(scene: Scene) -> Scene:
    first, second = scene.objects
    swapped = (dataclasses.replace(first, colour=second.colour), dataclasses.replace(second, colour=first.colour))
    return dataclasses.replace(scene, objects=swapped)


@pytest.mark.parametrize("judge", ["program", "network"])
def test_each_judge_catches_exchanged_colours(judge: str, network: Classifier) -> None:
    read: Callable[[np.ndarray], list[Reading]] = program if judge == "program" else lambda pictures: read_pictures(network, pictures)
    rng = np.random.default_rng(1)
    drawn = (scene for scene in scenes("train", rng) if len(scene.objects) == 2)
    asked = [s for s in islice(drawn, 120) if s.objects[0].colour != s.objects[1].colour and s.objects[0].shape != s.objects[1].shape]
    right, wrong = rendered(asked, rng), rendered([exchanged(scene) for scene in asked], rng)
    good, bad = compare_all(read(right), asked), compare_all(read(wrong), asked)
    assert np.nanmean(good["binding"]) > 0.97
    assert np.nanmean(bad["swapped"]) > 0.6  # the others are read with one attribute wrong, and are no swaps then
    assert np.nanmean(bad["binding"]) < 0.03
    assert np.nanmean(bad["colour"]) < 0.6
    assert np.nanmean(bad["all_right"]) < 0.03


def test_the_network_learns_from_renders_alone_and_disturbs_no_other_draw(network: Classifier) -> None:
    import torch

    pictures, drawn = fresh_renders(150, image_size=SIDE, seed=0, stream=CHECKING)
    assert measure_confusion(read_pictures(network, pictures), drawn)["accuracy"]["all_right"] > 0.85
    larger, same = fresh_renders(30, image_size=64, seed=0, stream=CHECKING)
    assert measure_confusion(read_pictures(network, larger), same)["accuracy"]["all_right"] > 0.6
    assert not (fresh_renders(3, image_size=SIDE, seed=0, stream=LEARNING)[0] == pictures[:3]).all()
    state = torch.get_rng_state()
    first, again = (train_reader(image_size=16, num_steps=2, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert classify(first, np.zeros((3, 16, 16, 3), np.uint8)).shape == (3, 8)


def test_confusion_goes_by_place_and_counts_what_is_missed() -> None:
    red, blue = Object("small", "red", "circle"), Object("large", "blue", "star")
    asked = [Scene((red, blue), "left of", "white"), Scene((red,), None, "black")]
    left, right = Seen(Object("small", "red", "ring"), (0.2, 0.5)), Seen(blue, (0.8, 0.5))
    found = measure_confusion([("white", [right, left]), ("grey", [])], asked)
    shapes = found["confusion"]["shape"]
    row = dict(zip(shapes["said"], shapes["counts"][shapes["true"].index("circle")], strict=True))
    assert row == {"circle": 0, "square": 0, "triangle": 0, "star": 0, "cross": 0, "ring": 1, MISSED: 1}
    assert shapes["counts"][shapes["true"].index("star")][shapes["said"].index("star")] == 1
    grounds = found["confusion"]["background"]
    assert grounds["counts"][grounds["true"].index("black")][grounds["said"].index("grey")] == 1
    assert found["pictures"] == 2
    assert found["accuracy"]["background"] == 0.5
    above = [Seen(red, (0.4, 0.8)), Seen(blue, (0.6, 0.1))]
    assert [one.kind for one in in_order(above, "above")] == [blue, red]
    assert [one.kind for one in in_order(above, "left of")] == [red, blue]


def test_pictures_are_made_smaller_by_areas_and_left_alone_at_their_size() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    assert shrunk(pictures, 8) is pictures
    assert shrunk(pictures, 4)[0, 0, 0] == pytest.approx(pictures[0, :2, :2].mean(axis=(0, 1)), abs=0.51)
