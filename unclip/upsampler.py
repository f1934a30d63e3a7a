"""The upsamplers: a U-Net without attention from a small picture to one several times as large (paper, section 2.1).

The small picture, enlarged, stands beside the noised large one as further channels; nothing else is told to the network,
neither caption nor embedding. Since all it does is convolve, it is trained on crops and applied to whole pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unclip import checkpoint
from unclip.diffusion.process import Prediction
from unclip.diffusion.sampling import Denoised, Noise, make_denoiser, sample_ddim
from unclip.diffusion.schedule import ScheduleName, make_schedule, respace_sections
from unclip.nn.embeddings import StepEmbedding
from unclip.nn.tiled import run_tiled
from unclip.nn.unet import UNet, UNetConfig

PIXEL_CLAMP = 1.0
STEP_WIDTH = 4  # of the step embedding, in channels of the U-Net (Dhariwal & Nichol 2021)


@dataclass(frozen=True, kw_only=True)
class UpsamplerConfig:
    """An upsampler's network and what it predicts.

    Attributes:
        low_size: side in pixels of the pictures that it is given; those that it makes have `unet.image_size`.
        enlarge: how the small picture is brought to the large one's size: "bilinear" (ADM, GLIDE, the paper), whose result
            lies between the pixels it stands on and so never rings; "bicubic" (Karlo).
        residual_std: 0 where the picture itself is denoised (the paper). Else it is what the enlarged small picture lacks,
            divided by this number, which should be about its standard deviation (SRDiff, arXiv 2104.14951): what is flat
            is right from the first step on, and the training goes into the edges.
        prediction, schedule, num_train_steps: what the network says, and the noise it was trained with.
    """

    __pydantic_config__ = {"extra": "forbid"}

    low_size: int = 32
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(image_size=128, attention_sizes=(), attend_middle=False))
    enlarge: Literal["bilinear", "bicubic"] = "bilinear"
    residual_std: float = 0.0
    prediction: Prediction = "v"
    schedule: ScheduleName = "cosine"
    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        if self.residual_std < 0.0:
            raise ValueError(f"residual_std must not be negative, got {self.residual_std}")
        if self.unet.attention_sizes or self.unet.attend_middle:
            raise ValueError("an upsampler has no attention, so that it can be trained on crops; expected attention_sizes [] and attend_middle false")
        if self.low_size < 1 or self.unet.image_size % self.low_size or self.unet.image_size == self.low_size:
            raise ValueError(f"unet.image_size must be a multiple of low_size {self.low_size} and larger, got {self.unet.image_size}")

    @property
    def scale(self) -> int:
        """How many times as large a picture becomes."""
        return self.unet.image_size // self.low_size


@dataclass(frozen=True, kw_only=True)
class UpsamplerSampling:
    """How the upsamplers are sampled; by DDIM without noise, so that few steps are enough (paper, table 3).

    Attributes:
        first_steps, second_steps: how many steps each takes in each of equal sections of the schedule, least noise first:
            (27,) is 27 evenly spaced ones, (10, 10, 3, 2, 2) those of GLIDE.
        tile: pictures with a longer side than this are made in tiles of this side, for less memory; 0 never is.
        batch_size: pictures that a GPU enlarges at once.
    """

    __pydantic_config__ = {"extra": "forbid"}

    first_steps: tuple[int, ...] = (27,)
    second_steps: tuple[int, ...] = (15,)
    tile: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("first_steps", "second_steps"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least one number, each at least 1, got {list(getattr(self, name))}")
        if self.tile < 0:
            raise ValueError(f"tile must not be negative, got {self.tile}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


class Upsampler(nn.Module):
    """(x_t (B, 3, H, W), t (B,), low_res (B, 3, h, w)) -> prediction (B, 3, H, W); pictures in [-1, 1].

    What is noised and denoised is a picture, or with `residual_std` what it adds to the small one (`to_sample`).
    """

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        step_width = STEP_WIDTH * config.unet.channels
        self.step = StepEmbedding(config.unet.channels, step_width)
        self.unet = UNet(config.unet, in_channels=6, out_channels=3, emb_width=step_width, context_width=0)

    def forward(self, x_t: Tensor, t: Tensor, low_res: Tensor) -> Tensor:
        out: Tensor = self.unet(self._inputs(x_t, low_res), self.step(t))
        return out

    def predict_tiled(self, x_t: Tensor, t: Tensor, low_res: Tensor, tile: int) -> Tensor:
        """What `forward` says, in tiles of this side: the same numbers up to rounding, with less memory (`unclip.nn.tiled`)."""
        return run_tiled(self.unet, self._inputs(x_t, low_res), self.step(t), tile)

    def to_sample(self, pixels: Tensor, low_res: Tensor) -> Tensor:
        """What is denoised to make a picture: (B, 3, H, W) -> (B, 3, H, W)."""
        std = self.config.residual_std
        return (pixels - enlarged(low_res, pixels.shape[-2:], self.config.enlarge)) / std if std else pixels

    def to_pixels(self, sample: Tensor, low_res: Tensor) -> Tensor:
        """The picture that was denoised; the inverse of `to_sample`."""
        std = self.config.residual_std
        return enlarged(low_res, sample.shape[-2:], self.config.enlarge) + std * sample if std else sample

    def _inputs(self, x_t: Tensor, low_res: Tensor) -> Tensor:
        return torch.cat([x_t, enlarged(low_res, x_t.shape[-2:], self.config.enlarge)], dim=1)  # (B, 6, H, W)


def enlarged(low_res: Tensor, size: Sequence[int], mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Small pictures (B, 3, h, w) at the size (H, W) of large ones."""
    # Karlo's enlarging knows antialiasing, which does nothing to what grows but gives bicubic another kernel (Keys' a: -0.5, not -0.75)
    return F.interpolate(low_res, list(size), mode=mode, align_corners=False, antialias=mode == "bicubic")


