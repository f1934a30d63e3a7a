"""`unclip evaluate upsampler`: what the upsamplers add to enlarging by formula, on real small pictures and on generated ones."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from torch.nn import functional as F

from unclip.data.loader import as_pictures, as_pixels
from unclip.evaluation import page
from unclip.evaluation.config import EvaluateSection
from unclip.evaluation.heldout import SHAPES, read_held_out
from unclip.evaluation.intervals import mean_with_interval
from unclip.evaluation.pictures import comparison_sheet, save_png
from unclip.evaluation.real_pictures import decode_all, read_encoded
from unclip.files import UnclipError, write_json
from unclip.generate import Models, generate, upsample_pictures
from unclip.layout import Paths
from unclip.printable import printable
from unclip.upsampler import Upsampler, enlarged
from unclip.worlds.judge import score
from unclip.worlds.shapes import parse_caption

NUMBERS, SHEET = "upsampler.json", "upsampler.png"
REAL, SMALL, BILINEAR, BICUBIC, UPSAMPLED = "real", "small", "bilinear", "bicubic", "upsampled"
SHOWN = (SMALL, BILINEAR, UPSAMPLED, REAL)
PSNR, ALL_RIGHT = "psnr", "all_right"
ROUNDING = 1 / 12  # mean square of what rounding to whole numbers does

Numbers = dict[str, dict[str, dict[str, float]]]  # row -> metric -> mean, low, high, number


def evaluate_upsamplers(
    paths: Paths, upsamplers: Sequence[Upsampler], models: Models | None, section: EvaluateSection, *, low_size: int, num: int
) -> dict[str, dict[str, Numbers]]:
    """Measures on `num` held-out pictures of each split, and leaves `upsampler.json` and `upsampler.png` in the report's folder.

    Two things are enlarged: real pictures shrunk to `low_size`, the decoder's, which can be compared with what they were;
    and pictures that `models` generate from the same captions, which only a judge can tell right from wrong. Without
    models there are only the first.

    Raises:
        UnclipError: there is no upsampler or no held-out row.
    """
    if not upsamplers:
        raise UnclipError("there is no upsampler to measure: expected upsampler.num_upsamplers to be 1 or 2, got 0")
    config = section.generate
    splits = read_held_out(paths.embeddings, section.evaluate, seed=config.seed)
    encoded = read_encoded(paths.shards, [key for held in splits for key in held.test.keys[:num]])
    found: dict[str, dict[str, Numbers]] = {}
    sheets: list[dict[str, np.ndarray]] = []
    captions: list[str] = []
    for held in splits:
        asked, keys = held.test.captions[:num], held.test.keys[:num]
        low_res, real = (decode_all(encoded, keys, image_size=side) for side in (low_size, upsamplers[-1].config.unet.image_size))
        judged = asked if section.world == SHAPES else []
        rows = ways(low_res, upsample_pictures(upsamplers, low_res, config, rows=range(len(asked))))
        found[held.split] = {"real": measure_real(rows, real, judged, seed=config.seed)}
        if models is not None:
            made = generate(models, asked, config, label=held.split)
            rows = ways(made.decoded, made.pictures)
            found[held.split]["generated"] = measure_rows(rows, judged, seed=config.seed)
        shown = section.evaluate.num_shown // len(splits)
        sheets.append({row: pictures[:shown] for row, pictures in (rows | {REAL: real}).items()})
        captions += asked[:shown]
    save_png(paths.report / SHEET, comparison_sheet({row: np.concatenate([sheet[row] for sheet in sheets]) for row in SHOWN}, captions))
    write_json(paths.report / NUMBERS, {"title": paths.root.name, "num": num, "splits": found})
    return found


def ways(small: np.ndarray, upsampled: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures (n, h, h, 3) uint8 enlarged in each way to (n, H, H, 3) uint8, beside what the upsamplers made of them."""
    side = upsampled.shape[1]
    low_res = as_pixels(small)
    return {
        SMALL: as_pictures(F.interpolate(low_res, (side, side), mode="nearest")),
        BILINEAR: as_pictures(enlarged(low_res, (side, side), "bilinear")),
        BICUBIC: as_pictures(enlarged(low_res, (side, side), "bicubic")),
        UPSAMPLED: upsampled,
    }


def measure_real(rows: Mapping[str, np.ndarray], real: np.ndarray, captions: Sequence[str], *, seed: int) -> Numbers:
    """Enlarged pictures, a way a row, (n, H, H, 3) uint8, against the real ones that were shrunk for them; and these themselves."""
    found = measure_rows(dict(rows) | {REAL: real}, captions, seed=seed)
    for row, made in rows.items():
        found[row][PSNR] = mean_with_interval(psnr(made, real), seed=seed)
    return found


def measure_rows(rows: Mapping[str, np.ndarray], captions: Sequence[str], *, seed: int) -> Numbers:
    """How many of the pictures of each row show all that their captions of the shapes world ask for; nothing without captions."""
    found: Numbers = {name: {} for name in rows}
    for name, pictures in rows.items() if captions else ():
        right = [score(picture, parse_caption(caption))[ALL_RIGHT] for picture, caption in zip(pictures, captions, strict=True)]
        found[name][ALL_RIGHT] = mean_with_interval(np.array(right, np.float64), seed=seed)
    return found


def psnr(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture in dB, (n,); inputs (n, H, H, 3) uint8. Equal ones have the 59 dB of rounding."""
    error = np.square(made.astype(np.float64) - true).mean(axis=(1, 2, 3))
    return np.asarray(20 * np.log10(255.0) - 10 * np.log10(np.maximum(error, ROUNDING)))


def upsampler_table(split: str, found: Mapping[str, Numbers]) -> Table:
    """The numbers of one split for a terminal."""
    table = Table(title=Text(printable(split)), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "", "PSNR", "all right", "95 %"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for kind, rows in found.items():
        for row, metrics in rows.items():
            right = metrics.get(ALL_RIGHT)
            interval = "" if right is None else f"{100 * right['low']:.0f} to {100 * right['high']:.0f}"
            decibels = f"{metrics[PSNR]['mean']:.2f} dB" if PSNR in metrics else ""
            table.add_row(kind, row, decibels, "" if right is None else page.share(right["mean"]), interval, style="bold" if row == UPSAMPLED else "")
    return table
