"""Reads a picture of the shapes world back by program, and scores it against its caption.

Nothing here was trained. It knows the world's palette and outlines, no network; on real renders it is right in at least
99 of 100 (`tests/worlds/test_judge.py`). It follows GenEval (arXiv 2310.11513): objects are found, then compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from scipy import ndimage

from unclip.worlds.shapes import BACKGROUNDS, COLOURS, EXTENTS, SHAPES, Object, Scene, coverage

MIN_COVER = 0.5  # a pixel belongs to an object when half of it is covered
MIN_AREA = 0.25  # of the smallest shape's area: less than this is a speck, not an object
SCORES = ("background", "count", "colour", "size", "shape", "relation", "all_right")
DETAILS = ("object", "binding", "swapped")  # of the same pictures, more closely; all_right holds them already
ATTRIBUTES = ("size", "colour", "shape")


@dataclass(frozen=True)
class Seen:
    """One object found in a picture: what it is, and where its middle stands (x, y) in picture widths."""

    kind: Object
    centre: tuple[float, float]


@cache
def _area(shape: str) -> float:
    """The area of a shape whose box is one wide."""
    return float(coverage(shape, (64.0, 64.0), 100.0, 128).sum()) / 100.0**2


def look(picture: np.ndarray) -> tuple[str, list[Seen]]:
    """The background and the objects of a picture, (H, H, 3) uint8, largest object first."""
    pixels = picture.astype(np.float32)
    size = len(pixels)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    background = _nearest(np.median(border, axis=0), BACKGROUNDS)
    colour_of, alpha = _unmix(pixels, np.median(border, axis=0))
    labels, count = ndimage.label(alpha > MIN_COVER)
    smallest = MIN_AREA * min(map(_area, SHAPES)) * (EXTENTS["small"] * size) ** 2
    seen = []
    for label in range(1, count + 1):
        mask = labels == label
        if mask.sum() < smallest:
            continue
        # the rim belongs to the object too, so that its area is known to a fraction of a pixel
        weight = alpha * (ndimage.binary_dilation(mask) & ((labels == 0) | mask))
        votes = np.bincount(colour_of[mask], weights=alpha[mask] ** 4, minlength=len(COLOURS))
        shape, extent, centre = _fit(weight)
        named = min(EXTENTS, key=lambda name: abs(np.log(extent / (EXTENTS[name] * size))))
        kind = Object(named, list(COLOURS)[int(votes.argmax())], shape)
        seen.append((float(weight.sum()), Seen(kind, (centre[0] / size, centre[1] / size))))
    return background, [found for _, found in sorted(seen, key=lambda pair: -pair[0])]


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.square(colour - np.array(palette[name])).sum()))


def _unmix(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel as a mixture of the background and the palette colour that explains it best: colour index, share."""
    towards = np.array(list(COLOURS.values()), np.float32) - ground  # (colours, 3)
    offset = pixels - ground
    alpha = np.clip(offset @ towards.T / np.square(towards).sum(-1), 0, 1)  # (H, W, colours)
    residual = np.square(offset[..., None, :] - alpha[..., None] * towards).sum(-1)
    best = residual.argmin(-1)
    return best, np.take_along_axis(alpha, best[..., None], -1)[..., 0]


def _fit(weight: np.ndarray) -> tuple[str, float, tuple[float, float]]:
    """The outline of equal area and centre that overlaps best (intersection over union): shape, extent, centre in pixels."""
    size = len(weight)
    total = float(weight.sum())
    grid = np.arange(size) + 0.5
    middle = (float(weight.sum(0) @ grid) / total, float(weight.sum(1) @ grid) / total)
    best = ("", 0.0, middle, -1.0)
    for shape in SHAPES:
        extent = (total / _area(shape)) ** 0.5
        dx, dy = _centroid(shape)
        centre = (middle[0] - dx * extent, middle[1] - dy * extent)
        template = coverage(shape, centre, extent, size)
        overlap = float(np.minimum(weight, template).sum() / np.maximum(weight, template).sum())
        if overlap > best[3]:
            best = (shape, extent, centre, overlap)
    return best[:3]


@cache
def _centroid(shape: str) -> tuple[float, float]:
    """Where a shape's centre of mass lies from the middle of its box, in box widths."""
    cover = coverage(shape, (64.0, 64.0), 100.0, 128)
    grid = (np.arange(128) + 0.5 - 64.0) / 100.0
    return float(cover.sum(0) @ grid / cover.sum()), float(cover.sum(1) @ grid / cover.sum())


def score(picture: np.ndarray, asked: Scene) -> dict[str, float | None]:
    """How far a picture, (H, H, 3) uint8, shows what was asked; see `compare`."""
    background, seen = look(picture)
    return compare(background, seen, asked)


def compare(background: str, seen: list[Seen], asked: Scene) -> dict[str, float | None]:
    """How far what was seen is what was asked; every score in [0, 1], None where the caption does not say.

    The objects found are matched with those asked so that most attributes agree; `colour`, `size` and `shape` are then
    shares of the objects asked (a missing one counts as wrong), `relation` holds if the matched middles stand as asked.
    `all_right` wants everything, and not one object more. `object` is the share of the objects asked of which all
    attributes are right.

    Where two objects are asked that differ in two attributes or more, these can be bound wrongly: `swapped` is 1 where
    the picture has the attributes asked and no others, but on the wrong objects; `binding` is 1 - swapped among the
    pictures that have the attributes asked, and None for others.
    """
    wanted = asked.objects
    slots: list[Seen | None] = [*seen, *[None] * len(wanted)]

    def agreement(found: Iterable[Seen | None]) -> int:
        return sum(getattr(f.kind, name) == getattr(w, name) for f, w in zip(found, wanted, strict=True) if f for name in ATTRIBUTES)

    # only the largest few can matter; a picture full of specks must not cost a factorial
    matched = max(permutations(slots[:4] + [None] * len(wanted), len(wanted)), key=agreement)

    def share(attribute: str) -> float:
        pairs = zip(matched, wanted, strict=True)
        return sum(f is not None and getattr(f.kind, attribute) == getattr(w, attribute) for f, w in pairs) / len(wanted)

    result: dict[str, float | None] = {
        "background": None if asked.background is None else float(background == asked.background),
        "count": float(len(seen) == len(wanted)),
        "colour": share("colour"),
        "size": share("size"),
        "shape": share("shape"),
        "relation": None,
    }
    if asked.relation is not None:
        first, second = matched[0], matched[1]
        axis = 0 if asked.relation == "left of" else 1
        result["relation"] = float(first is not None and second is not None and first.centre[axis] < second.centre[axis])
    result["all_right"] = float(all(value in (None, 1.0) for value in result.values()))
    result["object"] = sum(f is not None and f.kind == w for f, w in zip(matched, wanted, strict=True)) / len(wanted)
    return result | _binding([one.kind for one in seen], wanted)


def _binding(found: list[Object], wanted: tuple[Object, ...]) -> dict[str, float | None]:
    if len(wanted) < 2 or sum(len({getattr(w, name) for w in wanted}) > 1 for name in ATTRIBUTES) < 2:
        return {"binding": None, "swapped": None}
    if any(sorted(getattr(f, name) for f in found) != sorted(getattr(w, name) for w in wanted) for name in ATTRIBUTES):
        return {"binding": None, "swapped": 0.0}
    bound = float(sorted(map(str, found)) == sorted(map(str, wanted)))
    return {"binding": bound, "swapped": 1.0 - bound}
