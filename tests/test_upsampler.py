"""The upsampler: sizes, the published parameter counts, what it may look at, and sampling in tiles and batches."""

import dataclasses
from pathlib import Path

import pytest
import torch

from unclip import checkpoint
from unclip.config import load_config
from unclip.nn.unet import UNetConfig
from unclip.upsampler import Upsampler, UpsamplerConfig, UpsamplerSampling, enlarged, load_upsampler, upsample

UNET = UNetConfig(image_size=32, channels=16, channel_mult=(1, 2), depth=1, attention_sizes=(), attend_middle=False)
CONFIG = UpsamplerConfig(low_size=8, unet=UNET)


def make_upsampler(config: UpsamplerConfig = CONFIG) -> Upsampler:
    upsampler = Upsampler(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in upsampler.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return upsampler


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("preset", "place", "count"),
    [("paper", "first", 729_702_083), ("paper", "second", 282_059_139), ("karlo", "first", 691_579_523)],
)
def test_presets_have_the_published_sizes(preset: str, place: str, count: int) -> None:
    """The paper's 700 M and 300 M, which its table makes 730 M and 282 M; Karlo's to the parameter."""
    section = getattr(load_config(preset=preset).upsampler, place)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Upsampler(section.network).parameters()) == count


def test_it_enlarges_any_picture_by_its_scale() -> None:
    made = upsample(make_upsampler(), draw(2, 3, 6, 10), steps=(3,), noise=lambda: draw(2, 3, 24, 40))
    assert made.shape == (2, 3, 24, 40)
    assert made.abs().max() <= 1.0


def test_the_small_picture_is_seen_and_rows_do_not_mix() -> None:
    upsampler, x_t, t, low_res = make_upsampler(), draw(2, 3, 32, 32), torch.tensor([3, 700]), draw(2, 3, 8, 8, seed=2)
    out = upsampler(x_t, t, low_res)
    other = upsampler(x_t, t, torch.cat([low_res[:1], low_res[1:] + 1]))
    torch.testing.assert_close(other[0], out[0])
    assert not torch.allclose(other[1], out[1], atol=1e-2)


def test_a_flat_picture_stays_flat_when_it_is_enlarged() -> None:
    flat = torch.full((1, 3, 4, 4), 0.3)
    torch.testing.assert_close(enlarged(flat, (16, 16), "bilinear"), torch.full((1, 3, 16, 16), 0.3))
    low_res = draw(1, 3, 8, 8)
    large = enlarged(low_res, (32, 32), "bilinear")
    assert large.min() >= low_res.min()
    assert large.max() <= low_res.max()


def test_a_pixel_of_the_small_picture_stands_in_the_middle_of_its_square() -> None:
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    expected = (torch.arange(32) + 0.5) / 4 - 0.5
    torch.testing.assert_close(enlarged(ramp, (32, 32), "bilinear")[0, 0, 5, 4:-4], expected[4:-4])


@pytest.mark.parametrize("tile", [5, 16])
def test_in_tiles_it_makes_the_same_picture_as_whole(tile: int) -> None:
    upsampler, low_res = make_upsampler(), draw(2, 3, 16, 12)
    whole, tiled = (upsample(upsampler, low_res, steps=(4,), noise=lambda: draw(2, 3, 64, 48), tile=size) for size in (0, tile))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


def test_pictures_and_noise_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8, got 12 and 12"):
        upsample(
            make_upsampler(UpsamplerConfig(low_size=8, unet=dataclasses.replace(UNET, channel_mult=(1, 1, 1, 1)))), draw(1, 3, 3, 3), steps=(2,), noise=draw
        )
    with pytest.raises(ValueError, match=r"expected noise of the shape \(1, 3, 32, 32\)"):
        upsample(make_upsampler(), draw(1, 3, 8, 8), steps=(2,), noise=lambda: draw(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("low_size", "unet", "message"),
    [
        (8, dataclasses.replace(UNET, attend_middle=True, head_width=16), "no attention"),
        (8, dataclasses.replace(UNET, attention_sizes=(16,), head_width=16), "no attention"),
        (12, UNET, "multiple of low_size 12"),
        (32, UNET, "and larger"),
    ],
)
def test_impossible_networks_are_refused(low_size: int, unet: UNetConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UpsamplerConfig(low_size=low_size, unet=unet)


@pytest.mark.parametrize(
    ("setting", "message"), [({"first_steps": ()}, "at least one number"), ({"second_steps": (3, 0)}, "at least 1"), ({"tile": -1}, "negative")]
)
def test_impossible_samplings_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UpsamplerSampling(**setting)  # type: ignore[arg-type]


def test_a_checkpoint_gives_back_the_network(tmp_path: Path) -> None:
    upsampler, state = make_upsampler(), make_upsampler().state_dict()
    content = {"kind": "upsampler", "network": checkpoint.as_json(CONFIG)}
    checkpoint.write_checkpoint(tmp_path / "step-00000001", config=content, model=state, ema=state, optimizer={}, state={"step": 1})
    loaded, x_t, low_res = load_upsampler(tmp_path / "step-00000001"), draw(1, 3, 32, 32), draw(1, 3, 8, 8)
    torch.testing.assert_close(loaded(x_t, torch.tensor([5]), low_res), upsampler(x_t, torch.tensor([5]), low_res), atol=1e-5, rtol=1e-5)
