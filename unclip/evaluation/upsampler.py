"""`unclip evaluate upsampler`: what the upsamplers add to enlarging by formula, on real small pictures and on generated ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from unclip.data.loader import as_pictures, as_pixels
from unclip.evaluation import page
from unclip.evaluation.config import EvaluateSection
from unclip.evaluation.heldout import SHAPES, read_held_out, read_pictures
from unclip.evaluation.intervals import mean_with_interval
from unclip.evaluation.pictures import comparison_sheet, save_png
from unclip.files import UnclipError, write_json
from unclip.generate import GenerateConfig, Models, generate, upsample_pictures
from unclip.layout import Paths
from unclip.upsampler import Upsampler, enlarged
from unclip.worlds.judge import score
from unclip.worlds.shapes import parse_caption

NUMBERS, SHEET = "upsampler.json", "upsampler.png"
REAL, SMALL, BILINEAR, BICUBIC, UPSAMPLED = "real", "decoder", "bilinear", "bicubic", "upsampled"
PSNR, ALL_RIGHT = "psnr", "all_right"
ROUNDING = 1 / 12  # mean square of what rounding to whole numbers does

Numbers = dict[str, dict[str, dict[str, float]]]  # row -> metric -> mean, low, high, number


def evaluate_upsamplers(paths: Paths, models: Models, section: EvaluateSection, *, num: int) -> dict[str, Any]:
    """Measures on `num` held-out pictures of each split, and leaves `upsampler.json` and `upsampler.png` in the report's folder.

    Two things are enlarged: real pictures at the decoder's size, which can be compared with what they were made from, and
    pictures that were generated from their captions, which only a judge can tell right from wrong.

    Raises:
        UnclipError: there is no upsampler or no held-out row.
    """
    if not models.upsamplers:
        raise UnclipError("there is no upsampler to measure: expected upsampler.num_upsamplers to be 1 or 2, got 0")
    seed, large = section.generate.seed, models.upsamplers[-1].config.unet.image_size
    splits = read_held_out(paths.embeddings, section.evaluate, seed=seed)
    small, real = (read_pictures(paths.shards, splits, image_size=side) for side in (models.decoder.config.unet.image_size, large))
    found: dict[str, Any] = {}
    columns: dict[str, list[np.ndarray]] = {row: [] for row in (SMALL, BILINEAR, UPSAMPLED, REAL)}
    captions: list[str] = []
    for held, low_res, high_res in zip(splits, small, real, strict=True):
        asked = held.test.captions[:num]
        judged = asked if section.world == SHAPES else []
        made = generate(models, asked, section.generate, label=held.split)
        enlarging = {BILINEAR: enlarge(made.decoded, large, BILINEAR), UPSAMPLED: made.pictures}
        found[held.split] = {
            "real": measure_real(models.upsamplers, low_res[:num], high_res[:num], judged, section.generate),
            "generated": measure_rows({SMALL: made.decoded, **enlarging}, judged, seed=seed),
        }
        shown = section.evaluate.num_shown // len(splits)
        enlarging |= {SMALL: np.repeat(np.repeat(made.decoded, large // made.decoded.shape[1], 1), large // made.decoded.shape[1], 2), REAL: high_res[:num]}
        for row, pictures in columns.items():
            pictures.append(enlarging[row][:shown])
        captions += asked[:shown]
    save_png(paths.report / SHEET, comparison_sheet({row: np.concatenate(pictures) for row, pictures in columns.items()}, captions))
    write_json(paths.report / NUMBERS, {"title": paths.root.name, "num": num, "splits": found})
    return found


def measure_real(upsamplers: Sequence[Upsampler], low_res: np.ndarray, high_res: np.ndarray, captions: Sequence[str], config: GenerateConfig) -> Numbers:
    """Real small pictures (n, h, h, 3) uint8 enlarged in each way, against the large ones (n, H, H, 3) that they were made from."""
    side = high_res.shape[1]
    upsampled = upsample_pictures(upsamplers, low_res, config, rows=range(len(low_res)))
    rows = {BILINEAR: enlarge(low_res, side, BILINEAR), BICUBIC: enlarge(low_res, side, BICUBIC), UPSAMPLED: upsampled}
    found = measure_rows({REAL: high_res, **rows}, captions, seed=config.seed)
    for name, made in rows.items():
        found[name][PSNR] = mean_with_interval(psnr(made, high_res), seed=config.seed)
    return found


def measure_rows(rows: Mapping[str, np.ndarray], captions: Sequence[str], *, seed: int) -> Numbers:
    """How many of the pictures of each row show all that their captions of the shapes world ask for; nothing without captions."""
    found: Numbers = {name: {} for name in rows}
    for name, pictures in rows.items() if captions else ():
        right = [score(picture, parse_caption(caption))[ALL_RIGHT] for picture, caption in zip(pictures, captions, strict=True)]
        found[name][ALL_RIGHT] = mean_with_interval(np.array(right, np.float64), seed=seed)
    return found


def enlarge(pictures: np.ndarray, side: int, mode: str) -> np.ndarray:
    """Pictures (n, h, h, 3) uint8 enlarged by formula to (n, side, side, 3) uint8."""
    return as_pictures(enlarged(as_pixels(pictures), (side, side), "bicubic" if mode == BICUBIC else "bilinear"))


def psnr(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture in dB, (n,); inputs (n, H, H, 3) uint8. Equal ones have the 59 dB of rounding."""
    error = np.square(made.astype(np.float64) - true).mean(axis=(1, 2, 3))
    return np.asarray(20 * np.log10(255.0) - 10 * np.log10(np.maximum(error, ROUNDING)))


def upsampler_table(split: str, found: Mapping[str, Numbers]) -> Table:
    """The numbers of one split for a terminal."""
    table = Table(title=split, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "", "PSNR", "all right", "95 %"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for kind, rows in found.items():
        for row, metrics in rows.items():
            right = metrics.get(ALL_RIGHT)
            interval = "" if right is None else f"{100 * right['low']:.0f} to {100 * right['high']:.0f}"
            decibels = f"{metrics[PSNR]['mean']:.2f} dB" if PSNR in metrics else ""
            table.add_row(kind, row, decibels, "" if right is None else page.share(right["mean"]), interval, style="bold" if row == UPSAMPLED else "")
    return table
