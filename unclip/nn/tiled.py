"""The U-Net on large pictures in tiles: the same numbers as at once, up to rounding, for less memory.

Cutting a picture into tiles and giving each to the network is not exact, however much they overlap: GroupNorm takes its
mean and variance over the whole picture. So it is each convolution that goes tile by tile here, with the one pixel of
overlap that it reaches, and what stands before it (norm, activation, resampling) is done for the tile alone, with the
statistics of the whole map. Then no map is held but the input of a block, what is between its two convolutions, and its
output; at once there are also the joined skip, the normed and the activated copies of each, and the convolutions' own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unclip.nn.unet import ResBlock, UNet

REACH = 1  # pixels that a convolution of 3 x 3 sees beyond its own


@dataclass(frozen=True)
class _Affine:
    """A norm with known statistics: x -> x * scale + shift, both (B, C, 1, 1)."""

    scale: Tensor
    shift: Tensor

    def activated(self, x: Tensor) -> Tensor:
        return F.silu(torch.addcmul(self.shift, x, self.scale))


Part = tuple[Tensor, slice, slice]  # a map and the rows and columns of it


def run_tiled(unet: UNet, x: Tensor, emb: Tensor, tile: int) -> Tensor:
    """What `unet(x, emb)` says: x (B, in, H, W), emb (B, M) -> (B, out, H, W), with tiles of `tile` x `tile` pixels.

    Raises:
        ValueError: the U-Net has attention, which sees all pixels at once; or the tile is not positive.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, got {tile}")
    if others := {type(block).__name__ for stage in (*unet.down, *unet.middle, *unet.up) for block in stage.children() if not isinstance(block, ResBlock)}:
        raise ValueError(f"only a U-Net of residual blocks can be run in tiles; this one has {', '.join(sorted(others))} too")
    side = max(1, tile // unet.patch_size)

    def run(stage: nn.Module, parts: Sequence[Tensor]) -> Tensor:
        for block in stage.children():
            assert isinstance(block, ResBlock)
            parts = [_block(block, parts, emb, side)]
        return parts[0]

    h = unet.stem(F.pixel_unshuffle(x, unet.patch_size))
    skips = [h]
    for stage in unet.down:
        h = run(stage, [h])
        skips.append(h)
    for stage in unet.middle:
        h = run(stage, [h])
    for stage in unet.up:
        h = run(stage, [h, skips.pop()])
    out = _convolved(unet.out_conv, [h], _normed(unet.out_norm, [h]), "", side)
    return F.pixel_shuffle(out, unet.patch_size)


def _block(block: ResBlock, parts: Sequence[Tensor], emb: Tensor, side: int) -> Tensor:
    """A residual block; its input's channels come in parts that are never joined but tile by tile."""
    h = _convolved(block.conv1, parts, _normed(block.norm1, parts), block.resample, side)
    told = block.emb(F.silu(emb))[:, :, None, None]
    if block.scales:
        scale, shift = told.chunk(2, dim=1)
        norm = _normed(block.norm2, [h])
        norm = _Affine(norm.scale * (1 + scale), norm.shift * (1 + scale) + shift)
    else:
        norm = _normed(block.norm2, [h], added=told)
    out = _convolved(block.conv2, [h], norm, "", side)
    for rows, columns in _tiles(out.shape[-2], out.shape[-1], side):
        own = _resampled(parts, rows, columns, block.resample)
        out[:, :, rows, columns] += block.skip(own)
    return out


def _normed(norm: nn.GroupNorm, parts: Sequence[Tensor], *, added: Tensor | None = None) -> _Affine:
    """A GroupNorm of the joined parts, its statistics taken; with `added` (B, C, 1, 1), of their sum with that."""
    variance, mean = (torch.cat(found, dim=1) for found in zip(*(torch.var_mean(part, dim=(2, 3), correction=0) for part in parts), strict=True))
    offset = torch.zeros_like(mean) if added is None else added[:, :, 0, 0]
    mean = mean + offset
    # the variance of a group is the mean of its channels' variances and the variance of their means
    of_channel, of_group = (value.reshape(len(value), norm.num_groups, -1) for value in (variance, mean))  # (B, G, C / G)
    spread = of_channel.mean(dim=2) + of_group.var(dim=2, correction=0)
    width = of_group.shape[2]
    scale = (spread + norm.eps).rsqrt().repeat_interleave(width, dim=1) * norm.weight
    shift = norm.bias + (offset - of_group.mean(dim=2).repeat_interleave(width, dim=1)) * scale
    return _Affine(scale[:, :, None, None], shift[:, :, None, None])


def _convolved(conv: nn.Conv2d | nn.Linear, parts: Sequence[Tensor], norm: _Affine, resample: str, side: int) -> Tensor:
    """conv(resample(silu(norm(parts)))), a tile at a time."""
    height, width = _size_after(parts[0].shape[-2:], resample)
    out = torch.empty(len(parts[0]), len(conv.weight), height, width, dtype=parts[0].dtype, device=parts[0].device, memory_format=_memory_format(parts[0]))
    for rows, columns in _tiles(height, width, side):
        reach = [slice(max(0, own.start - REACH), min(end, own.stop + REACH)) for own, end in ((rows, height), (columns, width))]
        beyond = [(REACH - (own.start - seen.start), REACH - (seen.stop - own.stop)) for own, seen in zip((rows, columns), reach, strict=True)]
        seen = _resampled(parts, reach[0], reach[1], resample, norm)
        padded = F.pad(seen, (*beyond[1], *beyond[0]))  # zeros, and only where the picture ends
        out[:, :, rows, columns] = F.conv2d(padded, conv.weight, conv.bias)
    return out


def _resampled(parts: Sequence[Tensor], rows: slice, columns: slice, resample: str, norm: _Affine | None = None) -> Tensor:
    """A window of resample(silu(norm(parts))), or of resample(parts) without a norm, rows and columns counted after resampling."""

    def window(rows: slice, columns: slice) -> Tensor:
        joined = torch.cat([part[:, :, rows, columns] for part in parts], dim=1)
        return joined if norm is None else norm.activated(joined)

    if resample == "down":
        return F.avg_pool2d(window(slice(2 * rows.start, 2 * rows.stop), slice(2 * columns.start, 2 * columns.stop)), 2)
    if resample == "up":
        source = [slice(part.start // 2, (part.stop + 1) // 2) for part in (rows, columns)]
        doubled = F.interpolate(window(source[0], source[1]), scale_factor=2.0, mode="nearest")
        own = [slice(part.start - 2 * of.start, part.stop - 2 * of.start) for part, of in zip((rows, columns), source, strict=True)]
        return doubled[:, :, own[0], own[1]]
    return window(rows, columns)


def _size_after(size: Sequence[int], resample: str) -> tuple[int, int]:
    height, width = size
    if resample == "down":
        return height // 2, width // 2
    return (2 * height, 2 * width) if resample == "up" else (height, width)


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def _tiles(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield slice(top, min(height, top + side)), slice(left, min(width, left + side))
