"""The pictures of a report as files: single samples, and sheets of ways beside the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unclip.evaluation.heldout import SHAPES, TEXT, TRUE
from unclip.evaluation.judge_scenes import wrong_parts
from unclip.evaluation.manipulations import Manipulated
from unclip.evaluation.picture_measures import CopySheet, Made
from unclip.evaluation.pictures import COLUMNS, comparison_sheet, contact_sheet, save_png
from unclip.evaluation.ways import CAPTION_ALONE, REAL, TEXT_DECODER, hidden_name
from unclip.files import replacing

GRID, PICTURES, COPIES = "grid.png", "pictures", "copies.png"
SHORT = {
    REAL: "real",
    TRUE: "from its true embedding",
    TEXT: "text embedding as image's",
    TEXT_DECODER: "decoder trained on text",
    CAPTION_ALONE: "caption alone",
}


def write_pictures(folder: Path, made: Made, copies: CopySheet | None, manipulated: Manipulated | None, *, num_shown: int, world: str) -> dict[str, Any]:
    """Writes the samples and sheets, and says what is where, relative to the report's folder."""
    samples: list[dict[str, Any]] = []
    comparisons: dict[str, str] = {}
    shown = shown_rows(made)
    with replacing(folder / PICTURES) as aside:
        aside.mkdir()
        # numbered, since the name of a split may hold anything
        for number, (one, pictures) in enumerate(zip(made.asked, made.pictures, strict=True)):
            captions, keys = one.rows.captions[:num_shown], one.rows.keys[:num_shown]
            for row, (caption, key, picture) in enumerate(zip(captions, keys, pictures[made.shown][:num_shown], strict=True)):
                name = f"sample-{number}-{row:03d}.png"
                Image.fromarray(picture).save(aside / name)
                wrong = wrong_parts(picture, caption) if world == SHAPES else None
                samples.append({"split": one.split, "key": key, "caption": caption, "file": f"{PICTURES}/{name}", "wrong": wrong})
            comparisons[one.split] = f"{PICTURES}/compared-{number}.png"
            compared = captions[:COLUMNS]  # one line of columns: with a dozen ways a second would be far below the first
            comparison_sheet({label: pictures[row][: len(compared)] for row, label in shown.items()}, compared).save(aside / f"compared-{number}.png")
        if copies is not None:
            comparison_sheet({"generated": copies.generated, "nearest in training": copies.training}, copies.labels).save(aside / COPIES)
        sheets = {} if manipulated is None else manipulated.sheets
        for name, sheet in sheets.items():
            sheet.save(aside / f"{name}.png")
    shown_pictures = [pictures[made.shown][:num_shown] for pictures in made.pictures]
    save_png(folder / GRID, contact_sheet(np.concatenate(shown_pictures), [sample["caption"] for sample in samples]))
    return {
        "grid": GRID,
        "samples": samples,
        "comparisons": comparisons,
        "copies": None if copies is None else f"{PICTURES}/{COPIES}",
        "manipulations": {name: f"{PICTURES}/{name}.png" for name in sheets},
    }


def shown_rows(made: Made) -> dict[str, str]:
    """The rows that stand under each other in the sheets, with the label of each."""
    baseline = made.predictions[0].baseline
    both = [REAL, TRUE, made.chosen, baseline, TEXT, TEXT_DECODER]
    hidden = [hidden_name(name) for name in (TRUE, made.chosen, baseline, TEXT)]
    there: Sequence[str] = [name for name in (*both, *hidden, CAPTION_ALONE) if name in made.pictures[0]]
    labels = {name: SHORT.get(name, name) for name in both} | {hidden_name(name): f"{SHORT.get(name, name)}, caption hidden" for name in both}
    return {name: labels.get(name, SHORT.get(name, name)) for name in there}
