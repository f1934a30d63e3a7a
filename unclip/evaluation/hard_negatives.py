"""Can CLIP tell a caption from the same words on the wrong objects? What it can't tell, no decoder on its embedding can bind.

Every caption of two objects is turned into wrong ones by exchanging one kind of attribute between them, the rest of the
sentence staying as it is; CLIP is right where the picture is nearer to the true caption (paper, section 7).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from unclip.clip import Clip
from unclip.data.store import normalised
from unclip.evaluation.heldout import Asked, batches
from unclip.evaluation.intervals import mean_with_interval
from unclip.worlds.judge import ATTRIBUTES
from unclip.worlds.shapes import Object, parse_caption

MARK = "\0"  # stands in for an object while the other is put in its place
EVERYTHING = "both objects"


def exchanged(caption: str, attribute: str) -> str | None:
    """The caption with one kind of attribute exchanged between its two objects, or with the two exchanged whole.

    None where that gives the same scene, or there are not two objects.
    """
    scene = parse_caption(caption)
    if len(scene.objects) < 2:
        return None
    first, second = scene.objects
    if attribute == EVERYTHING:
        new_first, new_second = second, first
    else:
        new_first = dataclasses.replace(first, **{attribute: getattr(second, attribute)})
        new_second = dataclasses.replace(second, **{attribute: getattr(first, attribute)})
    return None if (new_first, new_second) == (first, second) else _with_objects(caption, (first, second), (new_first, new_second))


def _with_objects(caption: str, old: tuple[Object, Object], new: tuple[Object, Object]) -> str:
    return caption.replace(str(old[0]), MARK, 1).replace(str(old[1]), str(new[1]), 1).replace(MARK, str(new[0]), 1)


def measure_hard_negatives(asked: Sequence[Asked], clip: Clip, *, batch_size: int, seed: int) -> dict[str, Any]:
    """For each split and kind of exchange, the share of captions that lie nearer to their picture than the wrong one does.

    A tie counts half. Captions to which an exchange does nothing are left out; so is a kind that is left with none.
    """
    measured: dict[str, Any] = {}
    for one in asked:
        rows = one.rows
        images, texts = normalised(rows.true_emb), _encoded(clip, rows.captions, batch_size)
        found = {}
        for attribute in (*ATTRIBUTES, EVERYTHING):
            wrong = {row: other for row, caption in enumerate(rows.captions) if (other := exchanged(caption, attribute)) is not None}
            if not wrong:
                continue
            chosen = list(wrong)
            lead = (images[chosen] * (texts[chosen] - _encoded(clip, list(wrong.values()), batch_size))).sum(axis=1)
            found[attribute] = mean_with_interval(np.where(lead == 0, 0.5, lead > 0).astype(np.float64), seed=seed)
        measured[one.split] = found
    return measured


def _encoded(clip: Clip, captions: Sequence[str], batch_size: int) -> np.ndarray:
    return normalised(np.concatenate([clip.encode_texts(chunk).text_emb.float().cpu().numpy() for _, chunk in batches(captions, batch_size)]))
