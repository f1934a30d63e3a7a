"""Scenes of one or two coloured shapes: a seeded grammar, captions in several wordings, and the pictures.

The truth of a scene is in its caption (`parse_caption`), so that the judge beside this file can compare a picture with
the sentence it was made from, whoever made it.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "heldout-scene", "heldout-pair"]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (140, 50, 180),
    "orange": (245, 130, 30),
    "cyan": (40, 200, 220),
    "pink": (245, 130, 190),
}
BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
EXTENTS = {"small": 0.25, "large": 0.41}  # width of the box around a shape, in picture widths
RELATIONS = ("left of", "above")
HELDOUT_PAIRS = (("green", "star"), ("cyan", "triangle"), ("orange", "ring"), ("purple", "cross"))
HELDOUT_SCENES = 0.06  # of the scenes without a held-out pair

SINGLE_JITTER = 0.06  # how far a lone shape stands from the middle at most, in picture widths
PAIR_OFFSET, PAIR_JITTER, PAIR_SHIFT = 0.24, 0.02, 0.04  # two shapes: half their distance, and jitter along and across
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Object:
    """One shape of a scene."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one object, or two where the first is `relation` the second.

    `background` is None where a caption does not say it.
    """

    objects: tuple[Object, ...]
    relation: str | None
    background: str | None


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points lie in the shape. u and v run from -1 to 1 over its box, v downwards; any equal shapes; bool out."""
    if shape == "circle":
        return u * u + v * v <= 1.0
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.9
    if shape == "triangle":
        return (v <= 0.85) & (np.abs(u) <= (v + 1.0) / 1.85)
    if shape == "cross":
        return (np.minimum(np.abs(u), np.abs(v)) <= 0.33) & (np.maximum(np.abs(u), np.abs(v)) <= 1.0)
    if shape == "ring":
        return (u * u + v * v <= 1.0) & (u * u + v * v >= 0.55**2)
    if shape == "star":
        # A five-pointed star is the union of five triangles' worth of half-planes: inside all but at most one of its lines.
        angles = np.deg2rad(90 + 72 * np.arange(5))
        inner = np.cos(np.deg2rad(72.0))  # distance of each of the five lines from the centre, for tips at distance 1
        beyond = sum((-(np.cos(a) * u - np.sin(a) * v) > inner).astype(int) for a in angles)
        return beyond <= 1
    raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")


def coverage(shape: str, centre: tuple[float, float], extent: float, size: int) -> np.ndarray:
    """How much of each pixel the shape covers, (size, size) in [0, 1]; centre (x, y) and extent in pixels."""
    low = [max(0, int(np.floor(c - extent / 2)) - 1) for c in centre]
    high = [min(size, int(np.ceil(c + extent / 2)) + 1) for c in centre]
    out = np.zeros((size, size), np.float32)
    if min(h - lo for h, lo in zip(high, low, strict=True)) <= 0:
        return out
    n = max(SUPERSAMPLING, int(np.ceil(64 / extent)))
    xs, ys = ((lo + (np.arange((h - lo) * n) + 0.5) / n - c) / (extent / 2) for lo, h, c in zip(low, high, centre, strict=True))
    points = inside(shape, xs[None, :], ys[:, None])
    fine = points.reshape(high[1] - low[1], n, high[0] - low[0], n)
    out[low[1] : high[1], low[0] : high[0]] = fine.mean(axis=(1, 3))
    return out


def render(scene: Scene, *, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the scene with antialiasing at a place that `rng` chooses: (size, size, 3) uint8."""
    if scene.background is None:
        raise ValueError("a scene needs a background to be drawn")
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for thing, (x, y) in zip(scene.objects, _places(scene, rng), strict=True):
        alpha = coverage(thing.shape, (x * size, y * size), EXTENTS[thing.size] * size, size)[..., None]
        picture = picture * (1 - alpha) + alpha * np.array(COLOURS[thing.colour], np.float32)
    return np.round(picture).astype(np.uint8)


def _places(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    if len(scene.objects) == 1:
        x, y = 0.5 + rng.uniform(-SINGLE_JITTER, SINGLE_JITTER, 2)
        return [(x, y)]
    along = 0.5 + np.array([-PAIR_OFFSET, PAIR_OFFSET]) + rng.uniform(-PAIR_JITTER, PAIR_JITTER, 2)
    across = 0.5 + rng.uniform(-PAIR_SHIFT, PAIR_SHIFT, 2)
    pairs = zip(along, across, strict=True) if scene.relation == "left of" else zip(across, along, strict=True)
    return [(float(x), float(y)) for x, y in pairs]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the wordings of a scene, chosen by `rng`; about one in six leaves the background out."""
    if len(scene.objects) == 1:
        what = f"a {scene.objects[0]}"
        alone = f"one {scene.objects[0]}"
    else:
        first, second = scene.objects
        what = f"a {first} {scene.relation} a {second}"
        alone = f"a {first} that is {scene.relation} a {second}"
    ground = scene.background
    wordings = (f"{what} on a {ground} background", f"{what}, {ground} background", f"on a {ground} background, {what}", alone + f" on {ground}")
    choice = rng.random()
    return what if choice < 1 / 6 else wordings[int((choice - 1 / 6) * 6 / 5 * len(wordings))]


_THING = re.compile(rf"({'|'.join(EXTENTS)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_GROUND = re.compile(rf"\bon a ({'|'.join(BACKGROUNDS)}) background|, ({'|'.join(BACKGROUNDS)}) background|\bon ({'|'.join(BACKGROUNDS)})$")
_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")


def parse_caption(text: str) -> Scene:
    """The scene that a caption of this world describes.

    Raises:
        ValueError: the sentence is not one of this grammar.
    """
    things = [Object(*found) for found in _THING.findall(text)]
    relation = _RELATION.search(text)
    if len(things) not in (1, 2) or (len(things) == 2) != (relation is not None):
        raise ValueError(f"expected a caption like 'a small blue circle above a large yellow square', got {text!r}")
    ground = _GROUND.search(text)
    background = next((g for g in ground.groups() if g), None) if ground else None
    return Scene(tuple(things), relation.group(1) if relation else None, background)


def split_of(scene: Scene) -> Split:
    """Where a scene belongs: by what it shows alone, so that no wording or place of it crosses from one split to another."""
    if any((thing.colour, thing.shape) in HELDOUT_PAIRS for thing in scene.objects):
        return "heldout-pair"
    name = f"{scene.relation}|{'|'.join(map(str, scene.objects))}|{scene.background}"
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "heldout-scene" if draw < HELDOUT_SCENES else "train"


def scenes(split: Split, rng: np.random.Generator) -> Iterator[Scene]:
    """Endless random scenes of one split, four in ten with a single object; two objects are never of the same kind."""
    kinds = [Object(*kind) for kind in itertools.product(EXTENTS, COLOURS, SHAPES)]
    while True:
        num = 1 if rng.random() < 0.4 else 2
        chosen = rng.choice(len(kinds), size=num, replace=False)
        relation = RELATIONS[rng.integers(len(RELATIONS))] if num == 2 else None
        scene = Scene(tuple(kinds[i] for i in chosen), relation, list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))])
        if split_of(scene) == split:
            yield scene
