"""A picture as the paper's pair (section 3): its CLIP image embedding, and the noise from which the decoder draws it.

The decoder here reads a caption's text states too. A picture comes without words, so they are hidden unless a caption is
given: the decoder then draws from the embedding alone, as in the paper. With a caption it is told the same words when the
noise is sought and when the picture is drawn, and what they say leaves less to the embedding.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.data.loader import as_pictures, as_pixels
from unclip.data.picture import as_images, as_rgb, as_square
from unclip.diffusion.inversion import invert_ddim
from unclip.diffusion.sampling import Denoiser, sample_ddim
from unclip.diffusion.schedule import Schedule
from unclip.files import UnclipError
from unclip.generate import MANIPULATE_STREAM, GenerateConfig, Models, RowNoise, chunks_of, decoder_denoiser, text_condition, upsample_pictures
from unclip.progress import progress

HIDDEN = ""  # the caption that is none


@dataclass(frozen=True)
class Latent:
    """Pictures as the models know them.

    Attributes:
        pixels: (B, 3, H, H) in [-1, 1], as the decoder's training saw pictures.
        image_emb: (B, E) raw; x_T: (B, 3, H, H).
    """

    pixels: Tensor
    image_emb: Tensor
    x_T: Tensor

    def __getitem__(self, row: int) -> "Latent":
        rows = slice(row, row + 1)
        return Latent(self.pixels[rows], self.image_emb[rows], self.x_T[rows])


@dataclass(frozen=True)
class Drawn:
    """Pictures that came of other pictures.

    Attributes:
        originals: (m, H, H, 3) uint8, what was given, cut and scaled to the size of the pictures.
        pictures: (n, H, H, 3) uint8.
        about: what each picture is, by name, such as {"theta": 0.25}.
        image_emb, x_T: (n, E) raw and (n, 3, H, H), what each was drawn from.
    """

    originals: np.ndarray
    pictures: np.ndarray
    about: list[dict[str, Any]]
    image_emb: Tensor
    x_T: Tensor

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images."""
        return as_images(self.pictures)


def deterministic(config: GenerateConfig, *, eta: float = 0.0) -> GenerateConfig:
    """The same settings with the sampler that has an inverse: DDIM, whose eta 0 adds no noise; and none on embeddings, which are true ones."""
    return dataclasses.replace(config, sampler="ddim", eta=eta, condition_noise=0)


def embed_pictures(models: Models, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Pictures of any size and mode -> pixels (B, 3, H, H) in [-1, 1] and raw image embeddings (B, E), as in training.

    Raises:
        UnclipError: the decoder draws from text embeddings, or a picture can't be used.
    """
    if models.decoder.config.embedding == "text":
        raise UnclipError("this decoder was trained on text embeddings, and knows nothing of pictures; expected one with decoder.network.embedding 'image'")
    upright = [as_rgb(picture) for picture in pictures]
    side, device = models.decoder.config.unet.image_size, models.clip.device
    pixels = as_pixels(np.stack([as_square(picture, side) for picture in upright]))
    image_emb = torch.cat([models.clip.encode_pictures([picture]) for picture in upright])
    return pixels.to(device), image_emb.to(device)


def denoiser_of(models: Models, image_emb: Tensor, caption: str, config: GenerateConfig) -> tuple[Denoiser, Schedule]:
    """The decoder for image embeddings (B, E) and one caption for all, or none. It does not clamp, so that it has an inverse."""
    condition = text_condition(models.clip, [caption] * len(image_emb))
    return decoder_denoiser(models.decoder, image_emb, condition, config, show_text=caption != HIDDEN, clamp=None)


@torch.no_grad()
def invert(models: Models, pixels: Tensor, image_emb: Tensor, config: GenerateConfig, *, caption: str = HIDDEN) -> Latent:
    """The noise of pictures (B, 3, H, H) by DDIM inversion through the decoder, conditioned on their embeddings (B, E).

    Whatever the config's guidance, the noise is sought without any: a guided decoder goes where no picture came from. With
    guidance 2 in both directions a decoder of the shapes world, early in its training, came back with 7 dB, and 33 dB without.
    """
    found, unguided = [], dataclasses.replace(config, guidance_scale=1.0)
    with progress("invert", len(pixels), unit="picture") as bar:
        for rows in chunks_of(len(pixels), config.batch_size, pixels.device):
            chunk = slice(rows.start, rows.stop)
            denoiser, schedule = denoiser_of(models, image_emb[chunk], caption, unguided)
            found.append(invert_ddim(denoiser, schedule, pixels[chunk]))
            bar.advance(len(rows))
    return Latent(pixels, image_emb, torch.cat(found))


def latent_of(models: Models, pictures: Sequence[Image.Image], config: GenerateConfig, *, caption: str = HIDDEN) -> Latent:
    """Embedding and noise of pictures of any size and mode."""
    return invert(models, *embed_pictures(models, pictures), deterministic(config), caption=caption)


@torch.no_grad()
def draw(models: Models, image_emb: Tensor, x_T: Tensor, config: GenerateConfig, *, caption: str = HIDDEN) -> Tensor:
    """(n, 3, H, H) drawn by DDIM from image embeddings (n, E) and noise (n, 3, H, H); with eta above 0, row n has its own stream."""
    made = []
    with progress("draw", len(x_T), unit="picture") as bar:
        for rows in chunks_of(len(x_T), config.batch_size, x_T.device):
            chunk = slice(rows.start, rows.stop)
            denoiser, schedule = denoiser_of(models, image_emb[chunk], caption, config)
            noise = RowNoise(config.seed, rows, MANIPULATE_STREAM, tuple(x_T.shape[1:]), x_T.device)
            made.append(sample_ddim(denoiser, schedule, x_T[chunk], noise, eta=config.eta))
            bar.advance(len(rows))
    return torch.cat(made)


def drawn(
    models: Models, sources: Sequence[Image.Image], image_emb: Tensor, x_T: Tensor, about: list[dict[str, Any]], config: GenerateConfig, caption: str
) -> Drawn:
    """Draws and enlarges, and puts what came of it beside the pictures that it came from.

    All are enlarged with the same noise, so that they differ by nothing but what was drawn.
    """
    decoded = as_pictures(draw(models, image_emb, x_T, config, caption=caption))
    pictures = upsample_pictures(models.upsamplers, decoded, config, rows=[0] * len(decoded))
    originals = np.stack([as_square(as_rgb(source), pictures.shape[1]) for source in sources])
    return Drawn(originals, pictures, about, image_emb.cpu(), x_T.cpu())


def fresh_noise(models: Models, config: GenerateConfig, num: int) -> Tensor:
    """(num, 3, H, H), each row its own stream of the seed."""
    side = models.decoder.config.unet.image_size
    return RowNoise(config.seed, range(num), MANIPULATE_STREAM, (3, side, side), models.clip.device)()
