"""The U-Net as diffusers' UNet2DConditionModel (with attention) or UNet2DModel (without), and as Karlo's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from unclip.exchange.component import Reader
from unclip.exchange.links import Link, interleaved, joined, modules
from unclip.files import UnclipError
from unclip.nn.unet import UNet, UNetConfig

NORM_GROUPS, NORM_EPS = 32, 1e-5
CONDITION_CLASS, PLAIN_CLASS = "UNet2DConditionModel", "UNet2DModel"
DOWN, UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
ATTENDING_DOWN, ATTENDING_UP, ATTENDING_MIDDLE = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D", "UNetMidBlock2DSimpleCrossAttn"
MODULATIONS: Mapping[str, Literal["scale-shift", "add"]] = {"scale_shift": "scale-shift", "default": "add"}
ONLY: Mapping[str, Any] = {  # what ours has at one value only, which is also diffusers' default
    "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1, "act_fn": "silu", "norm_eps": NORM_EPS,
    "norm_num_groups": NORM_GROUPS, "time_embedding_type": "positional", "num_class_embeds": None,
}  # fmt: skip
ONLY_CONDITION: Mapping[str, Any] = {
    "only_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None, "addition_embed_type": None, "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0, "time_embedding_act_fn": None, "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3,
    "conv_out_kernel": 3, "class_embeddings_concat": False, "mid_block_only_cross_attention": None, "cross_attention_norm": None,
}  # fmt: skip


@dataclass(frozen=True)
class UNetShape:
    """A U-Net and what it is built with beside its config; `context_width` is 0 without attention."""

    config: UNetConfig
    in_channels: int
    out_channels: int
    step_width: int
    context_width: int


def unet_config(shape: UNetShape, *, name: str) -> dict[str, Any]:
    """The config of diffusers' class for a U-Net.

    Args:
        name: of our section, for messages.

    Raises:
        UnclipError: it has what theirs has not; the setting is named.
    """
    config, sides = shape.config, shape.config.sides
    for setting, value in (("positions", False), ("patch_size", 1)):
        if getattr(config, setting) != value:
            raise UnclipError(
                f"{name}.{setting} is {getattr(config, setting)}, and diffusers' U-Net has no counterpart for that; one with {setting} {value} can be exported"
            )
    if config.attend_middle != (shape.context_width > 0) or (config.attention_sizes and not shape.context_width):
        raise UnclipError(f"{name}.attend_middle is {config.attend_middle}, but diffusers' U-Net attends in the middle exactly where it has a context")
    with torch.device("meta"):
        network = UNet(config, in_channels=shape.in_channels, out_channels=shape.out_channels, emb_width=shape.step_width, context_width=shape.context_width)
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    if groups != {NORM_GROUPS}:
        raise UnclipError(
            f"{name}.channels {config.channels} with min_group_width {config.min_group_width} makes norms of {sorted(groups)} groups, and diffusers' U-Net is"
            f" exchanged with {NORM_GROUPS} everywhere; channels that are a multiple of {NORM_GROUPS * config.min_group_width} can be exported"
        )
    attends = [side in config.attention_sizes for side in sides]
    theirs: dict[str, Any] = {
        "sample_size": config.image_size, "in_channels": shape.in_channels, "out_channels": shape.out_channels, "layers_per_block": config.depth,
        "block_out_channels": [config.channels * mult for mult in config.channel_mult], "dropout": config.dropout, "norm_num_groups": NORM_GROUPS,
        "norm_eps": NORM_EPS, "time_embedding_dim": shape.step_width, "down_block_types": [ATTENDING_DOWN if wanted else DOWN for wanted in attends],
        "up_block_types": [ATTENDING_UP if wanted else UP for wanted in reversed(attends)],
        "resnet_time_scale_shift": next(name for name, ours in MODULATIONS.items() if ours == config.modulation),
    }  # fmt: skip
    if not shape.context_width:
        return theirs | {"add_attention": False}
    return theirs | {
        "mid_block_type": ATTENDING_MIDDLE, "attention_head_dim": config.head_width, "cross_attention_dim": shape.context_width, "class_embed_type": "identity",
    }  # fmt: skip


def unet_from_diffusers(reader: Reader, *, attends: bool) -> UNetShape:
    """The U-Net that a component's config.json describes.

    Raises:
        UnclipError: ours has no counterpart for it, or the weights can't be as large as that.
    """
    reader.require(ONLY, defaults=ONLY)
    widths = reader.sizes("block_out_channels")
    channels, image_size = widths[0], reader.side("sample_size")
    if any(width % channels for width in widths):
        raise UnclipError(f"block_out_channels must be multiples of the first one, got {widths}; unclip's U-Net has a whole multiple for each level")
    sides = [image_size // 2**level for level in range(len(widths))]
    downs, ups = reader.texts("down_block_types"), reader.texts("up_block_types")
    kinds = {DOWN: False, ATTENDING_DOWN: True} if attends else {DOWN: False}
    mirrored = [{DOWN: UP, ATTENDING_DOWN: ATTENDING_UP}.get(kind) for kind in reversed(downs)]
    if len(downs) != len(widths) or any(kind not in kinds for kind in downs) or list(ups) != mirrored:
        raise UnclipError(f"expected {len(widths)} down_block_types of {', '.join(kinds)}, and up_block_types that mirror them, got {downs} and {ups}")
    modulation = MODULATIONS.get(reader.text("resnet_time_scale_shift", "default"))
    if modulation is None:
        raise UnclipError(f"resnet_time_scale_shift must be one of {', '.join(MODULATIONS)}, got {reader.text('resnet_time_scale_shift')!r}")
    if attends:
        reader.require(ONLY_CONDITION, defaults=ONLY_CONDITION)
        reader.require({"mid_block_type": ATTENDING_MIDDLE, "class_embed_type": "identity"}, defaults={})
    else:
        reader.require({"add_attention": False, "class_embed_type": None, "mid_block_type": "UNetMidBlock2D"}, defaults={"mid_block_type": "UNetMidBlock2D"})
    try:
        config = UNetConfig(
            image_size=image_size, channels=channels, channel_mult=tuple(width // channels for width in widths), depth=reader.count("layers_per_block", 2),
            attention_sizes=tuple(side for side, kind in zip(sides, downs, strict=True) if kinds[kind]), attend_middle=attends, modulation=modulation,
            head_width=reader.size("attention_head_dim") if attends else UNetConfig.head_width, min_group_width=1, dropout=reader.share("dropout"),
        )  # fmt: skip
    except ValueError as error:
        raise UnclipError(f"a config.json describes what unclip's U-Net can't be: {error}") from None
    step_width = reader.size("time_embedding_dim") if reader.has("time_embedding_dim") else 4 * channels
    context_width = reader.size("cross_attention_dim") if attends else 0
    return UNetShape(config, reader.size("in_channels"), reader.size("out_channels"), step_width, context_width)


@dataclass(frozen=True)
class Block:
    """A block of ours and where it stands: "res" or "attention", its module's name, theirs in diffusers, theirs in Karlo."""

    kind: Literal["res", "attention"]
    ours: str
    diffusers: str
    karlo: str
    has_skip: bool = False


