"""The U-Net: its shapes, its parameter counts against an independent count, and what each input may change."""

import pytest
import torch
from torch import nn

from unclip.nn.unet import AttentionBlock, UNet, UNetConfig, group_norm


def small(**changes: object) -> UNetConfig:
    settings = {"image_size": 16, "channels": 16, "channel_mult": (1, 2, 2), "depth": 1, "attention_sizes": (8,), "head_width": 16} | changes
    return UNetConfig(**settings)  # type: ignore[arg-type]


def randomised(module: nn.Module) -> nn.Module:
    """Zero-initialised branches would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return module.eval()


def test_output_has_the_pictures_shape_and_starts_at_zero() -> None:
    unet = UNet(small(), in_channels=3, out_channels=6, emb_width=8, context_width=4)
    context = unet.read_context(torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool))
    out = unet(torch.randn(2, 3, 16, 16), torch.randn(2, 8), context)
    assert out.shape == (2, 6, 16, 16)
    assert out.abs().max() == 0


def test_masked_context_changes_nothing() -> None:
    unet = randomised(UNet(small(), in_channels=3, out_channels=3, emb_width=8, context_width=4))
    generator = torch.Generator().manual_seed(1)
    x, emb, context = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 8, generator=generator), torch.randn(2, 5, 4, generator=generator)
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    other = context.clone()
    other[:, 3:] = 9.0

    def run(context: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return unet(x, emb, unet.read_context(context, mask))

    torch.testing.assert_close(run(context, mask), run(other, mask))
    torch.testing.assert_close(run(context, mask), run(context[:, :3], mask[:, :3]), atol=1e-5, rtol=1e-5)
    seen = context.clone()
    seen[:, 0] = 9.0
    assert not torch.allclose(run(context, mask), run(seen, mask))


def test_attention_is_one_softmax_over_context_and_picture() -> None:
    """Against the formula written out with a dense softmax."""
    block = randomised(AttentionBlock(8, 4, small(head_width=4)))
    assert isinstance(block, AttentionBlock)
    generator = torch.Generator().manual_seed(2)
    x, context = torch.randn(2, 8, 3, 3, generator=generator), torch.randn(2, 5, 4, generator=generator)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    qkv = block.qkv(block.norm(x)).flatten(2).transpose(1, 2)
    q, k, v = qkv.chunk(3, dim=-1)
    assert block.context_kv is not None
    context_k, context_v = block.context_kv(context).chunk(2, dim=-1)
    k, v = torch.cat([context_k, k], 1), torch.cat([context_v, v], 1)
    visible = torch.cat([mask, torch.ones(2, 9, dtype=torch.bool)], 1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
        heads.append(scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1) @ v[..., part])
    expected = x + block.out(torch.cat(heads, -1).transpose(1, 2).reshape(2, 8, 3, 3))
    torch.testing.assert_close(block(x, (*block.read_context(context), mask)), expected)


def count(config: UNetConfig, in_channels: int, out_channels: int, emb_width: int, context_width: int) -> int:
    """Parameters of the ADM U-Net, added up by hand from its description."""

    def conv(a: int, b: int, kernel: int) -> int:
        return a * b * kernel * kernel + b

    def linear(a: int, b: int) -> int:
        return a * b + b

    def residual(a: int, b: int) -> int:
        return 2 * a + conv(a, b, 3) + linear(emb_width, 2 * b) + 2 * b + conv(b, b, 3) + (conv(a, b, 1) if a != b else 0)

    def attention(a: int) -> int:
        return 2 * a + conv(a, 3 * a, 1) + (linear(context_width, 2 * a) if context_width else 0) + conv(a, a, 1)

    widths = [config.channels * mult for mult in config.channel_mult]
    total, channels, skips, side = conv(in_channels, widths[0], 3), widths[0], [widths[0]], config.image_size
    for level, width in enumerate(widths):
        for _ in range(config.depth):
            total += residual(channels, width) + (attention(width) if side in config.attention_sizes else 0)
            channels = width
            skips.append(width)
        if level < len(widths) - 1:
            total += residual(width, width)
            skips.append(width)
            side //= 2
    total += 2 * residual(channels, channels) + attention(channels)
    for level in reversed(range(len(widths))):
        for block in range(config.depth + 1):
            total += residual(channels + skips.pop(), widths[level]) + (attention(widths[level]) if side in config.attention_sizes else 0)
            channels = widths[level]
            if level and block == config.depth:
                total += residual(channels, channels)
                side *= 2
    return total + 2 * channels + conv(channels, out_channels, 3)


@pytest.mark.parametrize(
    ("config", "out_channels", "emb_width", "context_width"),
    [
        (small(), 3, 8, 4),
        (small(depth=2, attention_sizes=(16, 4)), 6, 32, 0),
        # ADM's 64-pixel model (arXiv 2105.05233): 295 M parameters without its step embedding network and classes
        (UNetConfig(image_size=64, channels=192, channel_mult=(1, 2, 3, 4), depth=3, attention_sizes=(32, 16, 8), head_width=64), 6, 768, 0),
    ],
)
def test_parameter_counts(config: UNetConfig, out_channels: int, emb_width: int, context_width: int) -> None:
    with torch.device("meta"):
        unet = UNet(config, in_channels=3, out_channels=out_channels, emb_width=emb_width, context_width=context_width)
    found = sum(parameter.numel() for parameter in unet.parameters())
    assert found == count(config, 3, out_channels, emb_width, context_width)
    if config.channels == 192:
        assert 290e6 < found < 298e6


@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (48, 12), (80, 20), (64, 16), (128, 32), (320, 32), (1280, 32)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"image_size": 18}, "multiple of 4"), ({"attention_sizes": (5,)}, "among"), ({"head_width": 7}, "must divide"), ({"dropout": 1.0}, "dropout")],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
