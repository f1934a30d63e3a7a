"""Inpainting: what lies outside of the hole is kept bit for bit, at any size, and masks mean one thing."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.small_models import SIDE, small_models
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models
from unclip.manipulate.inpaint import hole_of, inpaint, kept_at
from unclip.upsampler import UpsamplerSampling

CONFIG = GenerateConfig(decoder_steps=3, upsampler=UpsamplerSampling(first_steps=(2,)))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask_of(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("upsampled", [False, True])
@pytest.mark.parametrize(("size", "box"), [((8, 8), (2, 3, 5, 7)), ((50, 31), (12, 4, 33, 17)), ((5, 4), (2, 1, 3, 2)), ((200, 300), (3, 60, 190, 240))])
def test_every_pixel_outside_of_the_hole_stays(models: Models, upsampled: bool, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    picture, mask = noise(*size), mask_of(*size, box)
    made = inpaint(small_models(models.clip, upsampled=upsampled), picture, mask, "a star", CONFIG, num=2)
    hole = np.asarray(mask) > 0
    assert made.pictures.shape == (2, size[1], size[0], 3)
    for one in made.pictures:
        assert np.array_equal(one[~hole], np.asarray(picture)[~hole])
        assert not np.array_equal(one[hole], np.asarray(picture)[hole])
    assert not np.array_equal(made.pictures[0], made.pictures[1])
    assert np.array_equal(made.hole, hole)


def test_one_pixel_of_the_hole_is_enough_for_the_decoder_to_draw() -> None:
    hole = np.zeros((2000, 2400), bool)
    hole[700, 1000] = True  # (700, 800) of the middle square, whose eighths are 250 wide
    kept = kept_at(hole, 8)
    assert np.argwhere(~kept).tolist() == [[2, 3]]
    assert np.array_equal(kept_at(np.eye(4, dtype=bool), 8), ~np.kron(np.eye(4), np.ones((2, 2))).astype(bool))


def test_what_lies_in_the_hole_has_no_say(models: Models) -> None:
    mask, box = mask_of(32, 32, (10, 10, 20, 20)), (10, 10, 20, 20)
    one, other = noise(32, 32), noise(32, 32)
    other.paste((255, 0, 255), box)
    # pixels of the decoder's that the hole covers only in part hold some of both, but are drawn anew all the same
    made = [inpaint(models, picture, mask, "a star", CONFIG).pictures[0] for picture in (one, other)]
    assert np.array_equal(*made)


def test_more_pictures_leave_the_first_as_they_are_and_a_seed_changes_them(models: Models) -> None:
    picture, mask = noise(SIDE, SIDE), mask_of(SIDE, SIDE, (2, 2, 6, 6))
    one, three = (inpaint(models, picture, mask, "a star", CONFIG, num=num).pictures for num in (1, 3))
    assert np.array_equal(one[0], three[0])
    assert not np.array_equal(inpaint(models, picture, mask, "a star", dataclasses.replace(CONFIG, seed=1)).pictures, one)
    assert not np.array_equal(inpaint(models, picture, mask, "a star", CONFIG, num_resamples=2).pictures, one)


def test_a_mask_is_white_from_the_middle_grey_on() -> None:
    mask = Image.fromarray(np.array([[0, 127, 128, 255]] * 4, np.uint8))
    assert hole_of(mask, (4, 4))[0].tolist() == [False, False, True, True]
    assert hole_of(mask.convert("1", dither=Image.Dither.NONE), (4, 4))[0].tolist() == [False, False, True, True]
    assert hole_of(mask.convert("RGBA"), (4, 4))[0].tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (mask_of(9, 8, (0, 0, 4, 4)), "12 x 8 pixels, got 9 x 8"),
        (Image.new("L", (12, 8)), "no white"),
        (mask_of(12, 8, (0, 0, 4, 4)), r"outside of the picture's middle square \(8 pixels, from 2, 0\)"),
        (Image.new("RGBA", (12, 8), (255, 255, 255, 0)), "partly transparent"),
    ],
)
def test_masks_that_could_be_meant_otherwise_are_refused(mask: Image.Image, words: str) -> None:
    with pytest.raises(UnclipError, match=words):
        hole_of(mask, (12, 8))


def test_numbers_out_of_range_are_refused(models: Models) -> None:
    for more, words in (({"num": 0}, "pictures must be at least 1"), ({"num_resamples": 0}, "resamplings"), ({"eta": 2.0}, r"\[0, 1\], got 2.0")):
        with pytest.raises(UnclipError, match=words):
            inpaint(models, noise(8, 8), mask_of(8, 8, (1, 1, 3, 3)), "a star", CONFIG, **more)  # type: ignore[arg-type]
