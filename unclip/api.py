"""The facade for Python: the models of a root, and all that they do with captions and pictures.

    import unclip

    models = unclip.open("data/demo")
    made = models.generate("a large red star", num=4, seed=1)
    made.images[0].save("star.png")

What comes back holds PIL images (`images`), the same as an array (`pictures`, uint8), and the embeddings and noise that
they were drawn from as tensors. A picture that goes in may be a PIL image, the path of a file, an array (H, W, 3) of uint8
or a tensor (3, H, W) in [-1, 1].
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from unclip.config import RunConfig, load_config
from unclip.data.captions import check_captions
from unclip.data.loader import as_pictures
from unclip.data.picture import as_rgb, open_picture
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Generated, Models
from unclip.generate import generate as generate_pictures
from unclip.layout import RUN_CONFIG, Paths
from unclip.manipulate.edit import THETAS
from unclip.manipulate.edit import edit as edit_picture
from unclip.manipulate.inpaint import Inpainted
from unclip.manipulate.inpaint import inpaint as inpaint_picture
from unclip.manipulate.interpolate import NoiseBetween
from unclip.manipulate.interpolate import interpolate as interpolate_pictures
from unclip.manipulate.latent import HIDDEN, Drawn, Latent, deterministic, embed_pictures, latent_of
from unclip.manipulate.reconstruct import components_of
from unclip.manipulate.reconstruct import reconstruct as reconstruct_picture
from unclip.manipulate.roundtrip import RoundTrip, measure_round_trip
from unclip.manipulate.variations import vary
from unclip.models import load_models, origins_of, paths_of
from unclip.prior.condition import PriorKind
from unclip.roots import bring_config, bring_down, local_root
from unclip.versions import in_use

Picture = Image.Image | Path | str | np.ndarray | Tensor
PriorChoice = Literal["first", "none"] | PriorKind

STEPS = 100  # of an inversion, and of the drawing that shall come back to it
GUIDANCE = 1.0  # of that drawing: with any, the picture itself does not come back
ETA = 0.5  # of variations: as much is kept as changed


def open(root: str | Path, *, prior: PriorChoice = "first", upsample: bool = True) -> "Unclip":
    """The trained models of a root, which may be a folder or a URL (s3://bucket/folder).

    Args:
        prior: the first of those that the root's config names, one by its kind, or "none": the text embedding in place of
            an image embedding.
        upsample: whether pictures go through the root's upsamplers, where it has any.

    Raises:
        UnclipError: the folder is no root, or a stage has not finished.
    """
    bring_config(str(root))
    remembered = local_root(str(root)) / RUN_CONFIG
    if not remembered.is_file():
        raise UnclipError(f"expected a root that `unclip run` made, with a {RUN_CONFIG}, got {root}")
    return opened(in_use(load_config(file=remembered, settings={"root": str(root)})), prior=prior, upsample=upsample)


def opened(config: RunConfig, *, prior: PriorChoice = "first", upsample: bool = True) -> "Unclip":
    """The same for a config that is there already.

    Raises:
        UnclipError: a stage has not finished.
    """
    kind: PriorKind | None = config.prior.kinds[0] if prior == "first" else None if prior == "none" else prior
    models, origins = load_models(config, kind), origins_of(config, kind)
    if not upsample:
        models, origins = dataclasses.replace(models, upsamplers=()), origins | {"upsampler": "none"}
    return Unclip(models, config.generate, paths_of(config), origins, config.root)


@dataclass(frozen=True)
class Unclip:
    """The models of a root.

    Attributes:
        models: CLIP, prior, decoder and upsamplers.
        config: how pictures are sampled; `with_settings` changes it.
        paths: the folders of the root.
        origins: which models they are, by a name and a digest of each.
        root: the root's name as it was given, which may be a URL.
    """

    models: Models
    config: GenerateConfig
    paths: Paths
    origins: dict[str, str]
    root: str

    def with_settings(self, **settings: Any) -> "Unclip":
        """The same models with other settings, such as `decoder_steps=50, guidance_scale=3.0`: the fields of GenerateConfig.

        Raises:
            UnclipError: there is no such setting, or its value can't be.
        """
        known = [field.name for field in dataclasses.fields(GenerateConfig)]
        if unknown := sorted(settings.keys() - set(known)):
            raise UnclipError(f"there is no setting {unknown[0]!r}; there are {', '.join(known)}")
        try:
            return dataclasses.replace(self, config=dataclasses.replace(self.config, **settings))
        except ValueError as error:
            raise UnclipError(str(error)) from None

    def generate(self, captions: str | Sequence[str], *, num: int = 1, seed: int = 0) -> Generated:
        """`num` pictures of each caption, those of a caption one after the other.

        A picture depends on its caption, the seed and its number among those of its caption alone.

        Raises:
            UnclipError: no caption, one that can't be used, or no picture asked for.
        """
        asked = check_captions([captions] if isinstance(captions, str) else captions)
        if num < 1:
            raise UnclipError(f"the number of pictures must be at least 1, got {num}")
        config = self.with_settings(seed=seed, decoder_steps=self._steps(self.config.decoder_steps)).config
        return generate_pictures(self.models, [caption for caption in asked for _ in range(num)], config)

    def embed(self, pictures: Sequence[Picture]) -> Tensor:
        """Raw CLIP image embeddings (n, E) of pictures."""
        return embed_pictures(self.models, [as_picture(picture) for picture in pictures])[1].cpu()

    def invert(self, pictures: Sequence[Picture], *, caption: str = HIDDEN, steps: int = STEPS) -> Latent:
        """What pictures are to the models: embeddings (n, E), and noise (n, 3, H, H) by DDIM inversion."""
        return latent_of(self.models, [as_picture(picture) for picture in pictures], self._inverse(steps, GUIDANCE, 0), caption=caption)

    def variations(
        self, picture: Picture, *, num: int = 4, eta: float = ETA, caption: str = HIDDEN, steps: int = STEPS, guidance: float = GUIDANCE, seed: int = 0
    ) -> Drawn:
        """Pictures like this one; `eta` from 0, the picture itself, to 1, only what its embedding says."""
        return vary(self.models, as_picture(picture), self._inverse(steps, guidance, seed), num=num, eta=eta, caption=caption)

    def interpolate(
        self, first: Picture, second: Picture, *, num: int = 9, noise: NoiseBetween = "slerp", caption: str = HIDDEN, steps: int = STEPS,
        guidance: float = GUIDANCE, seed: int = 0,
    ) -> Drawn:  # fmt: skip
        """`num` pictures from the first to the second; with noise "fixed" all of them from one noise of the seed."""
        config = self._inverse(steps, guidance, seed)
        return interpolate_pictures(self.models, as_picture(first), as_picture(second), config, num=num, noise=noise, caption=caption)

    def edit(self, picture: Picture, before: str, after: str, *, thetas: Sequence[float] = THETAS, steps: int = STEPS, guidance: float = GUIDANCE) -> Drawn:
        """A picture of `before` turned into one of `after`, once for each theta."""
        was, shall_be = check_captions([before, after])
        return edit_picture(self.models, as_picture(picture), self._inverse(steps, guidance, 0), before=was, after=shall_be, thetas=thetas)

    def inpaint(
        self, picture: Picture, mask: Picture, caption: str, *, num: int = 1, steps: int = STEPS, eta: float = 1.0, resamples: int = 1, seed: int = 0
    ) -> Inpainted:
        """The white of the mask drawn anew from the caption; every other pixel stays, bit for bit."""
        config = self.with_settings(decoder_steps=self._steps(steps), seed=seed).config
        (asked,) = check_captions([caption])
        return inpaint_picture(self.models, as_picture(picture), as_mask(mask), asked, config, num=num, eta=eta, num_resamples=resamples)

    def reconstruct(
        self, picture: Picture, pca: Sequence[int], *, caption: str = HIDDEN, steps: int = STEPS, guidance: float = GUIDANCE, seed: int = 0
    ) -> Drawn:
        """The picture from the first k principal components of its embedding, for each k, all from one noise of the seed."""
        bring_down(self.root, ("embeddings",))
        components = components_of(self.paths.embeddings)
        return reconstruct_picture(self.models, as_picture(picture), components, self._inverse(steps, guidance, seed), pca=pca, caption=caption)

    def round_trip(
        self, pictures: Sequence[Picture], *, num_steps: Sequence[int] = (10, 25, 50, 100), caption: str = HIDDEN, guidance: float = GUIDANCE
    ) -> list[RoundTrip]:
        """How well inversion and drawing give pictures back, for each number of steps."""
        pixels, image_emb = embed_pictures(self.models, [as_picture(picture) for picture in pictures])
        config = self._inverse(max(num_steps), guidance, 0)
        return measure_round_trip(self.models, pixels, image_emb, config, num_steps=[self._steps(steps) for steps in num_steps], caption=caption)

    def _inverse(self, steps: int, guidance: float, seed: int) -> GenerateConfig:
        return deterministic(self.with_settings(decoder_steps=self._steps(steps), guidance_scale=guidance, seed=seed).config)

    def _steps(self, steps: int) -> int:
        most = self.models.decoder.config.num_train_steps
        if not 1 <= steps <= most:
            raise UnclipError(f"the number of steps must be in [1, {most}], as many as the decoder was trained with, got {steps}")
        return steps


def as_picture(picture: Picture) -> Image.Image:
    """Anything that stands for a picture as RGB.

    Raises:
        UnclipError: a file that is no picture, or an array or tensor of another shape.
    """
    return as_rgb(_image_of(picture))


def as_mask(mask: Picture) -> Image.Image:
    """The same for a mask, as it is; an array or tensor may also be (H, W) of bool."""
    if isinstance(mask, np.ndarray | Tensor) and mask.ndim == 2:
        drawn = np.asarray(mask).astype(bool)
        return Image.fromarray(np.where(drawn, 255, 0).astype(np.uint8))
    return _image_of(mask)


def _image_of(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        return open_picture(Path(picture))
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3 or not picture.is_floating_point():
            raise UnclipError(f"expected a tensor (3, H, W) of floats in [-1, 1], got {picture.dtype} of {tuple(picture.shape)}")
        return Image.fromarray(as_pictures(picture[None])[0])
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise UnclipError(f"expected an array (H, W, 3) of uint8, got {picture.dtype} of {picture.shape}")
    return Image.fromarray(picture)
