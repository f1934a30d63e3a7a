"""The upsamplers as diffusers' UNet2DModel, and the first one as Karlo's.

diffusers' pipeline, which is Karlo's, has two networks of one size (super_res_first for all steps but the last, and
super_res_last, tuned otherwise, for that one). An upsampler of ours is one network for all steps: it stands for the first.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unclip.exchange.component import Component, Reader, component_shapes, read_component_config
from unclip.exchange.links import Link
from unclip.exchange.scheduler import Noising
from unclip.exchange.unet import PLAIN_CLASS, UNetShape, karlo_unet_links, unet_config, unet_from_diffusers, unet_links
from unclip.files import UnclipError
from unclip.training.upsampler import Place
from unclip.upsampler import PIXEL_CLAMP, STEP_WIDTH, Upsampler, UpsamplerConfig

NAMES: Mapping[Place, str] = {"first": "super_res_first", "second": "super_res_second"}
SCHEDULERS: Mapping[Place, str] = {"first": "super_res_scheduler", "second": "super_res_second_scheduler"}
Enlarge = Literal["bilinear", "bicubic"]
LAST_STEP, KARLO_PREFIX, KARLO_LAST_STEP = "super_res_last", "model_first_steps", "model_last_step"


def on_meta(config: UpsamplerConfig) -> dict[str, Tensor]:
    """An upsampler's tensors, of which nothing is stored."""
    with torch.device("meta"):
        return Upsampler(config).state_dict()


def network_of(config: UpsamplerConfig) -> dict[str, Any]:
    """What our checkpoint's config says of it."""
    return dataclasses.asdict(config)


def upsampler_component(config: UpsamplerConfig, place: Place) -> Component:
    """An upsampler as a component.

    Raises:
        UnclipError: it has what UNet2DModel has not; the setting is named.
    """
    setting = f"upsampler.{place}.network"
    if config.residual_std:
        raise UnclipError(
            f"{setting}.residual_std is {config.residual_std}, and diffusers' unCLIP denoises the picture itself;"
            " an upsampler with residual_std 0 can be exported"
        )
    shape = UNetShape(config.unet, 6, 3, STEP_WIDTH * config.unet.channels, 0)
    return Component(NAMES[place], PLAIN_CLASS, unet_config(shape, name=f"{setting}.unet"), unet_links(config.unet, step="step.layers", unet="unet"))


def noising_of(config: UpsamplerConfig) -> Noising:
    """What the scheduler's config says of an upsampler."""
    return Noising(prediction=config.prediction, schedule=config.schedule, num_train_steps=config.num_train_steps, clamp=PIXEL_CLAMP)


def upsampler_facts(config: UpsamplerConfig) -> dict[str, Any]:
    """What UNet2DModel's config has no place for."""
    return {"low_size": config.low_size, "enlarge": config.enlarge}


def upsampler_from_diffusers(folder: Path, noising: Noising, facts: Mapping[str, Any], *, low_size: int) -> UpsamplerConfig:
    """The upsampler that a component folder describes; no weights are read.

    Args:
        facts: those of `upsampler_facts`, where the folder was exported by us.
        low_size: side of the pictures that it is given, unless the facts say another; they are enlarged as diffusers' pipeline does.

    Raises:
        UnclipError: ours has no counterpart for what config.json says, or the weights can't be as large as that.
    """
    unet = unet_from_diffusers(Reader(folder, read_component_config(folder, PLAIN_CLASS), component_shapes(folder)), attends=False)
    if (unet.in_channels, unet.out_channels) != (6, 3):
        raise UnclipError(f"expected an upsampler with 6 channels in and 3 out in {folder}, got {unet.in_channels} and {unet.out_channels}")
    if unet.step_width != STEP_WIDTH * unet.config.channels or noising.clamp != PIXEL_CLAMP:
        raise UnclipError(f"{folder} has time_embedding_dim {unet.step_width} and clips at {noising.clamp}; expected {STEP_WIDTH} times the channels, and 1.0")
    enlarge = facts.get("enlarge", "bicubic")
    if enlarge not in get_args(Enlarge):
        raise UnclipError(f"the facts beside {folder} say that pictures are enlarged by {enlarge!r}, expected one of {', '.join(get_args(Enlarge))}")
    try:
        return UpsamplerConfig(
            low_size=facts.get("low_size", low_size), unet=unet.config, enlarge=enlarge, prediction=noising.prediction,
            schedule=noising.schedule, num_train_steps=noising.num_train_steps,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise UnclipError(f"{folder} describes what unclip's upsampler can't be: {error}") from None


def karlo_upsampler_links(config: UpsamplerConfig) -> list[Link]:
    """Ours and those of the first network in the checkpoint of Karlo's upsampler."""
    return karlo_unet_links(config.unet, step="step.layers", unet="unet", prefix=KARLO_PREFIX)
