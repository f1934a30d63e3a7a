"""Edits by words over theta: does the picture show what was asked for, and is all else still there (paper, section 3.3)?

Measured in the shapes world, where a program reads pictures back: the first object is asked to have another colour. The
picture that comes back at theta 0 shows what inversion and decoder alone change.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from unclip.data.loader import as_pictures
from unclip.diffusion.slerp import slerp
from unclip.evaluation.intervals import mean_with_interval
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models, text_condition
from unclip.manipulate.edit import text_difference
from unclip.manipulate.latent import draw, embed_pictures, invert
from unclip.worlds.judge import Seen, compare, look
from unclip.worlds.shapes import Scene, parse_caption

JUDGED_THETAS = (0.0, 0.25, 0.375, 0.5)  # nothing asked for, and the paper's range
COLOUR_BLIND = ("background", "count", "size", "shape", "relation")  # scores that say nothing of colours


def measure_edits(pictures: np.ndarray, edits: Mapping[int, tuple[str, str]], models: Models, config: GenerateConfig, *, seed: int) -> list[dict[str, Any]]:
    """For each theta the share of edited pictures that have the colour asked for, that kept all else, and that have both.

    Args:
        pictures: (n, H, H, 3) uint8; edits: a row of them -> captions before and after, see `edits_of`.
        config: with a deterministic sampler, see `deterministic`.

    Returns:
        nothing where there is no edit that CLIP can tell.
    """
    told = {row: pair for row, pair in edits.items() if row < len(pictures) and _told_apart(models, *pair)}
    if not told:
        return []
    before, after = ([pair[number] for pair in told.values()] for number in (0, 1))
    drawn = draw_edits([Image.fromarray(pictures[row]) for row in told], before, after, models, config)
    measured = []
    for theta, made in zip(JUDGED_THETAS, drawn, strict=True):
        judged = [judge_edit(picture, parse_caption(one), parse_caption(other)) for picture, one, other in zip(made, before, after, strict=True)]
        changed, kept = (np.array([pair[number] for pair in judged], np.float64) for number in (0, 1))
        values = {"changed": changed, "kept": kept, "both": changed * kept}
        measured.append({"theta": theta} | {name: mean_with_interval(value, seed=seed) for name, value in values.items()})
    return measured


def _told_apart(models: Models, before: str, after: str) -> bool:
    text_emb = text_condition(models.clip, [before, after]).text_emb
    try:
        text_difference(text_emb[1:], text_emb[:1])
    except UnclipError:  # the same to CLIP: there is no way between them
        return False
    return True


@torch.no_grad()
def draw_edits(pictures: Sequence[Image.Image], before: Sequence[str], after: Sequence[str], models: Models, config: GenerateConfig) -> list[np.ndarray]:
    """Of each theta, n pictures (n, H, H, 3) uint8 turned from one caption towards another, all at once; as `edit` does it one by one."""
    latent = invert(models, *embed_pictures(models, pictures), config)
    text_emb = text_condition(models.clip, [*before, *after]).text_emb
    towards = text_difference(text_emb[len(before) :], text_emb[: len(before)]) * latent.image_emb.norm(dim=-1, keepdim=True)
    image_emb = torch.cat([slerp(latent.image_emb, towards, theta) for theta in JUDGED_THETAS])
    made = as_pictures(draw(models, image_emb, latent.x_T.repeat(len(JUDGED_THETAS), 1, 1, 1), config))
    return np.split(made, len(JUDGED_THETAS))


def judge_edit(picture: np.ndarray, before: Scene, after: Scene) -> tuple[bool, bool]:
    """Whether the first object has its new colour and no longer the old one, and whether all else is as it was; by program."""
    background, seen = look(picture)
    return colour_changed(seen, before, after), all_else_kept(background, seen, before, after)


def colour_changed(seen: Sequence[Seen], before: Scene, after: Scene) -> bool:
    """Whether there are as many objects of the new colour as asked for, and no more of the old one."""
    found, wanted = (Counter(kind.colour for kind in kinds) for kinds in ([one.kind for one in seen], after.objects))
    new, old = after.objects[0].colour, before.objects[0].colour
    return found[new] >= wanted[new] and found[old] <= wanted[old]


def all_else_kept(background: str, seen: list[Seen], before: Scene, after: Scene) -> bool:
    """Whether background, number, sizes, outlines and places are those of the caption, and the other object is there with its colour."""
    # whichever of its two colours the edited object has, the objects are matched by it
    best = max((compare(background, seen, scene) for scene in (before, after)), key=lambda scores: sum(scores[name] or 0.0 for name in COLOUR_BLIND))
    found = Counter(one.kind for one in seen)
    return all(best[name] in (None, 1.0) for name in COLOUR_BLIND) and all(found[kind] for kind in after.objects[1:])
