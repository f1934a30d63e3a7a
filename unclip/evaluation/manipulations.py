"""What the models do with a picture (paper, sections 3 and 4), measured where there is a number and shown where there is none.

The round trip through DDIM inversion must come nearer to the picture with more steps; variations must leave it the
further, the more noise they add; edits by text differences are judged where a program can read pictures; interpolation and
principal components are sheets to look at.
The decoder is not guided and reads no caption here, as in the commands of the same names.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unclip.data.store import normalised
from unclip.evaluation.edits import measure_edits
from unclip.evaluation.heldout import SHAPES, Asked
from unclip.evaluation.pictures import comparison_sheet
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models
from unclip.manipulate.edit import THETAS, edit
from unclip.manipulate.interpolate import interpolate
from unclip.manipulate.latent import Drawn, deterministic, drawn, embed_pictures, invert
from unclip.manipulate.reconstruct import components_of, reconstruct
from unclip.manipulate.roundtrip import measure_round_trip
from unclip.worlds.shapes import COLOURS, parse_caption

ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
VARIATIONS = 2  # a picture and eta; eta 0 has one
FRAMES = 7  # of an interpolation
COMPONENTS = (1, 2, 5, 10, 20, 40, 80, 160, 320)  # those of them that an embedding has
EVERY = 1_000_000.0  # decibels of two equal pictures are infinite, which no report can hold


@dataclass(frozen=True)
class Manipulated:
    """The section of the report, and its sheets: a name -> picture."""

    section: dict[str, Any]
    sheets: dict[str, Image.Image]


def manipulate(
    asked: Asked, originals: Sequence[Image.Image], models: Models, store: Path, generate: GenerateConfig, *, num_steps: Sequence[int], world: str,
    judged: np.ndarray,
) -> Manipulated:  # fmt: skip
    """Everything that starts from a picture, done to the first rows of a split.

    Args:
        originals: their pictures, of any size.
        num_steps: that the round trip is measured with; all else takes the last, but for the edits that are judged, which take
            the middle one.
        judged: (n, H, H, 3) uint8, the pictures of the first rows whose edits are judged, in the shapes world.
    """
    config = dataclasses.replace(deterministic(generate), guidance_scale=1.0, decoder_steps=num_steps[-1])
    pixels, image_emb = embed_pictures(models, originals)
    trips = measure_round_trip(models, pixels, image_emb, config, num_steps=num_steps)
    section: dict[str, Any] = {
        "split": asked.split,
        "pictures": len(originals),
        "steps": num_steps[-1],
        "edits": None,
        "round_trip": [{"steps": trip.num_steps, "psnr": min(trip.psnr, EVERY), "max_error": trip.max_error} for trip in trips],
    }
    sheets: dict[str, Image.Image] = {}
    latent = invert(models, pixels, image_emb, config)
    made = {}
    for eta in ETAS:
        num = VARIATIONS if eta else 1
        varied = [
            drawn(
                models, [picture], latent[row].image_emb.expand(num, -1), latent[row].x_T.expand(num, -1, -1, -1), [{"eta": eta}] * num,
                dataclasses.replace(config, eta=eta), "",
            )
            for row, picture in enumerate(originals)
        ]  # fmt: skip
        made[eta] = np.stack([one.pictures for one in varied])  # (m, num, H, H, 3)
        originals_drawn = np.concatenate([one.originals for one in varied])
    emb = image_emb.float().cpu().numpy()
    section["variations"] = [{"eta": eta} | measure_variations(models, pictures, emb) for eta, pictures in made.items()]
    columns = {"original": originals_drawn} | {f"eta {eta:g}": pictures[:, 0] for eta, pictures in made.items()}
    sheets["variations"] = comparison_sheet(columns, [""] * len(originals))
    if len(originals) > 1:
        rows = {f"noise {noise}": interpolate(models, originals[0], originals[1], config, num=FRAMES, noise=noise) for noise in ("slerp", "fixed")}
        sheets["interpolation"] = _sheet(rows, [f"theta {step / (FRAMES - 1):.2f}" for step in range(FRAMES)])
    edits = edits_of(asked.rows.captions[: len(originals)], world)
    turned = {}
    for row, (before, after) in edits.items():
        try:
            turned[f"{before} → {after}"] = edit(models, originals[row], config, before=before, after=after)
        except UnclipError:  # CLIP can't tell the two captions apart: then there is no way between them to show
            continue
    if turned:
        sheets["edits"] = _sheet(turned, [f"theta {theta:g}" for theta in THETAS], with_original=True)
    if world == SHAPES and len(judged):
        steps = num_steps[len(num_steps) // 2]
        measured = measure_edits(
            judged, edits_of(asked.rows.captions[: len(judged)], world), models, dataclasses.replace(config, decoder_steps=steps), seed=generate.seed
        )
        section["edits"] = {"steps": steps, "pictures": measured[0]["both"]["number"] if measured else 0, "thetas": measured}
    components = components_of(store)
    numbers = [num for num in COMPONENTS if num < emb.shape[1]] + [emb.shape[1]]
    parts = {f"{row + 1}.": reconstruct(models, picture, components, config, pca=numbers) for row, picture in enumerate(originals)}
    sheets["components"] = _sheet(parts, [f"{num} ({components.held(num):.0%})" for num in numbers], with_original=True)
    return Manipulated(section, sheets)


@torch.no_grad()
def measure_variations(models: Models, pictures: np.ndarray, source_emb: np.ndarray) -> dict[str, Any]:
    """Of variations (m, v, H, H, 3) uint8 of m pictures with embeddings (m, E): how like their source, and how unlike each other.

    Returns:
        `similarity`, the mean cosine of CLIP's embeddings with the source's; and `diversity`, the root mean squared
        difference of two variations of one picture, 1 being black to white, None where there is one of each.
    """
    num, each = pictures.shape[:2]
    emb = models.clip.encode_pictures([Image.fromarray(picture) for of_one in pictures for picture in of_one]).float().cpu().numpy()
    cosines = (normalised(emb).reshape(num, each, -1) * normalised(source_emb)[:, None]).sum(axis=2)
    values = pictures.astype(np.float64) / 255.0
    apart = [np.sqrt(np.square(values[:, a] - values[:, b]).mean(axis=(1, 2, 3))).mean() for a, b in combinations(range(each), 2)]
    return {"similarity": float(cosines.mean()), "diversity": float(np.mean(apart)) if apart else None, "number": num * each}


def edits_of(captions: Sequence[str], world: str) -> dict[int, tuple[str, str]]:
    """A row -> the caption of its picture, and what it is turned towards: in the shapes world another colour of the first object, else the next caption."""
    edits = {}
    for row, caption in enumerate(captions):
        if world == SHAPES:
            thing, colours = parse_caption(caption).objects[0], list(COLOURS)
            other = colours[(colours.index(thing.colour) + len(colours) // 2) % len(colours)]
            after = caption.replace(str(thing), str(dataclasses.replace(thing, colour=other)), 1)
        else:
            after = captions[(row + 1) % len(captions)]
        if after != caption:
            edits[row] = (caption, after)
    return edits


def _sheet(rows: dict[str, Drawn], labels: Sequence[str], *, with_original: bool = False) -> Image.Image:
    """Pictures in rows, if asked for after the one that they came from."""
    first = ["original"] if with_original else []
    pictures = {name: np.concatenate([one.originals[: len(first)], one.pictures]) for name, one in rows.items()}
    return comparison_sheet(pictures, [*first, *labels], columns=len(first) + len(labels))
