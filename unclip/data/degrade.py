"""What low-resolution pictures look like: shrunk by area, and in training blurred or degraded as well (paper, section 2.1).

An upsampler that only ever saw perfectly shrunk pictures takes each flaw of the decoder's for detail. So the first one
is trained on slightly blurred pictures, and the second on ones that went through what happens to pictures in the world:
blur, resizing, noise and JPEG in a random order (BSRGAN, Zhang et al. 2021, arXiv 2103.14006, section 3).
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Corruption = Literal["none", "blur", "bsr"]

BLUR_TAPS, BLUR_SIGMA = 3, 0.6  # paper, section 2.1

# BSRGAN's numbers for a picture that is shrunk by `scale`
KERNEL_TAPS = (7, 25)  # least and most, odd
ISOTROPIC_SIGMA, ISOTROPIC_SIGMA_A_SCALE = 2.0, 0.2  # the widest: 2 + 0.2 * scale
ANISOTROPIC_VARIANCE = 4.0  # the largest along an axis: 4 + scale
MIN_SIGMA = 0.1
EARLY_HALVING_PROB = 0.25  # first of all by half, where the scale is 4
RESIZE_PROB = 0.75  # by a random factor; else a Gaussian and every scale-th pixel
SHIFTED_TAPS, SHIFTED_SIGMA_A_SCALE = 25, 0.6
NOISE_LEVELS = (2, 25)  # standard deviation in 255ths
COLOUR_NOISE_PROB, GREY_NOISE_PROB = 0.4, 0.4  # each channel its own, all the same; else correlated at random
JPEG_PROB = 0.9
JPEG_QUALITIES = (30, 95)
INTERPOLATIONS = ("bilinear", "bicubic", "area")

Operation = Callable[[Tensor], Tensor]


def shrunk(pixels: Tensor, scale: int) -> Tensor:
    """The mean of each square of scale x scale pixels: (B, 3, H, W) -> (B, 3, H / scale, W / scale).

    As `shards.decode` makes a small picture of a large one, but not rounded to 255ths. Nothing is skipped over, as
    nearest-neighbour shrinking does, whose jagged edges an upsampler would learn to expect.
    """
    if pixels.shape[-1] % scale or pixels.shape[-2] % scale:
        raise ValueError(f"the sides of a picture that is shrunk must be multiples of scale {scale}, got {tuple(pixels.shape[-2:])}")
    return F.avg_pool2d(pixels, scale)


def blurred(pixels: Tensor) -> Tensor:
    """The paper's corruption for the first upsampler: a Gaussian of sigma 0.6 over 3 x 3 pixels, the rim mirrored. (B, 3, H, W)."""
    return filtered(pixels, gaussian(BLUR_TAPS, np.full(2, BLUR_SIGMA**2), 0.0), rim="reflect")


def low_resolution(pixels: Tensor, scale: int, corruption: Corruption, *, prob: float, generators: Sequence[np.random.Generator]) -> Tensor:
    """What an upsampler is given in training: (B, 3, H, W) in [-1, 1] -> (B, 3, H / scale, W / scale) in [-1, 1].

    Args:
        prob: how often a picture is corrupted; the others are only shrunk.
        generators: one for each picture, which draw all that is random about it.
    """
    low_res = shrunk(pixels, scale)
    chosen = [row for row, generator in enumerate(generators) if generator.random() < prob]
    if corruption == "none" or not chosen:
        return low_res
    if corruption == "blur":
        low_res[chosen] = blurred(low_res[chosen])
    else:
        low_res[chosen] = torch.stack([degraded(pixels[row], scale, generators[row]) for row in chosen])
    return low_res


