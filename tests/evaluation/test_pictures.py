"""Sheets have the size that their parts ask for, show every pixel as it was, and take any caption."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip.evaluation.curves import draw_curves, running_mean, summarise_curves
from unclip.evaluation.pictures import GAP, LINE, PAPER, comparison_sheet, contact_sheet

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)


def test_a_sheet_is_as_large_as_its_pictures_and_labels() -> None:
    sheet = contact_sheet(PICTURES, ["one"] * 5, columns=3, scale=2)
    assert sheet.size == (3 * (32 + GAP) + GAP, 2 * (32 + GAP + GAP + LINE))
    bare = contact_sheet(PICTURES, [""] * 5, columns=5, scale=2)
    assert bare.size == (5 * (32 + GAP) + GAP, 32 + 2 * GAP)


def test_small_pictures_are_enlarged_to_about_128_pixels_without_smoothing() -> None:
    sheet = np.asarray(contact_sheet(PICTURES[:1], [""], columns=1))
    assert sheet.shape == (128 + 2 * GAP, 128 + 2 * GAP, 3)
    inner = sheet[GAP:-GAP, GAP:-GAP]
    assert (inner == PICTURES[0].repeat(8, 0).repeat(8, 1)).all()
    assert (sheet[:GAP] == PAPER).all()


def test_every_picture_stands_in_its_place() -> None:
    sheet = np.asarray(contact_sheet(PICTURES, [""] * 5, columns=2, scale=1))
    for number, picture in enumerate(PICTURES):
        row, column = divmod(number, 2)
        top, left = row * (16 + 2 * GAP) + GAP, column * (16 + GAP) + GAP
        assert (sheet[top : top + 16, left : left + 16] == picture).all()


@pytest.mark.parametrize("label", ["word " * 60, "x" * 500, "日本語 и кириллица 🎉", "two\nlines\tand\x00more", "<script>"])
def test_any_label_is_drawn_within_four_lines(label: str) -> None:
    sheet = contact_sheet(PICTURES[:1], [label], columns=1, scale=4)
    assert sheet.width == 64 + 2 * GAP
    assert 64 + 2 * GAP < sheet.height <= 64 + 2 * GAP + 4 * LINE


def test_a_comparison_has_a_row_for_each_kind() -> None:
    one = comparison_sheet({"real": PICTURES}, ["a"] * 5, columns=5, scale=1)
    two = comparison_sheet({"real": PICTURES, "made": 255 - PICTURES}, ["a"] * 5, columns=5, scale=1)
    assert two.height - one.height == 16 + GAP
    assert two.width >= 5 * (16 + GAP)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="a label for each of 5 pictures, got 1"):
        contact_sheet(PICTURES, ["a"])
    with pytest.raises(ValueError, match=r"\(n, H, W, 3\)"):
        contact_sheet(PICTURES[0], ["a"])
    with pytest.raises(ValueError, match="n at least 1"):
        contact_sheet(PICTURES[:0], [])


def test_the_running_mean_is_over_a_tenth_of_the_curve() -> None:
    losses = np.arange(20.0)
    assert running_mean(losses)[:4].tolist() == [0.0, 0.5, 1.5, 2.5]
    found = summarise_curves({"prior": (np.arange(1, 21), losses)})
    assert found == {"prior": {"steps": 20, "first_loss": 0.5, "last_loss": 18.5}}


def test_curves_are_drawn_side_by_side(tmp_path: Path) -> None:
    curve = (np.arange(1, 4), np.array([3.0, 2.0, 1.0]))
    widths = []
    for number in (1, 3):
        draw_curves(tmp_path / "curves.png", {str(i): curve for i in range(number)})
        with Image.open(tmp_path / "curves.png") as picture:
            widths.append(picture.width)
            assert picture.mode == "RGBA"
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.02)


def test_a_loss_that_falls_far_is_drawn_too(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", {"clip": (np.arange(1, 101), np.geomspace(5.0, 0.01, 100)), "prior": (np.arange(1), np.zeros(1))})
    with Image.open(tmp_path / "curves.png") as picture:
        assert np.asarray(picture)[..., 3].max() == 255
