"""The U-Net: its shapes, its parameter counts against an independent count, and what each input may change."""

import pytest
import torch
from torch import nn

from unclip.nn.embeddings import StepEmbedding
from unclip.nn.unet import AttentionBlock, ResBlock, UNet, UNetConfig, group_norm


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


@pytest.mark.parametrize("patch_size", [2, 4])
def test_patches_are_channels_of_a_smaller_picture(patch_size: int) -> None:
    """The same weights, given the rearranged picture, say the rearranged output."""
    patched = randomised(UNet(small(image_size=8 * patch_size, patch_size=patch_size), in_channels=3, out_channels=6, emb_width=8, context_width=4))
    plain = UNet(small(image_size=8), in_channels=3 * patch_size**2, out_channels=6 * patch_size**2, emb_width=8, context_width=4).eval()
    plain.load_state_dict(patched.state_dict())
    generator = torch.Generator().manual_seed(1)
    side = 8 * patch_size
    x, emb, context = torch.randn(2, 3, side, side, generator=generator), torch.randn(2, 8, generator=generator), torch.randn(2, 5, 4, generator=generator)
    read = plain.read_context(context, torch.ones(2, 5, dtype=torch.bool))
    # by hand: channel c of the pixel (r, s) of a patch becomes channel (c * patch + r) * patch + s
    rows = x.reshape(2, 3, 8, patch_size, 8, patch_size).permute(0, 1, 3, 5, 2, 4).reshape(2, 3 * patch_size**2, 8, 8)
    out = plain(rows, emb, read).reshape(2, 6, patch_size, patch_size, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(2, 6, side, side)
    torch.testing.assert_close(patched(x, emb, read), out)


def test_computing_activations_again_changes_no_gradient() -> None:
    runs = []
    for again in (False, True):
        unet = randomised(UNet(small(dropout=0.3), in_channels=3, out_channels=3, emb_width=8, context_width=4)).train()
        unet.checkpoint_activations = again
        generator = torch.Generator().manual_seed(1)
        x, emb, context = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 8, generator=generator), torch.randn(2, 5, 4, generator=generator)
        torch.manual_seed(5)  # dropout draws from the global generator
        unet(x, emb, unet.read_context(context, torch.ones(2, 5, dtype=torch.bool))).square().sum().backward()
        runs.append([parameter.grad for parameter in unet.parameters()])
    for kept, computed in zip(*runs, strict=True):
        assert torch.equal(kept, computed)


def test_activations_that_are_computed_again_are_not_kept() -> None:
    """Bytes that autograd keeps for the backward pass."""
    kept = {}
    for again in (False, True):
        unet = UNet(small(), in_channels=3, out_channels=3, emb_width=8, context_width=0).train()
        unet.checkpoint_activations = again
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, sizes=sizes: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor):
            unet(torch.randn(4, 3, 16, 16), torch.randn(4, 8))
        kept[again] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_modulation_by_addition_stands_before_the_second_norm() -> None:
    block = randomised(ResBlock(16, 16, 8, small(modulation="add")))
    assert isinstance(block, ResBlock)
    x, emb = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1)), torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    h = block.conv1(torch.nn.functional.silu(block.norm1(x))) + block.emb(torch.nn.functional.silu(emb))[:, :, None, None]
    torch.testing.assert_close(block(x, emb), x + block.conv2(torch.nn.functional.silu(block.norm2(h))))


def test_context_must_fit_what_was_built() -> None:
    x, emb = torch.zeros(1, 3, 16, 16), torch.zeros(1, 8)
    with pytest.raises(ValueError, match="built with context; got none"):
        UNet(small(), in_channels=3, out_channels=3, emb_width=8, context_width=4)(x, emb)
    with pytest.raises(ValueError, match="context has no effect without attention"):
        UNet(small(attention_sizes=(), attend_middle=False), in_channels=3, out_channels=3, emb_width=8, context_width=4)


def test_an_upsampler_without_attention_takes_any_size() -> None:
    unet = randomised(UNet(small(attention_sizes=(), attend_middle=False), in_channels=6, out_channels=3, emb_width=8, context_width=0))
    assert not [block for block in unet.modules() if isinstance(block, AttentionBlock)]
    assert unet(torch.zeros(1, 6, 32, 24), torch.zeros(1, 8)).shape == (1, 3, 32, 24)


