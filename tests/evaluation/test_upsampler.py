"""The measurement of the upsamplers: the ratio against its formula, ways of enlarging, and what the judge reads."""

import numpy as np
import pytest

from tests.small_models import small_upsampler
from unclip.data.degrade import shrunk
from unclip.data.loader import as_pictures, as_pixels
from unclip.evaluation.upsampler import measure_real, measure_rows, psnr, upsampler_table, ways
from unclip.generate import GenerateConfig, upsample_pictures
from unclip.upsampler import UpsamplerSampling
from unclip.worlds.shapes import parse_caption, render

CAPTIONS = ["a large red circle on a white background", "a small blue star above a large pink ring, grey background"]


def scenes(size: int) -> np.ndarray:
    return np.stack([render(parse_caption(caption), size=size, rng=np.random.default_rng(3)) for caption in CAPTIONS])


def test_the_ratio_is_that_of_the_textbook() -> None:
    flat = np.full((1, 4, 4, 3), 100, np.uint8)
    assert psnr(flat + 10, flat) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(flat, flat) == pytest.approx(10 * np.log10(255**2 * 12))


def test_pictures_are_enlarged_smoothly_and_bicubic_is_nearer() -> None:
    real = scenes(128)
    rows = ways(as_pictures(shrunk(as_pixels(real), 4)), real)
    assert (rows["small"][:, ::4, ::4] == rows["small"][:, 3::4, 3::4]).all()
    small, bilinear, bicubic = (psnr(rows[name], real) for name in ("small", "bilinear", "bicubic"))
    assert (bicubic > bilinear).all()
    assert (bilinear > small).all()


def test_the_judge_reads_real_pictures_and_no_other_world() -> None:
    rows = measure_rows({"real": scenes(64), "noise": np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)}, CAPTIONS, seed=0)
    assert rows["real"]["all_right"]["mean"] == 1.0
    assert rows["noise"]["all_right"]["mean"] == 0.0
    assert measure_rows({"real": scenes(64)}, [], seed=0) == {"real": {}}


def test_real_pictures_are_compared_with_what_they_were_made_from() -> None:
    real = scenes(16)
    small = as_pictures(shrunk(as_pixels(real), 2))
    config = GenerateConfig(upsampler=UpsamplerSampling(first_steps=(2,)))
    rows = ways(small, upsample_pictures((small_upsampler(),), small, config, rows=range(2)))
    found = measure_real(rows, real, [], seed=0)
    assert list(found) == ["small", "bilinear", "bicubic", "upsampled", "real"]
    assert found["real"] == {}
    assert found["bicubic"]["psnr"]["mean"] == pytest.approx(psnr(rows["bicubic"], real).mean())
    assert found["upsampled"]["psnr"]["number"] == 2
    assert upsampler_table("heldout-scene", {"real": found}).row_count == 5
