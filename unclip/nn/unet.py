"""The ADM/GLIDE U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233; GLIDE, arXiv 2112.10741) of decoder and upsampler.

Residual blocks resample inside; the step embedding scales and shifts their second norm; attention puts the context's
keys and values before the image's own, in one softmax. The network knows nothing of CLIP: it takes a vector and tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 32  # Dhariwal & Nichol 2021; fewer where a group would have less than 4 channels
MIN_GROUP_WIDTH = 4
POSITION_STD = 0.1


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of a U-Net.

    Attributes:
        image_size: side of the pictures in pixels; attention stands at the sides listed in `attention_sizes`.
        channels, channel_mult: width of the first level, and each level's multiple of it; each level halves the side.
        depth: residual blocks a level.
        head_width: channels of an attention head.
        positions: whether attention adds a learned map of where each pixel stands. ADM has none, and knows its place only
            from the padding at the rim; at high noise, where the layout is decided, that takes long to learn. Off where
            the network is trained on crops.
        dropout: rate inside the residual blocks.
    """

    __pydantic_config__ = {"extra": "forbid"}

    image_size: int = 64
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    depth: int = 2
    attention_sizes: tuple[int, ...] = (32, 16, 8)
    head_width: int = 64
    positions: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        smallest = 2 ** (len(self.channel_mult) - 1)
        if self.image_size % smallest:
            raise ValueError(f"image_size must be a multiple of {smallest} for {len(self.channel_mult)} levels, got {self.image_size}")
        sides = [self.image_size // 2**level for level in range(len(self.channel_mult))]
        if unknown := set(self.attention_sizes) - set(sides):
            raise ValueError(f"attention_sizes must be among {sides}, got {sorted(unknown)}")
        for side, mult in zip(sides, self.channel_mult, strict=True):
            if side in self.attention_sizes and self.channels * mult % self.head_width:
                raise ValueError(f"head_width {self.head_width} must divide the {self.channels * mult} channels at side {side}")
        if self.channels * self.channel_mult[-1] % self.head_width:
            raise ValueError(f"head_width {self.head_width} must divide the {self.channels * self.channel_mult[-1]} channels of the middle")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm over at most 32 groups of equal width, each at least 4 channels wide."""
    most = min(NORM_GROUPS, channels // MIN_GROUP_WIDTH)
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


def zeroed(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The module with weights and bias at zero, so that its branch starts as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResBlock(nn.Module):
    """x (B, C, H, W), emb (B, M) -> (B, C', H', W'); H' = H, H/2 ("down") or 2H ("up"), resampled before the first convolution."""

    def __init__(self, channels: int, out_channels: int, emb_width: int, *, dropout: float, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_width, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self._resampled(F.silu(self.norm1(x))))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(self.dropout(F.silu(h)))
        out: Tensor = self.skip(self._resampled(x)) + h
        return out


class AttentionBlock(nn.Module):
    """Every pixel looks at the context tokens and at all pixels, in one softmax (GLIDE, section 4.1).

    x (B, C, H, W), context (B, L, D), context_mask (B, L) True = visible -> (B, C, H, W). With `positions_at` H, a
    learned map of positions (C, H, H) is added to x first.
    """

    def __init__(self, channels: int, context_width: int, head_width: int, *, positions_at: int | None = None) -> None:
        super().__init__()
        self.head_width = head_width
        self.positions = None if positions_at is None else nn.Parameter(torch.randn(channels, positions_at, positions_at) * POSITION_STD)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.context_kv = nn.Linear(context_width, 2 * channels) if context_width else None
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None, context_mask: Tensor | None) -> Tensor:
        B, C, H, W = x.shape
        if self.positions is not None:
            x = x + self.positions
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, HW, 3C)
        q, k, v = self._heads(qkv, 3)
        mask = None
        if self.context_kv is not None:
            if context is None or context_mask is None:
                raise ValueError("this U-Net was built with context; expected context and context_mask, got None")
            context_k, context_v = self._heads(self.context_kv(context), 2)
            k, v = torch.cat([context_k, k], dim=2), torch.cat([context_v, v], dim=2)  # (B, N, L + HW, K)
            mask = F.pad(context_mask, (0, H * W), value=True)[:, None, None, :]  # (B, 1, 1, L + HW)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        h = h.transpose(1, 2).reshape(B, H * W, C).transpose(1, 2).reshape(B, C, H, W)
        out: Tensor = x + self.out(h)
        return out

    def _heads(self, tokens: Tensor, parts: int) -> tuple[Tensor, ...]:
        B, L, _ = tokens.shape
        split = tokens.reshape(B, L, parts, -1, self.head_width)  # (B, L, parts, N, K)
        return tuple(split.permute(2, 0, 3, 1, 4))  # parts of (B, N, L, K)


class UNet(nn.Module):
    """x (B, in, H, H), emb (B, M), context (B, L, D) with its mask (B, L) -> (B, out, H, H)."""

    def __init__(self, config: UNetConfig, *, in_channels: int, out_channels: int, emb_width: int, context_width: int) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]

        def residual(channels: int, out: int, resample: str = "") -> ResBlock:
            return ResBlock(channels, out, emb_width, dropout=config.dropout, resample=resample)

        def attend(channels: int, side: int) -> AttentionBlock:
            return AttentionBlock(channels, context_width, config.head_width, positions_at=side if config.positions else None)

        def attention(channels: int, side: int) -> nn.Module | None:
            return attend(channels, side) if side in config.attention_sizes else None

        def stage(block: ResBlock, attend: nn.Module | None = None) -> nn.ModuleList:
            return nn.ModuleList([block] if attend is None else [block, attend])

        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        channels, side, skips = widths[0], config.image_size, [widths[0]]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(config.depth):
                self.down.append(stage(residual(channels, width), attention(width, side)))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(stage(residual(channels, channels, "down")))
                skips.append(channels)
                side //= 2
        self.middle = nn.ModuleList([stage(residual(channels, channels), attend(channels, side)), stage(residual(channels, channels))])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for block in range(config.depth + 1):
                entry = stage(residual(channels + skips.pop(), width), attention(width, side))
                channels = width
                if level and block == config.depth:
                    entry.append(residual(channels, channels, "up"))
                    side *= 2
                self.up.append(entry)
        self.out_norm = group_norm(channels)
        self.out_conv = zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None) -> Tensor:
        def run(entry: nn.Module, h: Tensor) -> Tensor:
            for block in entry.children():
                h = block(h, emb) if isinstance(block, ResBlock) else block(h, context, context_mask)
            return h

        h = self.stem(x)
        skips = [h]
        for entry in self.down:
            h = run(entry, h)
            skips.append(h)
        for entry in self.middle:
            h = run(entry, h)
        for entry in self.up:
            h = run(entry, torch.cat([h, skips.pop()], dim=1))
        out: Tensor = self.out_conv(F.silu(self.out_norm(h)))
        return out
