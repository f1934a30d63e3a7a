"""Tiles: the U-Net says of a picture in tiles what it says of the whole, to the rounding of the number format."""

import pytest
import torch

from tests.nn.test_unet import randomised
from unclip.nn.tiled import run_tiled
from unclip.nn.unet import UNet, UNetConfig


def make(**changes: object) -> UNet:
    settings = {"image_size": 32, "channels": 16, "channel_mult": (1, 2, 2), "depth": 1, "attention_sizes": (), "attend_middle": False} | changes
    unet = randomised(UNet(UNetConfig(**settings), in_channels=6, out_channels=3, emb_width=8, context_width=0))  # type: ignore[arg-type]
    assert isinstance(unet, UNet)
    return unet


def inputs(height: int = 40, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 6, height, width, generator=generator), torch.randn(2, 8, generator=generator)


@pytest.mark.parametrize("tile", [2, 7, 16, 100])
@pytest.mark.parametrize("changes", [{}, {"modulation": "add"}, {"patch_size": 2, "channels": 24, "min_group_width": 1}], ids=str)
def test_tiled_is_whole(changes: dict[str, object], tile: int) -> None:
    """In float64, where nothing but rounding could hide: pictures that are not square, tiles that do not divide them."""
    unet = make(**changes).double()
    x, emb = (value.double() for value in inputs())
    with torch.no_grad():
        whole = unet(x, emb)
        assert whole.std() > 0.02
        torch.testing.assert_close(run_tiled(unet, x, emb, tile), whole, atol=1e-12, rtol=1e-12)


def test_tiled_is_whole_in_float32_and_keeps_the_layout() -> None:
    unet = make().to(memory_format=torch.channels_last)
    x, emb = inputs()
    with torch.no_grad():
        made = run_tiled(unet, x.to(memory_format=torch.channels_last), emb, 16)
        torch.testing.assert_close(made, unet(x, emb), atol=1e-5, rtol=1e-5)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_cutting_the_picture_itself_would_not_be_exact() -> None:
    """What this file exists for: a tile by itself has other statistics, however far from its rim one looks."""
    unet = make()
    x, emb = inputs(160, 160)
    x[..., :80] *= 4
    with torch.no_grad():
        middle = unet(x[..., 96:160], emb)[..., 28:36]
        assert (middle - unet(x, emb)[..., 124:132]).abs().max() > 1e-2


def test_attention_can_not_be_cut() -> None:
    with pytest.raises(ValueError, match="AttentionBlock too"):
        run_tiled(make(attend_middle=True, head_width=16), *inputs(), 8)
    with pytest.raises(ValueError, match="at least 1"):
        run_tiled(make(), *inputs(), 0)
