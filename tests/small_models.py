"""A small CLIP and small models with random weights, for tests of what is done with models."""

import dataclasses
from pathlib import Path

import torch

from unclip.clip import Clip, TowerConfig, load_clip, make_clip, save_clip
from unclip.decoder import Decoder, DecoderConfig
from unclip.generate import Models
from unclip.nn.unet import UNetConfig
from unclip.prior.autoregressive import AutoregressivePrior, AutoregressivePriorConfig
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig
from unclip.prior.linear import LinearPrior
from unclip.prior.regression import RegressionPrior, RegressionPriorConfig
from unclip.upsampler import Upsampler, UpsamplerConfig

TOWER = TowerConfig(emb_width=16, image_size=16, patch_size=8, vision_width=32, vision_layers=1, text_width=32, text_layers=1, head_width=16, context_length=12)
SIDE = 8
UNET = UNetConfig(image_size=SIDE, channels=16, channel_mult=(1, 2), depth=1, attention_sizes=(4,), head_width=16)
PLAIN = DecoderConfig(unet=UNET, step_width=16, context_width=12)
ALL_OF_IT = dataclasses.replace(PLAIN, text_to_step=True, num_null_text=2, condition_noise=500, learned_variance=True)


def small_clip(folder: Path) -> Clip:
    """A CLIP of width 16."""
    torch.manual_seed(0)
    save_clip(folder, TOWER, make_clip(TOWER).state_dict(), origin="trained here")
    return load_clip(folder)


def small_models(clip: Clip, kind: str = "none", network: DecoderConfig = PLAIN, *, upsampled: bool = False, scale: float = 0.1) -> Models:
    """A decoder of 8 x 8 pixels, a prior of this kind, and perhaps an upsampler to 16 x 16; `scale` of the decoder's weights."""
    torch.manual_seed(1)
    decoder = Decoder(network, emb_width=16, text_width=32).eval()
    for parameter in decoder.parameters():
        parameter.data = torch.randn_like(parameter) * scale
    prior = {
        "diffusion": DiffusionPrior(DiffusionPriorConfig(width=16, depth=1, head_width=8, max_text_tokens=12), emb_width=16, text_width=32).eval(),
        "autoregressive": AutoregressivePrior(
            AutoregressivePriorConfig(width=16, depth=1, head_width=8, max_text_tokens=12), emb_width=16, text_width=32, num_components=9
        ).eval(),
        "regression": RegressionPrior(RegressionPriorConfig(width=16, depth=1, head_width=8, max_text_tokens=12), emb_width=16, text_width=32).eval(),
        "linear": LinearPrior(16),
        "none": None,
    }[kind]
    return Models(clip, prior, decoder, (small_upsampler(),) if upsampled else ())


def small_upsampler() -> Upsampler:
    """From 8 x 8 pixels to 16 x 16."""
    unet = UNetConfig(image_size=2 * SIDE, channels=8, channel_mult=(1, 1), depth=1, attention_sizes=(), attend_middle=False)
    upsampler = Upsampler(UpsamplerConfig(low_size=SIDE, unet=unet)).eval()
    for parameter in upsampler.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    return upsampler
