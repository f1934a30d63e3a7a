"""What each principal component of the image embedding carries: a picture drawn from the first few alone (paper, section 4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unclip.data.store import emb_width, training_rows
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models
from unclip.manipulate.latent import HIDDEN, Drawn, deterministic, drawn, embed_pictures, fresh_noise
from unclip.prior.components import Components, principal_components


def components_of(store: Path) -> Components:
    """The principal components of the image embeddings of a store's training rows, in one pass."""
    return principal_components((batch["image_emb"] for batch in training_rows(store, ["image_emb"])), emb_width(store))


def reconstruct(models: Models, picture: Image.Image, components: Components, config: GenerateConfig, *, pca: Sequence[int], caption: str = HIDDEN) -> Drawn:
    """A picture drawn from the first k components of its embedding, for each k of `pca`, all from the same noise of the seed.

    Raises:
        UnclipError: no k, or one below 1 or above the width of the embedding.
    """
    width = len(components.mean)
    if not pca or not all(1 <= num <= width for num in pca):
        raise UnclipError(f"expected numbers of principal components in [1, {width}], the width of the image embedding, got {', '.join(map(str, pca))}")
    _, image_emb = embed_pictures(models, [picture])
    emb = image_emb.double().cpu().numpy()
    kept = torch.from_numpy(np.concatenate([components.first(num, emb) for num in pca])).to(image_emb)
    about = [{"components": num, "variance held": round(components.held(num), 4)} for num in pca]
    x_T = fresh_noise(models, config, 1).expand(len(pca), -1, -1, -1)
    return drawn(models, [picture], kept, x_T, about, deterministic(config), caption)
