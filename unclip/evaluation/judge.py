"""Do the pictures show what was asked? Told by a judge that no model was trained with, beside ceiling and floor.

Shapes are read back by program (`unclip.worlds.judge`). For any other data the question is whether a generated picture
can be told from the others as the one that was asked for: by CLIP, which it was also made with, and by plain pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unclip.clip import Clip
from unclip.data.index import Index
from unclip.evaluation.heldout import SHAPES, TEXT, TRUE, HeldOut, Predictions, batches
from unclip.evaluation.intervals import mean_with_interval
from unclip.generate import GenerateConfig, Models, decode_embeddings, text_condition
from unclip.progress import progress
from unclip.worlds.judge import DETAILS, SCORES, score
from unclip.worlds.shapes import parse_caption

REAL, DECODED, PRIOR, SHUFFLED = "real pictures", "decoder from true embedding", "prior", "shuffled captions"
IDENTIFIED = (1, 5)
PIXEL_SIDE = 16

PROGRAM = (
    "program",
    "A program that knows the palette and the outlines of the shapes world reads each picture back; nothing in it was trained. Real pictures are its ceiling; "
    "generated pictures held against other rows' captions are the floor, what luck gives.",
)
BY_CLIP = (
    "CLIP (also used to make the pictures)",
    "Each picture is embedded by CLIP and looked up among all pictures of the index. The same CLIP gave the models their embeddings, so this judge is partial: "
    "it says whether the loop closes, not whether a person would agree.",
)
BY_PIXELS = (
    "pixels (used by no model)",
    f"Each picture is reduced to {PIXEL_SIDE}x{PIXEL_SIDE} and the real held-out pictures are sorted by mean squared error to it. Nothing here was trained; "
    "it sees colour and rough form only. Real pictures find themselves.",
)

Judged = dict[str, dict[str, np.ndarray]]  # row -> metric -> (p,) values, NaN where a metric does not apply


def make_pictures(
    held: HeldOut, real: np.ndarray, predicted: Predictions, models: Models, generate: GenerateConfig, *, num: int, batch_size: int
) -> dict[str, np.ndarray]:
    """The first `num` test rows as pictures (p, H, H, 3) uint8: real ones, and decoded from each kind of embedding.

    Every row is decoded from the same noise, so that two kinds differ by their embedding alone.
    """
    captions = held.test.captions[:num]
    kinds = {DECODED: TRUE, PRIOR: predicted.chosen, predicted.baseline: predicted.baseline, TEXT: TEXT}
    pictures = {REAL: real[: len(captions)]}
    with progress(f"decode {held.split}", len(captions) * len(kinds), unit="picture") as bar:
        conditions = [(rows, text_condition(models.clip, chunk)) for rows, chunk in batches(captions, batch_size)]
        for kind, name in kinds.items():
            made = []
            for rows, condition in conditions:
                image_emb = condition.text_emb.new_tensor(predicted.rows[name][rows.start : rows.stop])
                made.append(decode_embeddings(models.decoder, image_emb, condition, generate, rows=rows))
                bar.advance(len(rows))
            pictures[kind] = np.concatenate(made)
    return pictures


def measure_judges(
    splits: Sequence[HeldOut], real: Sequence[np.ndarray], pictures: Sequence[Mapping[str, np.ndarray]], clip: Clip, index: Index, *, world: str, seed: int
) -> dict[str, Any]:
    """What every judge that fits the data says of each held-out split, given the real pictures of its test rows."""
    if world == SHAPES:
        by_program = [judge_scenes(made, held.test.captions) for held, made in zip(splits, pictures, strict=True)]
        return {"kind": "program", "judges": [_report(PROGRAM, splits, by_program, [*SCORES, *DETAILS], {}, seed)]}
    by_clip = [identify_by_clip(made, held.test.keys, clip, index) for held, made in zip(splits, pictures, strict=True)]
    by_pixels = [identify_by_pixels(made, of_split) for of_split, made in zip(real, pictures, strict=True)]
    names = [f"top_{k}" for k in IDENTIFIED]
    whole, parts = len(index.keys), {held.split: len(held.test) for held in splits}
    return {
        "kind": "identification",
        "judges": [
            _report(BY_CLIP, splits, by_clip, names, dict.fromkeys(parts, whole), seed),
            _report(BY_PIXELS, splits, by_pixels, names, parts, seed),
        ],
    }


def judge_scenes(pictures: Mapping[str, np.ndarray], captions: Sequence[str]) -> Judged:
    """What the program of the shapes world says of each kind of picture; the floor is left out where there is one row."""
    asked = [parse_caption(caption) for caption in captions[: len(pictures[REAL])]]
    judged = {kind: _scores(made, asked) for kind, made in pictures.items()}
    if len(asked) > 1:
        judged[SHUFFLED] = _scores(pictures[PRIOR], asked[1:] + asked[:1])
    return judged


def _scores(pictures: np.ndarray, asked: Sequence[Any]) -> dict[str, np.ndarray]:
    scored = [score(picture, scene) for picture, scene in zip(pictures, asked, strict=True)]
    return {name: np.array([np.nan if (value := one[name]) is None else value for one in scored], np.float64) for name in (*SCORES, *DETAILS)}


def identify_by_clip(pictures: Mapping[str, np.ndarray], keys: Sequence[str], clip: Clip, index: Index) -> Judged:
    """Whether CLIP finds the true picture (by key) among all of the index, held-out and training, from each picture made."""
    row_of = {str(key): row for row, key in enumerate(index.keys["key"].to_pylist())}
    judged = {}
    for kind, made in pictures.items():
        emb = clip.encode_pictures([Image.fromarray(picture) for picture in made]).numpy()
        _, found = index.search(emb, max(IDENTIFIED))
        wanted = np.array([row_of[key] for key in keys[: len(made)]])
        judged[kind] = {f"top_{k}": (found[:, :k] == wanted[:, None]).any(axis=1).astype(np.float64) for k in IDENTIFIED}
    return judged


def identify_by_pixels(pictures: Mapping[str, np.ndarray], real: np.ndarray) -> Judged:
    """Whether the true picture is among the nearest real ones (g, H, H, 3) by mean squared error; row i belongs to real i."""
    gallery = thumbnails(real)
    judged = {}
    for kind, made in pictures.items():
        errors = np.stack([np.square(gallery - one).mean(axis=1) for one in thumbnails(made)])  # (p, g)
        rows = np.arange(len(made))
        place = (errors < errors[rows, rows][:, None]).sum(axis=1)
        judged[kind] = {f"top_{k}": (place < k).astype(np.float64) for k in IDENTIFIED}
    return judged


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """(n, H, H, 3) uint8 -> (n, 16 * 16 * 3) float32 in [0, 1], averaged over areas."""
    size = (PIXEL_SIDE, PIXEL_SIDE)
    small = [np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX), np.float32) for picture in pictures]
    return np.stack(small).reshape(len(small), -1) / 255.0


def _report(
    about: tuple[str, str], splits: Sequence[HeldOut], judged: Sequence[Judged], metrics: list[str], galleries: Mapping[str, int], seed: int
) -> dict[str, Any]:
    found = {}
    for held, of_split in zip(splits, judged, strict=True):
        rows = {kind: summarise(values, seed=seed) for kind, values in of_split.items()}
        gallery = galleries.get(held.split)
        chance = {f"top_{k}": min(1.0, k / gallery) for k in IDENTIFIED} if gallery else None
        found[held.split] = {"pictures": len(next(iter(of_split[REAL].values()))), "gallery": gallery, "chance": chance, "rows": rows}
    return {"name": about[0], "about": about[1], "metrics": metrics, "splits": found}


def summarise(values: Mapping[str, np.ndarray], *, seed: int) -> dict[str, dict[str, float]]:
    """Mean, interval and number of pictures of each metric that applies to any picture."""
    applying = {name: column[~np.isnan(column)] for name, column in values.items()}
    return {name: mean_with_interval(column, seed=seed) for name, column in applying.items() if len(column)}


def wrong_parts(picture: np.ndarray, caption: str) -> list[str]:
    """What of a shapes caption a picture does not show, by the program; empty where all is right."""
    scored = score(picture, parse_caption(caption))
    return [name for name in SCORES if name != "all_right" and scored[name] not in (None, 1.0)]


def gap_closed(judges: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """How far prior and baseline go from the plain text embedding (0) to the true image embedding (1), by the last judge.

    None where the interval of the true embedding takes in what the text embedding reaches: then there is no way to go.
    """
    judge = judges["judges"][-1]
    metric = "all_right" if judges["kind"] == "program" else f"top_{IDENTIFIED[-1]}"
    closed: dict[str, Any] = {}
    for split, found in judge["splits"].items():
        mean = {kind: found["rows"][kind][metric]["mean"] for kind in (DECODED, PRIOR, baseline, TEXT)}
        apart = found["rows"][DECODED][metric]["low"] > mean[TEXT]
        closed[split] = {kind: (mean[kind] - mean[TEXT]) / (mean[DECODED] - mean[TEXT]) if apart else None for kind in (PRIOR, baseline)}
    return {"judge": judge["name"], "metric": metric, "baseline": baseline, "splits": closed}
