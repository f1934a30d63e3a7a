"""How well inversion and drawing give back the same picture, over the number of steps (eta 0)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unclip.generate import GenerateConfig, Models
from unclip.manipulate.latent import HIDDEN, deterministic, draw, invert

PIXEL_RANGE = 2.0  # from -1 to 1


@dataclass(frozen=True)
class RoundTrip:
    """Pictures inverted and drawn again with so many steps.

    Attributes:
        num_steps: of the inversion, and as many of the drawing.
        psnr: decibels of the mean squared error over all pictures; each: of every picture.
        max_error: the largest of any channel of any pixel, as a share of the whole range.
    """

    num_steps: int
    psnr: float
    each: list[float]
    max_error: float


def psnr(pixels: Tensor, others: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in decibels of pictures (B, 3, H, H) in [-1, 1]; infinite where they are equal."""
    return 10 * torch.log10(PIXEL_RANGE**2 / (pixels - others).double().square().flatten(1).mean(dim=1))


def measure_round_trip(
    models: Models, pixels: Tensor, image_emb: Tensor, config: GenerateConfig, *, num_steps: Sequence[int], caption: str = HIDDEN
) -> list[RoundTrip]:
    """Inverts pictures (B, 3, H, H) in [-1, 1] with their image embeddings (B, E), draws them again, and compares.

    What was drawn is cut to [-1, 1] first, as it is when it is written.
    """
    found = []
    for steps in num_steps:
        asked = deterministic(dataclasses.replace(config, decoder_steps=steps))
        latent = invert(models, pixels, image_emb, asked, caption=caption)
        again = draw(models, image_emb, latent.x_T, asked, caption=caption).clamp(-1.0, 1.0)
        each = psnr(pixels, again)
        mean_square = (PIXEL_RANGE**2 / 10 ** (each / 10)).mean()
        whole = float(10 * torch.log10(PIXEL_RANGE**2 / mean_square))
        found.append(RoundTrip(steps, whole, each.tolist(), float((pixels - again).abs().max()) / PIXEL_RANGE))
    return found
