"""The ADM/GLIDE U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233; GLIDE, arXiv 2112.10741) of decoder and upsampler.

Residual blocks resample inside; the step embedding scales and shifts their second norm; attention puts the context's
keys and values before the image's own, in one softmax. The network knows nothing of CLIP: it takes a vector and tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

NORM_GROUPS = 32  # Dhariwal & Nichol 2021
POSITION_STD = 0.1

Modulation = Literal["scale-shift", "add"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of a U-Net.

    Attributes:
        image_size: side of the pictures in pixels.
        patch_size: squares of so many pixels a side become channels on the way in, and pixels again on the way out; all
            that lies between works on sides of image_size / patch_size.
        channels, channel_mult: width of the first level, and each level's multiple of it; each level halves the side.
        depth: residual blocks a level.
        attention_sizes: sides of the levels whose residual blocks are each followed by attention.
        attend_middle: whether the middle has attention, at the smallest side; ADM's upsamplers have none at all.
        head_width: channels of an attention head.
        modulation: how the step embedding enters a residual block. "scale-shift" scales and shifts the second norm (ADM);
            "add" is added before it (Ho et al. 2020; Karlo's upsamplers).
        min_group_width: the norms have 32 groups, fewer where a group would have less channels than this. With 1 there
            are exactly 32 wherever 32 divides the channels.
        positions: whether attention adds a learned map of where each pixel stands. ADM has none, and knows its place only
            from the padding at the rim; at high noise, where the layout is decided, that takes long to learn. Off where
            the network is trained on crops.
        dropout: rate inside the residual blocks.
    """

    __pydantic_config__ = {"extra": "forbid"}

    image_size: int = 64
    patch_size: int = 1
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    depth: int = 2
    attention_sizes: tuple[int, ...] = (32, 16, 8)
    attend_middle: bool = True
    head_width: int = 64
    modulation: Modulation = "scale-shift"
    min_group_width: int = 4
    positions: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("patch_size", "min_group_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        multiple = self.patch_size * 2 ** (len(self.channel_mult) - 1)
        if self.image_size % multiple:
            raise ValueError(
                f"image_size must be a multiple of {multiple} for {len(self.channel_mult)} levels and patches of {self.patch_size}, got {self.image_size}"
            )
        sides = self.sides
        if unknown := set(self.attention_sizes) - set(sides):
            raise ValueError(f"attention_sizes must be among {sides}, got {sorted(unknown)}")
        for side, mult in zip(sides, self.channel_mult, strict=True):
            if side in self.attention_sizes and self.channels * mult % self.head_width:
                raise ValueError(f"head_width {self.head_width} must divide the {self.channels * mult} channels at side {side}")
        if self.attend_middle and self.channels * self.channel_mult[-1] % self.head_width:
            raise ValueError(f"head_width {self.head_width} must divide the {self.channels * self.channel_mult[-1]} channels of the middle")
        if self.positions and not (self.attend_middle or self.attention_sizes):
            raise ValueError("positions has no effect without attention; expected False, got True")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def sides(self) -> list[int]:
        """The side of each level, falling."""
        return [self.image_size // self.patch_size // 2**level for level in range(len(self.channel_mult))]


@dataclass(frozen=True)
class Context:
    """What the attention blocks, in the order that they run in, see beside the picture: it depends on neither x nor the
    step, so that it is computed once a picture and serves every sampling step.

    Attributes:
        keys, values: (B, N, L, K) of each block.
        mask: (B, L), True = visible.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor


def group_norm(channels: int, min_group_width: int = 4) -> nn.GroupNorm:
    """GroupNorm over at most 32 groups of equal width, each at least `min_group_width` channels wide."""
    most = max(1, min(NORM_GROUPS, channels // min_group_width))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


def zeroed(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The module with weights and bias at zero, so that its branch starts as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class Pointwise(nn.Conv2d):
    """A convolution of one pixel as the matrix product that it is: (B, C, H, W) -> (B, C', H, W).

    On a CPU, torch's convolutions of one pixel run at a fraction of the speed of its products.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return out


class ResBlock(nn.Module):
    """x (B, C, H, W), emb (B, M) -> (B, C', H', W'); H' = H, H/2 ("down") or 2H ("up"), resampled before the first convolution."""

    def __init__(self, channels: int, out_channels: int, emb_width: int, config: UNetConfig, *, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.scales = config.modulation == "scale-shift"
        self.norm1 = group_norm(channels, config.min_group_width)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_width, 2 * out_channels if self.scales else out_channels)
        self.norm2 = group_norm(out_channels, config.min_group_width)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = Pointwise(channels, out_channels) if channels != out_channels else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self._resampled(F.silu(self.norm1(x))))
        emb = self.emb(F.silu(emb))[:, :, None, None]
        if self.scales:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + emb)
        h = self.conv2(self.dropout(F.silu(h)))
        out: Tensor = self.skip(self._resampled(x)) + h
        return out


class AttentionBlock(nn.Module):
    """Every pixel looks at the context tokens and at all pixels, in one softmax (GLIDE, section 4.1).

    With `positions_at` H, a learned map of positions (C, H, H) is added to x first.
    """

    def __init__(self, channels: int, context_width: int, config: UNetConfig, *, positions_at: int | None = None) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.positions = None if positions_at is None else nn.Parameter(torch.randn(channels, positions_at, positions_at) * POSITION_STD)
        self.norm = group_norm(channels, config.min_group_width)
        self.qkv = Pointwise(channels, 3 * channels)
        self.context_kv = nn.Linear(context_width, 2 * channels) if context_width else None
        self.out = zeroed(Pointwise(channels, channels))

    def read_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Context tokens (B, L, D) -> their keys and values (B, N, L, K)."""
        assert self.context_kv is not None
        k, v = self._heads(self.context_kv(context), 2)
        return k, v

    def forward(self, x: Tensor, context: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """x (B, C, H, W); keys and values (B, N, L, K) of the context, and its mask (B, L) -> (B, C, H, W)."""
        B, C, H, W = x.shape
        if self.positions is not None:
            x = x + self.positions
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, HW, 3C)
        q, k, v = self._heads(qkv, 3)
        mask = None
        if context is not None:
            k, v = torch.cat([context[0], k], dim=2), torch.cat([context[1], v], dim=2)  # (B, N, L + HW, K)
            mask = F.pad(context[2], (0, H * W), value=True)[:, None, None, :]  # (B, 1, 1, L + HW)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        h = h.transpose(1, 2).reshape(B, H * W, C).transpose(1, 2).reshape(B, C, H, W)
        out: Tensor = x + self.out(h)
        return out

    def _heads(self, tokens: Tensor, parts: int) -> tuple[Tensor, ...]:
        B, L, _ = tokens.shape
        split = tokens.reshape(B, L, parts, -1, self.head_width)  # (B, L, parts, N, K)
        return tuple(split.permute(2, 0, 3, 1, 4))  # parts of (B, N, L, K)


class Stage(nn.ModuleList):
    """Blocks that run one after the other, and whose activations are kept or computed again together."""

    def forward(self, h: Tensor, emb: Tensor, *contexts: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """`contexts`: one for each attention block of the stage."""
        waiting = iter(contexts)
        for block in self:
            h = block(h, emb) if isinstance(block, ResBlock) else block(h, next(waiting))
        return h

    def num_attention_blocks(self) -> int:
        """How many contexts `forward` takes."""
        return sum(isinstance(block, AttentionBlock) for block in self)


class UNet(nn.Module):
    """x (B, in, H, H), emb (B, M) and, unless context_width is 0, the context -> (B, out, H, H).

    `checkpoint_activations` may be set at any time: activations inside each stage are then computed again in the backward
    pass instead of being kept, for less memory and the same numbers.
    """

    def __init__(self, config: UNetConfig, *, in_channels: int, out_channels: int, emb_width: int, context_width: int) -> None:
        super().__init__()
        if context_width and not (config.attend_middle or config.attention_sizes):
            raise ValueError(f"context has no effect without attention; expected context_width 0, got {context_width}")
        self.checkpoint_activations = False
        self.patch_size = config.patch_size
        in_channels, out_channels = (channels * config.patch_size**2 for channels in (in_channels, out_channels))
        widths = [config.channels * mult for mult in config.channel_mult]

        def residual(channels: int, out: int, resample: str = "") -> ResBlock:
            return ResBlock(channels, out, emb_width, config, resample=resample)

        def attention(channels: int, side: int, *, wanted: bool) -> list[nn.Module]:
            return [AttentionBlock(channels, context_width, config, positions_at=side if config.positions else None)] if wanted else []

        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        channels, side, skips = widths[0], config.sides[0], [widths[0]]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(config.depth):
                self.down.append(Stage([residual(channels, width), *attention(width, side, wanted=side in config.attention_sizes)]))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(Stage([residual(channels, channels, "down")]))
                skips.append(channels)
                side //= 2
        middle = [residual(channels, channels), *attention(channels, side, wanted=config.attend_middle)]
        self.middle = nn.ModuleList([Stage(middle), Stage([residual(channels, channels)])])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for block in range(config.depth + 1):
                entry = Stage([residual(channels + skips.pop(), width), *attention(width, side, wanted=side in config.attention_sizes)])
                channels = width
                if level and block == config.depth:
                    entry.append(residual(channels, channels, "up"))
                    side *= 2
                self.up.append(entry)
        self.out_norm = group_norm(channels, config.min_group_width)
        self.out_conv = zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))
        self.reads_context = context_width > 0

    def read_context(self, context: Tensor, mask: Tensor) -> Context:
        """Context tokens (B, L, D) and which are visible (B, L) -> what `forward` takes, at any step and as often as one likes."""
        blocks = [block for block in self.modules() if isinstance(block, AttentionBlock)]
        keys, values = zip(*(block.read_context(context) for block in blocks), strict=True) if blocks else ((), ())
        return Context(keys, values, mask)

    def forward(self, x: Tensor, emb: Tensor, context: Context | None = None) -> Tensor:
        if self.reads_context != (context is not None):
            raise ValueError(f"this U-Net was built {'with' if self.reads_context else 'without'} context; got {'none' if context is None else 'some'}")
        given = self._contexts(context)

        def run(stage: nn.Module, h: Tensor) -> Tensor:
            assert isinstance(stage, Stage)
            contexts = [next(given) for _ in range(stage.num_attention_blocks())]
            if self.checkpoint_activations and torch.is_grad_enabled():
                out: Tensor = checkpoint(stage, h, emb, *contexts, use_reentrant=False)
                return out
            return stage(h, emb, *contexts)

        h = self.stem(F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x)
        skips = [h]
        for stage in self.down:
            h = run(stage, h)
            skips.append(h)
        for stage in self.middle:
            h = run(stage, h)
        for stage in self.up:
            h = run(stage, torch.cat([h, skips.pop()], dim=1))
        out: Tensor = self.out_conv(F.silu(self.out_norm(h)))
        return F.pixel_shuffle(out, self.patch_size) if self.patch_size > 1 else out

    def _contexts(self, context: Context | None) -> Iterator[tuple[Tensor, Tensor, Tensor] | None]:
        """Keys, values and mask for each attention block in turn."""
        if context is None:
            while True:
                yield None
        for k, v in zip(context.keys, context.values, strict=True):
            yield k, v, context.mask
