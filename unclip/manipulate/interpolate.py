"""From one picture to another: embeddings and noise turned along the arc between them (paper, section 3.2)."""

from typing import Literal

import torch
from PIL import Image

from unclip.diffusion.slerp import slerp
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models
from unclip.manipulate.latent import HIDDEN, Drawn, deterministic, drawn, fresh_noise, latent_of

NoiseBetween = Literal["slerp", "fixed"]


def interpolate(
    models: Models, first: Image.Image, second: Image.Image, config: GenerateConfig, *, num: int, noise: NoiseBetween = "slerp", caption: str = HIDDEN
) -> Drawn:
    """`num` pictures from the first to the second, theta evenly from 0 to 1.

    With noise "slerp" the two inverted noises are interpolated too, and the ends give back the two pictures. With
    "fixed" all are drawn from one noise of the seed: the ends are then variations, and the way between them shows what
    the embeddings alone change.

    Raises:
        UnclipError: fewer than two pictures were asked for.
    """
    if num < 2:
        raise UnclipError(f"an interpolation has at least its two ends, got the number {num}")
    latent, ends = latent_of(models, [first, second], config, caption=caption), (0, 1)
    thetas = [step / (num - 1) for step in range(num)]
    z, x = ([values[end : end + 1] for end in ends] for values in (latent.image_emb, latent.x_T))
    image_emb = torch.cat([slerp(z[0], z[1], theta) for theta in thetas])
    if noise == "slerp":
        x_T = torch.cat([slerp(x[0], x[1], theta) for theta in thetas])
    else:
        x_T = fresh_noise(models, config, 1).expand(num, -1, -1, -1)
    return drawn(models, [first, second], image_emb, x_T, [{"theta": theta} for theta in thetas], deterministic(config), caption)
