"""A part of a picture drawn anew from a caption, all other pixels kept exactly."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.data.loader import as_pictures, as_pixels
from unclip.data.picture import as_images, as_rgb, as_square, middle_square
from unclip.diffusion.inpainting import inpaint_ddim
from unclip.files import UnclipError
from unclip.generate import (
    DECODER_STREAM,
    GenerateConfig,
    Models,
    RowNoise,
    check_prior,
    chunks_of,
    decoder_denoiser,
    draw_candidates,
    noise_condition,
    text_condition,
    upsample_pictures,
)
from unclip.prior.condition import best_of, similarities
from unclip.progress import progress

WHITE = 128  # of 255: from here on a mask says that a pixel is drawn anew
SOFT_MODES = ("RGBA", "LA", "PA")


@dataclass(frozen=True)
class Inpainted:
    """Pictures of which a part was drawn anew.

    Attributes:
        original: (h, w, 3) uint8, as it came; pictures: (n, h, w, 3) uint8, of the same size.
        hole: (h, w) bool, what was drawn anew; everywhere else `pictures` are `original`, bit for bit.
        candidates, similarities, image_emb: as in `Generated`.
    """

    original: np.ndarray
    pictures: np.ndarray
    hole: np.ndarray
    candidates: Tensor
    similarities: Tensor
    image_emb: Tensor

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images."""
        return as_images(self.pictures)


def hole_of(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool of a mask for a picture of size (w, h): True where it is white, that is 128 of 255 or more.

    Raises:
        UnclipError: it has another size, is partly transparent (which could mean either), has no white, or white outside
            of the picture's middle square, which is all that the decoder draws.
    """
    if mask.size != size:
        raise UnclipError(f"expected a mask as large as the picture, {size[0]} x {size[1]} pixels, got {mask.size[0]} x {mask.size[1]}")
    if mask.mode in SOFT_MODES and np.asarray(mask.convert("RGBA"))[..., 3].min() < 255:
        raise UnclipError("expected a mask of black and white, got one that is partly transparent; fill it with black where the picture stays")
    hole = np.asarray(mask.convert("L")) >= WHITE
    if not hole.any():
        raise UnclipError("the mask has no white, so that nothing would be drawn; paint white what is to be drawn anew")
    left, top, right, bottom = middle_square(size)
    outside = hole.copy()
    outside[top:bottom, left:right] = False
    if outside.any():
        raise UnclipError(
            f"the mask has white outside of the picture's middle square ({right - left} pixels, from {left}, {top}), which is all that the decoder draws; "
            "cut the picture and its mask to what is to be drawn"
        )
    return hole


def kept_at(hole: np.ndarray, side: int) -> np.ndarray:
    """(side, side) bool, what the decoder keeps of the middle square: a pixel of its own is drawn as soon as any in it is in the hole (h, w)."""
    share = Image.fromarray(hole.astype(np.float32)).resize((side, side), Image.Resampling.BOX, box=middle_square((hole.shape[1], hole.shape[0])))
    kept: np.ndarray = np.asarray(share) <= 0
    return kept


@torch.no_grad()
def inpaint(
    models: Models, picture: Image.Image, mask: Image.Image, caption: str, config: GenerateConfig, *, num: int = 1, eta: float = 1.0, num_resamples: int = 1
) -> Inpainted:
    """`num` pictures with the white of the mask drawn anew from a caption.

    The decoder draws at its own size, with the prior's embedding of the caption, and what it draws is scaled to the
    picture, after the upsamplers, and put into the hole. The sampler is DDIM whatever the config says, with this `eta` (1 is ancestral sampling).

    Raises:
        UnclipError: see `hole_of` and `check_prior`; or a number is out of its range.
    """
    check_prior(models)
    for name, value in (("the number of pictures", num), ("the number of resamplings", num_resamples)):
        if value < 1:
            raise UnclipError(f"{name} must be at least 1, got {value}")
    if not 0.0 <= eta <= 1.0:
        raise UnclipError(f"eta must be in [0, 1], got {eta}")
    upright = as_rgb(picture)
    hole, box = hole_of(mask, upright.size), middle_square(upright.size)
    side, device = models.decoder.config.unet.image_size, models.clip.device
    known = as_pixels(np.stack([as_square(upright, side)])).to(device)
    keep = torch.from_numpy(kept_at(hole, side)).to(device)
    made = []
    with progress("inpaint", num, unit="picture") as bar:
        for rows in chunks_of(num, config.batch_size, device):
            condition = text_condition(models.clip, [caption] * len(rows))
            candidates = draw_candidates(models.prior, condition, config, rows=rows)
            image_emb = best_of(candidates, condition.text_emb)
            told = noise_condition(models.decoder, image_emb, config, rows=rows)
            denoiser, schedule = decoder_denoiser(models.decoder, told, condition, config)
            noise = RowNoise(config.seed, rows, DECODER_STREAM, (3, side, side), device)
            shape = (len(rows), 3, side, side)
            x0 = inpaint_ddim(denoiser, schedule, noise(), known.expand(shape), keep.expand(shape), noise, eta=eta, num_resamples=num_resamples)
            square = upsample_pictures(models.upsamplers, as_pictures(x0), config, rows=rows)
            made.append((square, candidates.cpu(), similarities(candidates, condition.text_emb).cpu(), image_emb.cpu()))
            bar.advance(len(rows))
    pictures, candidates, values, embs = zip(*made, strict=True)
    original = np.asarray(upright)
    filled = np.stack([filled_in(original, one, hole, box) for one in np.concatenate(pictures)])
    return Inpainted(original, filled, hole, torch.cat(candidates), torch.cat(values), torch.cat(embs))


def filled_in(original: np.ndarray, square: np.ndarray, hole: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w, 3): the original with its hole (h, w) filled from a square picture (s, s, 3) that is laid over `box`."""
    left, top, right, bottom = box
    whole = original.copy()
    scaled = Image.fromarray(square).resize((right - left, bottom - top), Image.Resampling.BICUBIC) if len(square) != right - left else Image.fromarray(square)
    whole[top:bottom, left:right] = np.asarray(scaled)
    return np.where(hole[..., None], whole, original)
