"""The judges of the shapes world: a program and a network read each picture back, and it is compared with its caption."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unclip.evaluation.confusion import measure_confusion
from unclip.evaluation.heldout import Asked
from unclip.evaluation.judge import Judge, Judged
from unclip.evaluation.reader import CHECKING, Reading, fresh_renders, read_pictures, train_reader
from unclip.evaluation.ways import REAL, SHUFFLED
from unclip.worlds.judge import DETAILS, SCORES, compare, look
from unclip.worlds.shapes import Scene, parse_caption

NUM_CHECKED = 300  # fresh renders that say how well a judge reads
METRICS = (*SCORES, *DETAILS)

ABOUT_PROGRAM = (
    "A program that knows the palette and the outlines of the shapes world reads each picture back; nothing in it was trained. Real pictures are its "
    "ceiling; generated pictures held against other rows' captions are the floor, what luck gives."
)
ABOUT_NETWORK = (
    "A small network that was trained for this report on fresh renders alone, reads each picture as a whole and always names one or two objects. "
    "No model has seen it, and it has seen no model's picture; where it and the program agree, the number does not hang on how either reads."
)

Read = Callable[[np.ndarray], list[Reading]]


def judge_shapes(
    asked: Sequence[Asked], pictures: Sequence[Mapping[str, np.ndarray]], chosen: str, *, image_size: int, judge_steps: int, seed: int
) -> list[Judge]:
    """The program, and after `judge_steps` of training (0: without it) the network.

    Args:
        pictures: of each split, a row -> (p, H, H, 3) uint8.
        chosen: the row that is held against other captions for the floor.
        image_size: side of the fresh renders that both are checked on.
    """
    readers: list[tuple[str, str, Read]] = [("program", ABOUT_PROGRAM, lambda made: [look(picture) for picture in made])]
    if judge_steps:
        network = train_reader(image_size=image_size, num_steps=judge_steps, seed=seed)
        readers.append(("network", ABOUT_NETWORK, lambda made: read_pictures(network, made)))
    renders, scenes = fresh_renders(NUM_CHECKED, image_size=image_size, seed=seed, stream=CHECKING)
    judges = []
    for name, about, read in readers:
        judged = {one.split: judge_scenes(made, one.rows.captions, chosen, read) for one, made in zip(asked, pictures, strict=True)}
        judges.append(Judge(name, about, METRICS, judged, checked=measure_confusion(read(renders), scenes)))
    return judges


def judge_scenes(pictures: Mapping[str, np.ndarray], captions: Sequence[str], chosen: str, read: Read) -> Judged:
    """What one judge says of each row of pictures; the floor is left out where there is one picture."""
    asked = [parse_caption(caption) for caption in captions[: len(pictures[REAL])]]
    readings = {row: read(made) for row, made in pictures.items()}
    judged = {row: compare_all(read_back, asked) for row, read_back in readings.items()}
    if len(asked) > 1:
        judged[SHUFFLED] = compare_all(readings[chosen], asked[1:] + asked[:1])
    return judged


def compare_all(readings: Sequence[Reading], asked: Sequence[Scene]) -> dict[str, np.ndarray]:
    """The scores of what was read against what was asked, (p,) each, NaN where a caption does not say."""
    scored = [compare(background, seen, scene) for (background, seen), scene in zip(readings, asked, strict=True)]
    return {name: np.array([np.nan if (value := one[name]) is None else value for one in scored], np.float64) for name in METRICS}


def wrong_parts(picture: np.ndarray, caption: str) -> list[str]:
    """What of a shapes caption a picture does not show, by the program; empty where all is right."""
    background, seen = look(picture)
    scored = compare(background, seen, parse_caption(caption))
    return [name for name in SCORES if name != "all_right" and scored[name] not in (None, 1.0)]