def degraded(pixels: Tensor, scale: int, generator: np.random.Generator) -> Tensor:
    """BSRGAN's degradation, the paper's for the second upsampler: (3, H, W) in [-1, 1] -> (3, H / scale, W / scale) in [-1, 1].

    Two blurs, two resizings (the second to the final size, never before the first), noise and JPEG in a random order,
    and JPEG once more at the end. Where BSRGAN resizes without antialiasing we do with it.
    """
    size = (pixels.shape[-2] // scale, pixels.shape[-1] // scale)
    picture = pixels[None].float().add(1.0).div(2.0)  # (1, 3, H, W) in [0, 1]
    if scale == 4 and generator.random() < EARLY_HALVING_PROB:
        scale = 2
        picture = _resized(picture, (size[0] * scale, size[1] * scale), generator)
    for _, operation in operations(size, scale, generator):
        picture = operation(picture).clamp(0.0, 1.0)
    return compressed(picture, generator)[0].mul(2.0).sub(1.0)


def operations(size: tuple[int, int], scale: int, generator: np.random.Generator) -> list[tuple[str, Operation]]:
    """The degradation's steps in a random order, by name; the resizing to the final `size` comes after the other one."""
    steps: dict[str, Operation] = {
        "first blur": lambda picture: filtered(picture, blur_kernel(scale, generator)),
        "second blur": lambda picture: filtered(picture, blur_kernel(scale, generator)),
        "resizing": lambda picture: _resized_at_random(picture, size, scale, generator),
        "final size": lambda picture: _resized(picture, size, generator),
        "noise": lambda picture: noised(picture, generator),
        "JPEG": lambda picture: compressed(picture, generator) if generator.random() < JPEG_PROB else picture,
    }
    names = [list(steps)[number] for number in generator.permutation(len(steps))]
    early, late = sorted((names.index("resizing"), names.index("final size")))
    names[early], names[late] = "resizing", "final size"
    return [(name, steps[name]) for name in names]


def blur_kernel(scale: int, generator: np.random.Generator) -> Tensor:
    """A random Gaussian (K, K) that adds up to 1: one time in two as wide in all directions, else stretched and turned."""
    taps = int(generator.integers(KERNEL_TAPS[0] // 2, KERNEL_TAPS[1] // 2 + 1)) * 2 + 1
    if generator.random() < 0.5:
        variances = np.full(2, max(MIN_SIGMA, (ISOTROPIC_SIGMA + ISOTROPIC_SIGMA_A_SCALE * scale) * generator.random()) ** 2)
    else:
        variances = np.maximum(MIN_SIGMA**2, (ANISOTROPIC_VARIANCE + scale) * generator.random(2))
    return gaussian(taps, variances, generator.random() * math.pi)


def gaussian(taps: int, variances: np.ndarray, angle: float, *, shift: float = 0.0) -> Tensor:
    """(taps, taps) float32 weights of a Gaussian with these variances along two axes turned by `angle`, its middle off by `shift` pixels."""
    places = np.arange(taps) - (taps - 1) / 2 - shift
    x, y = np.meshgrid(places, places)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    weights = np.exp(-0.5 * (along**2 / variances[0] + across**2 / variances[1]))
    return torch.from_numpy((weights / weights.sum()).astype(np.float32))


def filtered(pictures: Tensor, kernel: Tensor, *, rim: Literal["replicate", "reflect"] = "replicate") -> Tensor:
    """Each channel of (B, 3, H, W) filtered with a kernel (K, K), K odd; beyond the rim its last pixel goes on, or the picture mirrored."""
    margin = len(kernel) // 2
    padded = F.pad(pictures, (margin, margin, margin, margin), mode=rim)
    return F.conv2d(padded, kernel.expand(3, 1, *kernel.shape), groups=3)


def noised(picture: Tensor, generator: np.random.Generator) -> Tensor:
    """Gaussian noise of a random level: in each channel its own, the same in all, or correlated between them at random."""
    level = generator.integers(NOISE_LEVELS[0], NOISE_LEVELS[1] + 1) / 255.0
    kind = generator.random()
    draws = generator.standard_normal(picture.shape)
    if COLOUR_NOISE_PROB <= kind < COLOUR_NOISE_PROB + GREY_NOISE_PROB:
        draws = np.broadcast_to(draws[:, :1], draws.shape)
    elif kind >= COLOUR_NOISE_PROB + GREY_NOISE_PROB:
        mixing = generator.standard_normal((3, 3))
        mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)  # so that each channel's variance stays 1
        draws = np.einsum("ij,bjhw->bihw", mixing, draws)
    return picture + torch.from_numpy((level * draws).astype(np.float32))


def compressed(picture: Tensor, generator: np.random.Generator) -> Tensor:
    """The picture (1, 3, H, W) in [0, 1] through JPEG of a random quality."""
    quality = int(generator.integers(JPEG_QUALITIES[0], JPEG_QUALITIES[1] + 1))
    stored = io.BytesIO()
    bytes_of = picture[0].clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(bytes_of).save(stored, "JPEG", quality=quality)
    read = torch.from_numpy(np.array(Image.open(stored)))  # (H, W, 3)
    return read.permute(2, 0, 1)[None].float().div(255.0)


def _resized_at_random(picture: Tensor, size: tuple[int, int], scale: int, generator: np.random.Generator) -> Tensor:
    """To a random size, or through a Gaussian to every scale-th pixel."""
    if generator.random() < RESIZE_PROB:
        factor = generator.uniform(1.0, 2.0 * scale)
        height, width = (max(1, round(side / factor)) for side in picture.shape[-2:])
        return _resized(picture, (height, width), generator)
    sigma = generator.uniform(MIN_SIGMA, SHIFTED_SIGMA_A_SCALE * scale)
    # a kept pixel stands for the middle of its square, which lies between pixels where the scale is even
    kernel = gaussian(SHIFTED_TAPS, np.full(2, sigma**2), 0.0, shift=(scale - 1) / 2)
    return filtered(picture, kernel)[..., ::scale, ::scale]


def _resized(picture: Tensor, size: tuple[int, int], generator: np.random.Generator) -> Tensor:
    mode = INTERPOLATIONS[generator.integers(len(INTERPOLATIONS))]
    if mode == "area":
        return F.interpolate(picture, size, mode="area")
    return F.interpolate(picture, size, mode=mode, antialias=True, align_corners=False)