def count(config: UNetConfig, in_channels: int, out_channels: int, emb_width: int, context_width: int) -> int:
    """Parameters of the ADM U-Net, added up by hand from its description."""

    def conv(a: int, b: int, kernel: int) -> int:
        return a * b * kernel * kernel + b

    def linear(a: int, b: int) -> int:
        return a * b + b

    def residual(a: int, b: int) -> int:
        modulated = linear(emb_width, 2 * b if config.modulation == "scale-shift" else b)
        return 2 * a + conv(a, b, 3) + modulated + 2 * b + conv(b, b, 3) + (conv(a, b, 1) if a != b else 0)

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
    total += 2 * residual(channels, channels) + (attention(channels) if config.attend_middle else 0)
    for level in reversed(range(len(widths))):
        for block in range(config.depth + 1):
            total += residual(channels + skips.pop(), widths[level]) + (attention(widths[level]) if side in config.attention_sizes else 0)
            channels = widths[level]
            if level and block == config.depth:
                total += residual(channels, channels)
                side *= 2
    return total + 2 * channels + conv(channels, out_channels, 3)


def published(channels: int, depth: int, channel_mult: tuple[int, ...] = (1, 2, 3, 4), **changes: object) -> UNetConfig:
    return UNetConfig(image_size=64, channels=channels, channel_mult=channel_mult, depth=depth, **changes)  # type: ignore[arg-type]


NO_ATTENTION: dict[str, object] = {"attention_sizes": (), "attend_middle": False}


@pytest.mark.parametrize(
    ("config", "in_channels", "out_channels", "emb_width", "context_width"),
    [
        (small(), 3, 3, 8, 4),
        (small(depth=2, attention_sizes=(16, 4)), 3, 6, 32, 0),
        (small(modulation="add", **NO_ATTENTION), 6, 3, 8, 0),
    ],
)
def test_parameters_are_as_many_as_the_description_says(config: UNetConfig, in_channels: int, out_channels: int, emb_width: int, context_width: int) -> None:
    assert num_parameters(config, in_channels, out_channels, emb_width, context_width) == count(config, in_channels, out_channels, emb_width, context_width)


@pytest.mark.parametrize(
    ("config", "in_channels", "out_channels", "millions"),
    [
        (published(192, 3), 3, 6, 295.0),  # ADM's 64-pixel model without classes (arXiv 2105.05233)
        (published(320, 3, **NO_ATTENTION), 6, 6, 730.0),  # the paper's upsamplers, table 3: "700M" and "300M"
        (published(192, 2, (1, 1, 2, 2, 4, 4), **NO_ATTENTION), 6, 6, 282.0),
        (published(320, 3, modulation="add", **NO_ATTENTION), 6, 3, 691.579523),  # Karlo's
    ],
)
def test_published_sizes(config: UNetConfig, in_channels: int, out_channels: int, millions: float) -> None:
    """U-Net and the network behind the step embedding, which starts from as many sinusoids as there are channels."""
    step = StepEmbedding(config.channels, 4 * config.channels)
    found = num_parameters(config, in_channels, out_channels, 4 * config.channels, 0) + sum(parameter.numel() for parameter in step.parameters())
    assert found / 1e6 == pytest.approx(millions, abs=1e-9 if millions % 1 else 1.0)


def num_parameters(config: UNetConfig, in_channels: int, out_channels: int, emb_width: int, context_width: int) -> int:
    with torch.device("meta"):
        unet = UNet(config, in_channels=in_channels, out_channels=out_channels, emb_width=emb_width, context_width=context_width)
    return sum(parameter.numel() for parameter in unet.parameters())


@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (48, 12), (80, 20), (64, 16), (128, 32), (320, 32), (1280, 32)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_there_are_exactly_32_groups_where_narrow_ones_are_allowed() -> None:
    assert [group_norm(channels, 1).num_groups for channels in (32, 64, 96, 1280)] == [32] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 18}, "multiple of 4"),
        ({"image_size": 20, "patch_size": 2}, "multiple of 8 for 3 levels and patches of 2"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"attention_sizes": (5,)}, "among"),
        ({"attention_sizes": (16,), "patch_size": 2}, r"among \[8, 4, 2\]"),
        ({"head_width": 7}, "must divide"),
        ({"positions": True, "attention_sizes": (), "attend_middle": False}, "positions has no effect without attention"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
