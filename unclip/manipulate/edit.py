"""A picture changed by words: its embedding turned towards the difference of two captions (paper, section 3.3, text diffs)."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unclip.diffusion.slerp import slerp
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models, text_condition
from unclip.manipulate.latent import Drawn, deterministic, drawn, latent_of

THETAS = (0.25, 0.3125, 0.375, 0.4375, 0.5)  # the paper's range
ALIKE = 1e-6  # length of a difference of two unit vectors that rounding alone can make


def text_difference(text_emb: Tensor, text_emb0: Tensor) -> Tensor:
    """norm(z_t - z_t0): the direction (B, E) from the captions of z_t0 (B, E) to those of z_t, both taken at length 1.

    Raises:
        UnclipError: two captions have the same embedding.
    """
    difference = F.normalize(text_emb, dim=-1) - F.normalize(text_emb0, dim=-1)
    if (difference.norm(dim=-1) < ALIKE).any():
        raise UnclipError("the two captions are the same to CLIP, so that there is no way from the one to the other; give two that differ")
    return F.normalize(difference, dim=-1)


def edit(models: Models, picture: Image.Image, config: GenerateConfig, *, before: str, after: str, thetas: Sequence[float] = THETAS) -> Drawn:
    """A picture of `before` turned into one of `after`, once for each theta, all from the picture's own noise.

    The embedding turns by the share theta of the way to the text difference and keeps its length. The decoder reads
    neither caption: what changes, changes through the embedding.

    Raises:
        UnclipError: no theta, or one outside of [0, 1]; or the captions are the same to CLIP.
    """
    if not thetas or not all(0.0 <= theta <= 1.0 for theta in thetas):
        raise UnclipError(f"expected thetas in [0, 1], the paper's are from 0.25 to 0.5, got {list(thetas)}")
    text_emb = text_condition(models.clip, [before, after]).text_emb
    direction = text_difference(text_emb[1:], text_emb[:1])
    latent = latent_of(models, [picture], config)
    towards = direction * latent.image_emb.norm(dim=-1, keepdim=True)
    image_emb = torch.cat([slerp(latent.image_emb, towards, theta) for theta in thetas])
    about = [{"theta": theta} for theta in thetas]
    return drawn(models, [picture], image_emb, latent.x_T.expand(len(thetas), -1, -1, -1), about, deterministic(config), "")
