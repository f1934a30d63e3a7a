"""A scene of the shapes world as eight numbers, which classifiers learn to tell, and back as what a judge has seen."""

from collections.abc import Sequence

from unclip.evaluation.classifier import UNSAID
from unclip.worlds.judge import Seen
from unclip.worlds.shapes import BACKGROUNDS, COLOURS, EXTENTS, RELATIONS, SHAPES, Object, Scene

THING = (len(EXTENTS), len(COLOURS), len(SHAPES))
HEADS = (len(BACKGROUNDS), 1 + len(RELATIONS), *THING, *THING)  # classes of: background, one object or which relation of two, both objects

_BACKGROUNDS, _COLOURS, _SIZES = list(BACKGROUNDS), list(COLOURS), list(EXTENTS)
_PLACES = {0: ((0.5, 0.5),), 1 + RELATIONS.index("left of"): ((0.3, 0.5), (0.7, 0.5)), 1 + RELATIONS.index("above"): ((0.5, 0.3), (0.5, 0.7))}


def labels_of(scene: Scene) -> list[int]:
    """One number for each of HEADS; UNSAID for a background that is not named and a second object that is not there."""
    labels = [UNSAID if scene.background is None else _BACKGROUNDS.index(scene.background)]
    labels.append(0 if scene.relation is None else 1 + RELATIONS.index(scene.relation))
    for thing in scene.objects:
        labels += [_SIZES.index(thing.size), _COLOURS.index(thing.colour), SHAPES.index(thing.shape)]
    return labels + [UNSAID] * (len(HEADS) - len(labels))


def seen_of(labels: Sequence[int]) -> tuple[str, list[Seen]]:
    """The background and the objects that eight numbers name, as `unclip.worlds.judge.compare` takes them."""
    places = _PLACES[labels[1]]
    starts = range(2, 2 + len(THING) * len(places), len(THING))
    things = [Object(_SIZES[labels[at]], _COLOURS[labels[at + 1]], SHAPES[labels[at + 2]]) for at in starts]
    return _BACKGROUNDS[labels[0]], [Seen(thing, place) for thing, place in zip(things, places, strict=True)]
