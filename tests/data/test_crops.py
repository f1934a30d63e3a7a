"""Crops for the upsamplers: the small picture is made of its crop, the same whoever reads it and another way every epoch."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.pairs import write_pairs
from unclip.data.crops import CropBatch, Crops
from unclip.data.degrade import blurred, shrunk
from unclip.data.loader import WHOLE, Piece, as_pixels
from unclip.data.pictures import PictureConfig, open_pictures


def noisy(part: int, row: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng([part, row]).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pairs(tmp_path_factory.mktemp("noisy"), draw=noisy)


def opened(pairs: tuple[Path, Path], corruption: str, prob: float = 1.0) -> Crops:
    pictures = open_pictures(*pairs, PictureConfig(flip=True, unflipped=()), split="train", image_size=32, text_tokens=False, seed=5, crop=0.5)
    return Crops(pictures, 4, corruption, prob)  # type: ignore[arg-type]


def read(crops: Crops, num: int, *, start: int = 0, piece: Piece = WHOLE, num_workers: int = 0) -> list[CropBatch]:
    """Batches of 6 of 30 pictures: five an epoch."""
    return list(islice(crops.batches(6, start=start, piece=piece, num_workers=num_workers), num))


@pytest.mark.parametrize("corruption", ["none", "blur"])
def test_the_small_picture_is_made_of_its_crop(pairs: tuple[Path, Path], corruption: str) -> None:
    batch = read(opened(pairs, corruption), 1)[0]
    assert batch.crops.shape == (6, 16, 16, 3)
    small = shrunk(as_pixels(batch.crops), 4)
    torch.testing.assert_close(batch.low_res, blurred(small) if corruption == "blur" else small)


def test_it_depends_on_neither_workers_nor_pieces_nor_where_one_began(pairs: tuple[Path, Path]) -> None:
    crops = opened(pairs, "bsr", 0.7)
    whole = read(crops, 4)
    halves = [read(crops, 4, piece=Piece(number, 2)) for number in range(2)]
    for step, (batch, ahead) in enumerate(zip(whole, read(crops, 4, num_workers=1), strict=True)):
        for name, value in batch.tensors().items():
            assert torch.equal(value, ahead.tensors()[name])
            assert torch.equal(value, torch.cat([half[step].tensors()[name] for half in halves]))
    assert torch.equal(read(crops, 1, start=3)[0].low_res, whole[3].low_res)
    assert torch.equal(whole[0][2:4].low_res, whole[0].low_res[2:4])


def test_a_picture_is_corrupted_in_another_way_every_epoch(pairs: tuple[Path, Path]) -> None:
    batches = read(opened(pairs, "bsr"), 10)
    both = {
        epoch: torch.cat([batch.low_res for batch in part])[torch.cat([batch.rows for batch in part]).argsort()]
        for epoch, part in ((0, batches[:5]), (1, batches[5:]))
    }
    assert (both[0] != both[1]).flatten(1).any(dim=1).all()