def blocks_of(config: UNetConfig) -> Iterator[Block]:
    """All residual and attention blocks."""
    sides, last = config.sides, len(config.channel_mult) - 1
    widths = [config.channels * mult for mult in config.channel_mult]
    entry, channels, skips = 0, widths[0], [widths[0]]
    for level, width in enumerate(widths):
        for block in range(config.depth):
            yield Block("res", f"down.{entry}.0", f"down_blocks.{level}.resnets.{block}", f"input_blocks.{entry + 1}.0", channels != width)
            if sides[level] in config.attention_sizes:
                yield Block("attention", f"down.{entry}.1", f"down_blocks.{level}.attentions.{block}", f"input_blocks.{entry + 1}.1")
            channels, entry = width, entry + 1
            skips.append(channels)
        if level < last:
            yield Block("res", f"down.{entry}.0", f"down_blocks.{level}.downsamplers.0", f"input_blocks.{entry + 1}.0")
            entry += 1
            skips.append(channels)
    yield Block("res", "middle.0.0", "mid_block.resnets.0", "middle_block.0")
    if config.attend_middle:
        yield Block("attention", "middle.0.1", "mid_block.attentions.0", "middle_block.1")
    yield Block("res", "middle.1.0", "mid_block.resnets.1", f"middle_block.{1 + config.attend_middle}")
    entry = 0
    for level in range(last, -1, -1):
        attends = sides[level] in config.attention_sizes
        for block in range(config.depth + 1):
            changes = channels + skips.pop() != widths[level]
            yield Block("res", f"up.{entry}.0", f"up_blocks.{last - level}.resnets.{block}", f"output_blocks.{entry}.0", changes)
            if attends:
                yield Block("attention", f"up.{entry}.1", f"up_blocks.{last - level}.attentions.{block}", f"output_blocks.{entry}.1")
            if level and block == config.depth:
                place = f"{entry}.{1 + attends}"
                yield Block("res", f"up.{place}", f"up_blocks.{last - level}.upsamplers.0", f"output_blocks.{place}")
            channels, entry = widths[level], entry + 1


