"""Variations of a picture: drawn from its own embedding and noise, with fresh noise added on the way (paper, section 3.1)."""

from PIL import Image

from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models
from unclip.manipulate.latent import HIDDEN, Drawn, deterministic, drawn, latent_of


def vary(models: Models, picture: Image.Image, config: GenerateConfig, *, num: int, eta: float, caption: str = HIDDEN) -> Drawn:
    """`num` variations of a picture, the farther from it the larger `eta`.

    What the embedding holds stays, the rest changes. With eta 0 nothing is added, and the picture itself comes back, as
    well as `decoder_steps` allow.

    Raises:
        UnclipError: eta is not in [0, 1], or 0 with more than one picture, which would all be the same.
    """
    if num < 1:
        raise UnclipError(f"the number of variations must be at least 1, got {num}")
    if not 0.0 <= eta <= 1.0:
        raise UnclipError(f"eta must be in [0, 1], got {eta}: 0 adds no noise, 1 as much as ancestral sampling")
    if eta == 0.0 and num > 1:
        raise UnclipError(f"with eta 0 every picture would be the same reconstruction; ask for one, or give a larger eta; got {num}")
    latent = latent_of(models, [picture], config, caption=caption)
    about = [{"variation": number, "eta": eta} for number in range(num)]
    image_emb, x_T = latent.image_emb.expand(num, -1), latent.x_T.expand(num, -1, -1, -1)
    return drawn(models, [picture], image_emb, x_T, about, deterministic(config, eta=eta), caption)
