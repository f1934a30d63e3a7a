"""Training pictures: each once an epoch whoever reads them, beside its own embedding, exact to resume, cropped and flipped as allowed."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.pairs import encoded, write_pairs
from unclip.data.loader import WHOLE, Piece
from unclip.data.pictures import PictureBatch, PictureConfig, Pictures, chances, flippable, open_pictures
from unclip.data.shards import Window, decode
from unclip.files import UnclipError


def opened(pairs: tuple[Path, Path], config: PictureConfig | None = None, *, image_size: int = 8, crop: float = 1.0, text_tokens: bool = True) -> Pictures:
    return open_pictures(*pairs, config or PictureConfig(), split="train", image_size=image_size, text_tokens=text_tokens, seed=5, crop=crop)


def read(pictures: Pictures, num: int, *, start: int = 0, piece: Piece = WHOLE, num_workers: int = 0) -> list[PictureBatch]:
    """Batches of 6 of 30 pictures: five an epoch."""
    return list(islice(pictures.batches(6, start=start, piece=piece, num_workers=num_workers), num))


def assert_same(ours: list[PictureBatch], theirs: list[PictureBatch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.tensors().keys() == other.tensors().keys()
        for name, value in one.tensors().items():
            assert torch.equal(value, other.tensors()[name]), name


def gradient(part: int, row: int) -> Image.Image:
    """Red says how far right, green how far down, blue which."""
    across = np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (64, 64))
    return Image.fromarray(np.stack([across, across.T, np.full((64, 64), part * 20 + row, np.uint8)], axis=2))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pairs(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pairs(tmp_path_factory.mktemp("gradient"), draw=gradient)


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (3, 1)])
def test_every_picture_comes_once_an_epoch_whatever_the_number_of_processes_and_workers(pairs: tuple[Path, Path], processes: int, workers: int) -> None:
    pictures = opened(pairs)
    assert len(pictures) == 30
    pieces = [read(pictures, 10, piece=Piece(number, processes), num_workers=workers) for number in range(processes)]
    batches = [torch.cat([piece[step].rows for piece in pieces]) for step in range(10)]
    for epoch in (batches[:5], batches[5:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(30))
    assert [batch.tolist() for batch in batches] == [batch.rows.tolist() for batch in read(pictures, 10)]


def test_a_picture_stands_beside_its_own_embeddings_and_text_states(pairs: tuple[Path, Path]) -> None:
    for batch in read(opened(pairs), 5):
        colours = batch.pictures[:, 0, 0].to(torch.float16)
        assert (batch.pictures == batch.pictures[:, :1, :1]).all()
        assert torch.equal(batch.image_emb[:, :2], colours[:, :2])
        assert torch.equal(batch.text_emb, batch.image_emb)
        assert batch.text_tokens is not None
        assert batch.text_mask is not None
        row = batch.image_emb[:, 1]
        assert torch.equal(batch.text_mask.sum(1), row.long() + 1)
        assert torch.equal(batch.text_tokens, (row[:, None] * batch.text_mask)[..., None].expand_as(batch.text_tokens).to(torch.float16))
        assert not set(row.int().tolist()) & {5, 11}  # held out


@pytest.mark.parametrize("workers", [0, 2])
def test_any_start_goes_on_as_if_nothing_had_happened(gradients: tuple[Path, Path], workers: int) -> None:
    pictures = opened(gradients, PictureConfig(flip=True), image_size=16, crop=0.5)
    whole = read(pictures, 12)
    assert len({batch.pictures.numpy().tobytes() for batch in whole}) == 12
    for start in (0, 1, 4, 7):  # the fifth begins an epoch
        assert_same(read(pictures, 12 - start, start=start, num_workers=workers), whole[start:])


def test_without_text_states_none_are_read(pairs: tuple[Path, Path]) -> None:
    batch = read(opened(pairs, text_tokens=False), 1)[0]
    assert batch.text_tokens is None
    assert batch.text_mask is None
    assert set(batch[:2].to(torch.device("cpu")).tensors()) == {"rows", "pictures", "image_emb", "text_emb"}


def test_the_store_and_its_cache_give_the_same(pairs: tuple[Path, Path]) -> None:
    assert_same(read(opened(pairs, PictureConfig(reading="store")), 5), read(opened(pairs), 5))


def test_a_batch_is_cut_into_chunks_with_captions_cut_to_their_longest(pairs: tuple[Path, Path]) -> None:
    batch = read(opened(pairs), 1)[0]
    chunks = [batch[:2], batch[2:]]
    assert [len(chunk) for chunk in chunks] == [2, 4]
    for chunk in chunks:
        assert chunk.text_mask is not None
        assert chunk.text_tokens is not None
        assert chunk.text_mask.any(0).all()
        assert chunk.text_tokens.shape[1] == chunk.text_mask.shape[1] == int(chunk.image_emb[:, 1].max()) + 1
    assert torch.equal(torch.cat([chunk.pictures for chunk in chunks]), batch.pictures)
    moved = batch.to(torch.device("cpu"))
    assert moved.image_emb.dtype == torch.float32
    assert moved.pictures.dtype == torch.uint8


@pytest.mark.parametrize(("stored", "size"), [((64, 64), 16), ((70, 51), 16), ((12, 20), 16), ((16, 16), 16)])  # boxes, bicubic, larger, as it is
def test_a_window_is_cut_out_of_the_scaled_picture(stored: tuple[int, int], size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*stored, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise))
    whole = decode(content, size).astype(int)
    for window in (Window(0, 0, size), Window(3, 5, 8), Window(size - 8, size - 8, 8), Window(size - 1, 0, 1)):
        cut = whole[window.top : window.top + window.side, window.left : window.left + window.side]
        assert np.abs(decode(content, size, window) - cut).max() <= 1, window


def test_windows_lie_inside_reach_every_place_and_follow_from_seed_epoch_and_row() -> None:
    drawn = [chances(3, epoch, row, image_size=8, window_side=6, may_flip=True) for epoch in range(20) for row in range(20)]
    corners = {(window.left, window.top) for window, _ in drawn}
    assert corners == {(left, top) for left in range(3) for top in range(3)}
    assert 150 < sum(flips for _, flips in drawn) < 250
    assert drawn[47] == chances(3, 2, 7, image_size=8, window_side=6, may_flip=True)
    assert drawn[:20] != drawn[20:40]
    assert [window for window, _ in drawn[:20]] == [chances(3, 0, row, image_size=8, window_side=6, may_flip=False)[0] for row in range(20)]


def test_crops_come_from_where_they_are_said_to(gradients: tuple[Path, Path]) -> None:
    pictures = opened(gradients, image_size=16, crop=0.25)
    for batch in read(pictures, 10):
        assert batch.pictures.shape[1:] == (4, 4, 3)
        corner = batch.pictures[:, 0, 0].int()
        assert (batch.pictures[:, -1, -1, :2].int() - corner[:, :2] == 3 * 16).all()  # 16 pixels of 4 in 64: three steps on
        assert (corner[:, :2] % 16 == 6).all()
        assert torch.equal(corner[:, 2], (batch.image_emb[:, 0] * 20 + batch.image_emb[:, 1]).int())


def test_pictures_are_mirrored_half_the_time_but_never_where_the_caption_knows_sides(gradients: tuple[Path, Path]) -> None:
    plain, flipped = (read(opened(gradients, PictureConfig(flip=flip)), 40) for flip in (False, True))
    turned = {True: 0, False: 0}
    for before, after in zip(plain, flipped, strict=True):
        for row in range(6):
            is_mirrored = not torch.equal(before.pictures[row], after.pictures[row])
            if is_mirrored:
                assert torch.equal(before.pictures[row].flip(1), after.pictures[row])
                assert before.image_emb[row, 1] % 3 != 0  # pairs.caption_of
            turned[is_mirrored] += int(before.image_emb[row, 1] % 3 != 0)
    assert 0.4 < turned[True] / sum(turned.values()) < 0.6
    always = read(opened(gradients, PictureConfig(flip=True, unflipped=())), 40)
    assert any(
        not torch.equal(one.pictures[one.image_emb[:, 1] % 3 == 0], other.pictures[one.image_emb[:, 1] % 3 == 0])
        for one, other in zip(plain, always, strict=True)
    )


def test_a_caption_that_names_a_side_is_known_by_the_beginnings_of_its_words() -> None:
    captions = ["a dog", "Left of it", "the leftmost", "to the right.", "(right)", "bright copyright", "RIGHT-hand", "", "links oben", "左の犬"]
    assert flippable(captions, ("left", "right")).tolist() == [True, False, False, False, False, True, False, True, True, True]
    assert flippable(captions, ("links", "左")).tolist() == [True] * 8 + [False, False]
    assert flippable(captions, ()).all()


def test_a_window_of_nothing_is_refused(pairs: tuple[Path, Path]) -> None:
    for crop in (0.0, 1.5):
        with pytest.raises(UnclipError, match="crop must leave at least one pixel of 8"):
            opened(pairs, crop=crop)
    with pytest.raises(ValueError, match="num_workers must not be negative, got -1"):
        PictureConfig(num_workers=-1)
    for word in ("left ", ""):
        with pytest.raises(ValueError, match="without spaces around them"):
            PictureConfig(unflipped=(word,))