@torch.no_grad()
def upsample(upsampler: Upsampler, low_res: Tensor, *, steps: Sequence[int], noise: Noise, tile: int = 0) -> Tensor:
    """Large pictures for small ones: (B, 3, h, w) in [-1, 1] -> (B, 3, h * scale, w * scale), by DDIM (paper, table 3).

    Args:
        steps: how many are taken in each of as many equal sections of the schedule (`respace_sections`).
        noise: draws (B, 3, h * scale, w * scale).
        tile: pictures with a longer side than this are computed in tiles of this side; 0 never does.

    Raises:
        ValueError: the large sides are not multiples of what the U-Net halves.
    """
    config = upsampler.config
    height, width = (side * config.scale for side in low_res.shape[-2:])
    multiple = config.unet.patch_size * 2 ** (len(config.unet.channel_mult) - 1)
    if height % multiple or width % multiple:
        raise ValueError(f"the sides of a picture that is made must be multiples of {multiple}, got {height} and {width}")
    in_tiles = 0 < tile < max(height, width)
    schedule = respace_sections(make_schedule(config.schedule, config.num_train_steps), steps)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return upsampler.predict_tiled(x_t, t, low_res, tile) if in_tiles else upsampler(x_t, t, low_res)

    x_T = noise()
    if x_T.shape != (len(low_res), 3, height, width):
        raise ValueError(f"expected noise of the shape {(len(low_res), 3, height, width)}, got {tuple(x_T.shape)}")
    unbounded = make_denoiser(network, schedule, config.prediction)

    def denoiser(x_t: Tensor, i: Tensor) -> Denoised:
        pixels = upsampler.to_pixels(unbounded(x_t, i).x0, low_res).clamp(-PIXEL_CLAMP, PIXEL_CLAMP)
        return Denoised(upsampler.to_sample(pixels, low_res))

    return upsampler.to_pixels(sample_ddim(denoiser, schedule, x_T, noise), low_res)


def load_upsampler(folder: Path, *, device: str = "cpu") -> Upsampler:
    """The EMA weights of a checkpoint, frozen.

    Raises:
        UnclipError: the folder is no checkpoint of an upsampler, or its weights do not fit its config.
    """
    network = checkpoint.read_config(folder, "upsampler")["network"]
    unet: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in network.pop("unet").items()}
    model = Upsampler(UpsamplerConfig(unet=UNetConfig(**unet), **network))
    checkpoint.load_weights(model, folder / checkpoint.EMA)
    return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
