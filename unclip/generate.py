"""From captions to pictures: CLIP text tower, prior, best of n, decoder.

A picture depends on its caption, the seed and its number among the pictures of its caption, and on nothing else of the
run: its noise has a stream of its own, seeded by these numbers, and the caption is no part of it, so that pictures of two
captions with the same number differ by what was asked for alone. A processor adds up in an order that depends on how much
it is given at once, so on a CPU each picture is made by itself: the same one, bit for bit, whatever else is asked for.
On a GPU pictures are made together, and are the same up to rounding.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.clip import Clip
from unclip.data.loader import as_pictures, as_pixels
from unclip.data.picture import as_images
from unclip.decoder import MAX_CONDITION_NOISE, PIXEL_CLAMP, Decoder, DecoderCondition
from unclip.diffusion.guidance import Network, guided_by_two
from unclip.diffusion.sampling import Denoiser, Noise, SamplerName, make_denoiser, sample
from unclip.diffusion.schedule import Schedule, make_schedule, respace
from unclip.files import UnclipError
from unclip.prior.condition import Prior, PriorSampling, TextCondition, best_of, similarities
from unclip.progress import progress
from unclip.upsampler import Upsampler, UpsamplerSampling, upsample

# told apart in the seeds, so that no two share noise
PRIOR_STREAM, DECODER_STREAM, CONDITION_STREAM, *UPSAMPLER_STREAMS, MANIPULATE_STREAM = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How pictures are sampled.

    Attributes:
        num_candidates: image embeddings that the prior draws for each picture; the one most similar to the caption is used.
        prior: how the prior is sampled.
        decoder_steps, sampler, eta: of the decoder.
        guidance_scale: of the decoder; one number for embedding and caption together, or one for each of them. 1.0 is none.
        condition_noise: level of noise on the image embedding, which a decoder that was trained for it is told.
        batch_size: pictures that a GPU makes at once.
        upsampler: how the upsamplers are sampled.
    """

    __pydantic_config__ = {"extra": "forbid"}

    num_candidates: int = 2
    prior: PriorSampling = field(default_factory=PriorSampling)
    decoder_steps: int = 30
    guidance_scale: float | tuple[float, float] = 1.0
    condition_noise: int = 0
    sampler: SamplerName = "ddim"
    eta: float = 0.0
    seed: int = 0
    batch_size: int = 64
    upsampler: UpsamplerSampling = field(default_factory=UpsamplerSampling)

    def __post_init__(self) -> None:
        for name in ("num_candidates", "decoder_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not all(math.isfinite(scale) for scale in self.guidance_scales):
            raise ValueError(f"guidance_scale must be finite, got {self.guidance_scale}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.condition_noise <= MAX_CONDITION_NOISE:
            raise ValueError(f"condition_noise must be in [0, {MAX_CONDITION_NOISE}], got {self.condition_noise}")
        if self.sampler == "analytic":
            raise ValueError("sampler of the decoder must be ddpm, ddim or dpm++: what the analytic one needs is measured for the prior only")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta is a setting of the ddim sampler; expected 0.0 with {self.sampler!r}, got {self.eta}")

    @property
    def guidance_scales(self) -> tuple[float, float]:
        """The scale of the embedding and that of the caption."""
        return self.guidance_scale if isinstance(self.guidance_scale, tuple) else (self.guidance_scale, self.guidance_scale)


@dataclass(frozen=True)
class Models:
    """What pictures are made with; the prior is None where text embeddings are used as image embeddings.

    The upsamplers work in their order, the first on the decoder's pictures; there may be none.
    """

    clip: Clip
    prior: Prior | None
    decoder: Decoder
    upsamplers: tuple[Upsampler, ...] = ()


@dataclass(frozen=True)
class Generated:
    """Pictures and how they came about.

    Attributes:
        captions: n sentences; pictures: (n, H, H, 3) uint8, as the last upsampler made them.
        decoded: (n, h, h, 3) uint8, as the decoder made them; without upsamplers the same.
        candidates: (n, k, E) raw image embeddings that the prior drew; similarities: (n, k) to the caption.
        image_emb: (n, E), the ones that were drawn from.
    """

    captions: list[str]
    pictures: np.ndarray
    decoded: np.ndarray
    candidates: Tensor
    similarities: Tensor
    image_emb: Tensor

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images."""
        return as_images(self.pictures)


class RowNoise:
    """Standard normal noise of which each row has its own stream, seeded by (seed, row, stream)."""

    def __init__(self, seed: int, rows: Sequence[int], stream: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._generators = [
            torch.Generator().manual_seed(int(np.random.SeedSequence([seed, row, stream]).generate_state(1, np.uint64)[0] >> 1)) for row in rows
        ]
        self._shape, self._device = shape, device

    def __call__(self) -> Tensor:
        """(rows, *shape)."""
        return torch.stack([torch.randn(self._shape, generator=generator) for generator in self._generators]).to(self._device)


def text_condition(clip: Clip, captions: Sequence[str]) -> TextCondition:
    """Captions as the priors take them."""
    text = clip.encode_texts(captions)
    return TextCondition(text.text_emb, text.text_tokens, text.text_mask)


def draw_candidates(prior: Prior | None, condition: TextCondition, config: GenerateConfig, *, rows: Sequence[int]) -> Tensor:
    """(B, n, E) raw image embeddings for captions; without a prior the text embeddings, n being 1. `rows` seed the noise."""
    if prior is None:
        return condition.text_emb[:, None]
    draws = [row * config.num_candidates + draw for row in rows for draw in range(config.num_candidates)]
    noise = RowNoise(config.seed, draws, PRIOR_STREAM, (prior.noise_width,), condition.text_emb.device)
    return prior.draw(condition, num_samples=config.num_candidates, sampling=config.prior, noise=noise)


def decoder_denoiser(
    decoder: Decoder, image_emb: Tensor, condition: TextCondition, config: GenerateConfig, *,
    show_image: bool = True, show_text: bool = True, clamp: float | None = PIXEL_CLAMP,
) -> tuple[Denoiser, Schedule]:  # fmt: skip
    """The decoder, guided, as samplers take it, for image embeddings (B, E) and their captions; and the steps to sample with.

    With `condition_noise`, the embeddings come noised already (`noise_condition`).

    Args:
        show_image: whether the decoder is given the embeddings, or draws from the captions alone.
        show_text: whether the decoder reads the captions, or is guided by the embedding alone.
        clamp: x0 is kept in [-clamp, clamp].

    Raises:
        UnclipError: a scale for the caption where the decoder sees none, or condition noise that it was not trained for.
    """
    if config.condition_noise > decoder.config.condition_noise:
        raise UnclipError(
            f"this decoder was trained with condition_noise up to {decoder.config.condition_noise}; expected no more, got {config.condition_noise}"
        )
    scales = config.guidance_scales
    if scales[0] != scales[1] and not decoder.config.sees_text:
        raise UnclipError(f"this decoder sees no caption; expected one generate.guidance_scale, got {scales}")
    visible = torch.ones(len(image_emb), dtype=torch.bool, device=image_emb.device)
    level = torch.full((len(image_emb),), config.condition_noise, device=image_emb.device) if decoder.config.condition_noise else None
    told = DecoderCondition(image_emb, condition.text_tokens, condition.text_mask, visible & show_image, visible & show_text, condition.text_emb, level)

    def network(told: DecoderCondition) -> Network:
        read = decoder.read(told)  # once for all steps
        return lambda x_t, t: decoder.predict(x_t, t, read)

    if not show_text:
        scales = (scales[0], scales[0])  # there is nothing that the caption adds
    guided = guided_by_two(network(told), network(told.dropped(image=False)), network(told.dropped()), scales)
    schedule = respace(make_schedule(decoder.config.schedule, decoder.config.num_train_steps), config.decoder_steps)
    return make_denoiser(guided, schedule, decoder.config.prediction, clamp=clamp), schedule


def noise_condition(decoder: Decoder, image_emb: Tensor, config: GenerateConfig, *, rows: Sequence[int]) -> Tensor:
    """Image embeddings (B, E) with the config's condition noise; `rows` seed it."""
    if not config.condition_noise:
        return image_emb
    noise = RowNoise(config.seed, rows, CONDITION_STREAM, tuple(image_emb.shape[1:]), image_emb.device)
    return decoder.noised(image_emb, torch.full((len(image_emb),), config.condition_noise, device=image_emb.device), noise())


@torch.no_grad()
def decode_embeddings(
    decoder: Decoder, image_emb: Tensor, condition: TextCondition, config: GenerateConfig, *,
    rows: Sequence[int], show_image: bool = True, show_text: bool = True,
) -> np.ndarray:  # fmt: skip
    """Pictures (B, H, H, 3) uint8 of image embeddings (B, E) and their captions, of which one may be hidden. `rows` seed the noise."""
    side = decoder.config.unet.image_size
    noised = noise_condition(decoder, image_emb, config, rows=rows)
    denoiser, schedule = decoder_denoiser(decoder, noised, condition, config, show_image=show_image, show_text=show_text)
    noise: Noise = RowNoise(config.seed, rows, DECODER_STREAM, (3, side, side), image_emb.device)
    return as_pictures(sample(config.sampler, denoiser, schedule, noise(), noise, eta=config.eta))


def upsample_pictures(upsamplers: Sequence[Upsampler], pictures: np.ndarray, config: GenerateConfig, *, rows: Sequence[int]) -> np.ndarray:
    """Small pictures through all upsamplers: (B, h, h, 3) uint8 -> (B, H, H, 3) uint8. `rows` seed the noise.

    Between two upsamplers a picture is rounded to 255ths, as it would be by saving it, so that enlarging a saved one gives
    the same.
    """
    sampling = config.upsampler
    for upsampler, steps, stream in zip(upsamplers, (sampling.first_steps, sampling.second_steps), UPSAMPLER_STREAMS, strict=False):
        device = next(upsampler.parameters()).device
        height, width = (side * upsampler.config.scale for side in pictures.shape[1:3])
        made = []
        for chunk in chunks_of(len(pictures), sampling.batch_size, device):
            low_res = as_pixels(pictures[chunk.start : chunk.stop]).to(device)
            noise = RowNoise(config.seed, rows[chunk.start : chunk.stop], stream, (3, height, width), device)
            made.append(as_pictures(upsample(upsampler, low_res, steps=steps, noise=noise, tile=sampling.tile)))
        pictures = np.concatenate(made)
    return pictures


def chunks_of(num: int, batch_size: int, device: torch.device) -> Iterator[range]:
    """The rows that are worked on at once: one by one on a CPU, so that rounding does not depend on the others."""
    size = 1 if device.type == "cpu" else batch_size
    return (range(start, min(start + size, num)) for start in range(0, num, size))


def numbers_of(captions: Sequence[str]) -> list[int]:
    """How often each caption has come before in the list: the number that a picture has among those of its caption."""
    seen: Counter[str] = Counter()
    numbers = []
    for caption in captions:
        numbers.append(seen[caption])
        seen[caption] += 1
    return numbers


def check_prior(models: Models) -> None:
    """Refuses a prior before a decoder that does not want its embeddings.

    Raises:
        UnclipError: the decoder draws from text embeddings, and there is a prior.
    """
    if models.decoder.config.embedding == "text" and models.prior is not None:
        raise UnclipError("this decoder draws from the caption's own embedding, so that a prior has no place; give --prior none")


def generate(models: Models, captions: Sequence[str], config: GenerateConfig, *, label: str = "generate") -> Generated:
    """One picture for every caption in the list; give a caption several times for several pictures of it.

    Raises:
        UnclipError: the settings do not fit the decoder, or the prior (`check_prior`).
    """
    check_prior(models)
    made: list[Generated] = []
    numbers = numbers_of(captions)
    with progress(label, len(captions), unit="picture") as bar:
        for rows in chunks_of(len(captions), config.batch_size, models.clip.device):
            chunk, seeds = list(captions[rows.start : rows.stop]), numbers[rows.start : rows.stop]
            condition = text_condition(models.clip, chunk)
            candidates = draw_candidates(models.prior, condition, config, rows=seeds)
            image_emb = best_of(candidates, condition.text_emb)
            decoded = decode_embeddings(models.decoder, image_emb, condition, config, rows=seeds)
            pictures = upsample_pictures(models.upsamplers, decoded, config, rows=seeds)
            made.append(Generated(chunk, pictures, decoded, candidates.cpu(), similarities(candidates, condition.text_emb).cpu(), image_emb.cpu()))
            bar.advance(len(chunk))
    return Generated(
        list(captions),
        np.concatenate([part.pictures for part in made]),
        np.concatenate([part.decoded for part in made]),
        torch.cat([part.candidates for part in made]),
        torch.cat([part.similarities for part in made]),
        torch.cat([part.image_emb for part in made]),
    )