def unet_links(config: UNetConfig, *, step: str, unet: str) -> list[Link]:
    """Ours and diffusers'; `step` and `unet` are our names of the step embedding's layers and of the U-Net."""
    links = modules(
        {f"{step}.0": "time_embedding.linear_1", f"{step}.2": "time_embedding.linear_2", f"{unet}.stem": "conv_in", f"{unet}.out_norm": "conv_norm_out",
         f"{unet}.out_conv": "conv_out"}
    )  # fmt: skip
    for block in blocks_of(config):
        ours, theirs = f"{unet}.{block.ours}", block.diffusers
        if block.kind == "res":
            parts = {"norm1": "norm1", "conv1": "conv1", "emb": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
            links += modules({f"{ours}.{own}": f"{theirs}.{their}" for own, their in (parts | ({"skip": "conv_shortcut"} if block.has_skip else {})).items()})
            continue
        links += modules({f"{ours}.norm": f"{theirs}.group_norm"})
        for kind, dims in (("weight", 2), ("bias", 0)):
            links.append(joined(f"{ours}.qkv.{kind}", [f"{theirs}.to_{part}.{kind}" for part in "qkv"], kernel_dims=dims))
            links.append(joined(f"{ours}.context_kv.{kind}", [f"{theirs}.add_{part}_proj.{kind}" for part in "kv"]))
            links.append(joined(f"{ours}.out.{kind}", [f"{theirs}.to_out.0.{kind}"], kernel_dims=dims))
    return links


def karlo_unet_links(config: UNetConfig, *, step: str, unet: str, prefix: str) -> list[Link]:
    """Ours and those of Karlo's checkpoint, whose names begin with `prefix`."""
    outer = {
        f"{step}.0": "time_embed.0",
        f"{step}.2": "time_embed.2",
        f"{unet}.stem": "input_blocks.0.0",
        f"{unet}.out_norm": "out.0",
        f"{unet}.out_conv": "out.2",
    }
    links = modules({ours: f"{prefix}.{theirs}" for ours, theirs in outer.items()})
    for block in blocks_of(config):
        ours, theirs = f"{unet}.{block.ours}", f"{prefix}.{block.karlo}"
        if block.kind == "res":
            parts = {"norm1": "in_layers.0", "conv1": "in_layers.2", "emb": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3"}
            links += modules({f"{ours}.{own}": f"{theirs}.{their}" for own, their in (parts | ({"skip": "skip_connection"} if block.has_skip else {})).items()})
            continue
        links += modules({f"{ours}.norm": f"{theirs}.norm"})
        for kind, is_kernel in (("weight", True), ("bias", False)):
            tails = {"our_tail": 2 * is_kernel, "their_tail": 1 * is_kernel}
            links.append(interleaved(f"{ours}.qkv.{kind}", f"{theirs}.qkv.{kind}", parts=3, head_width=config.head_width, **tails))
            links.append(
                interleaved(f"{ours}.context_kv.{kind}", f"{theirs}.encoder_kv.{kind}", parts=2, head_width=config.head_width, their_tail=tails["their_tail"])
            )
            links.append(interleaved(f"{ours}.out.{kind}", f"{theirs}.proj_out.{kind}", parts=1, head_width=config.head_width, **tails))
    return links
