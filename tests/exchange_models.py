"""Small models with random weights everywhere, and a root that holds them, for the tests of the exchange."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from unclip import checkpoint
from unclip.clip import TowerConfig, make_clip, save_clip
from unclip.config import RunConfig, load_config
from unclip.data.manifest import Stage
from unclip.decoder import Decoder, DecoderConfig
from unclip.exchange.decoder import DecoderShape
from unclip.exchange.prior import PriorShape
from unclip.models import paths_of
from unclip.nn.unet import UNetConfig
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig
from unclip.training.prior import section_of
from unclip.training.upsampler import UpsamplerFamily
from unclip.upsampler import Upsampler, UpsamplerConfig

E, LENGTH = 24, 9
PRIOR = DiffusionPriorConfig(width=32, depth=2, head_width=16, max_text_tokens=LENGTH)
UNET = UNetConfig(image_size=16, channels=32, channel_mult=(1, 2), depth=1, attention_sizes=(8,), head_width=16, min_group_width=1)
DECODER = DecoderConfig(unet=UNET, step_width=48, sinusoids="channels", context_width=40)
LARGER = dataclasses.replace(UNET, image_size=32, attention_sizes=(), attend_middle=False, modulation="add", head_width=64)
UPSAMPLER = UpsamplerConfig(low_size=16, unet=LARGER, enlarge="bicubic")
TOWER = TowerConfig(emb_width=E, image_size=8, patch_size=4, vision_width=16, vision_layers=1, text_width=E, text_layers=1, head_width=8, context_length=LENGTH)


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Random weights also where a network starts with zeros and ones, statistics positive; outputs stay of order 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("std"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim >= 2:
                value.copy_(noise / value[0].numel() ** 0.5 if "position" not in name else 0.3 * noise)
            else:
                value.add_(0.1 * noise)


def make_prior(config: DiffusionPriorConfig = PRIOR) -> tuple[PriorShape, DiffusionPrior]:
    prior = DiffusionPrior(config, emb_width=E, text_width=E).eval()
    randomize(prior)
    return PriorShape(config, E, E), prior


def make_decoder(config: DecoderConfig = DECODER) -> tuple[DecoderShape, Decoder]:
    decoder = Decoder(config, emb_width=E, text_width=E).eval()
    randomize(decoder)
    return DecoderShape(config, E, E), decoder


def make_upsampler(config: UpsamplerConfig = UPSAMPLER) -> tuple[UpsamplerConfig, Upsampler]:
    upsampler = Upsampler(config).eval()
    randomize(upsampler)
    return config, upsampler


def write_root(root: Path, *, clip_seed: int = 0, prior: DiffusionPriorConfig = PRIOR, decoder: DecoderConfig = DECODER, train: bool = True) -> RunConfig:
    """A root with a CLIP and, where `train`, finished runs of a prior, a decoder and an upsampler."""
    config = load_config(preset="tiny", settings={"root": str(root), "upsampler.num_upsamplers": 0, "download.image_size": 64})
    paths = paths_of(config)
    torch.manual_seed(clip_seed)
    stage = Stage(paths.clip, "clip", config.clip, {})
    save_clip(paths.clip, TOWER, make_clip(TOWER).state_dict(), origin="made for a test")
    stage.finish(counts={"steps": 0}, digest="")
    config = dataclasses.replace(config, prior=dataclasses.replace(config.prior, network=prior), decoder=dataclasses.replace(config.decoder, network=decoder))
    if not train:
        return config
    made = {
        paths.prior / "diffusion": ("prior-diffusion", "prior-diffusion", section_of(config.prior, "diffusion"), *make_prior(prior)),
        paths.decoder: ("decoder", "decoder", config.decoder, *make_decoder(decoder)),
        paths.upsampler / "first": ("upsampler-first", "upsampler", config.upsampler.first, *make_upsampler()),
    }
    for run, (name, kind, section, shape, model) in made.items():
        opened = Stage(run, name, section, {})
        network = dataclasses.asdict(shape) if isinstance(shape, UpsamplerConfig) else shape.network()
        content, state = {"kind": kind, "network": network}, model.state_dict()
        folder = checkpoint.step_folder(run, 7)
        checkpoint.write_checkpoint(folder, config=content, model=state, ema=state, optimizer={"optimizers": []}, state={"step": 7})
        opened.finish(counts={"steps": 7}, digest=checkpoint.digest(folder))
    Stage(paths.upsampler, "upsampler", UpsamplerFamily(run=config.upsampler.run), {}).finish(counts={"steps": 7}, digest="")
    return config
