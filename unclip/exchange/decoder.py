"""The decoder as two components of diffusers, UnCLIPTextProjModel (text_proj) and UNet2DConditionModel (decoder), and as Karlo's.

They read the image embedding raw, ours whitens it: the whitening is folded into the layers that read it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unclip.decoder import PIXEL_CLAMP, Decoder, DecoderConfig
from unclip.exchange.component import Component, Reader, component_shapes, own_setting, read_component_config
from unclip.exchange.links import Link, State, both, folded, missing_there, modules, nothing_here, renamed, strided
from unclip.exchange.prior import NUM_EMPTY_TEXT
from unclip.exchange.scheduler import Noising
from unclip.exchange.unet import CONDITION_CLASS, UNetShape, karlo_unet_links, unet_config, unet_from_diffusers, unet_links
from unclip.files import UnclipError

TEXT_NAME, TEXT_CLASS, UNET_NAME = "text_proj", "UnCLIPTextProjModel", "decoder"
ONLY = {"embedding": "image", "text_states": True, "condition_noise": 0}


@dataclasses.dataclass(frozen=True)
class DecoderShape:
    """A decoder's config and the widths of its CLIP."""

    config: DecoderConfig
    emb_width: int
    text_width: int

    def on_meta(self) -> dict[str, Tensor]:
        """Its tensors, of which nothing is stored."""
        with torch.device("meta"):
            return Decoder(self.config, emb_width=self.emb_width, text_width=self.text_width).state_dict()

    def network(self) -> dict[str, Any]:
        """What our checkpoint's config says of it."""
        return dataclasses.asdict(self.config) | {"emb_width": self.emb_width, "text_width": self.text_width}


def decoder_components(shape: DecoderShape) -> tuple[Component, Component]:
    """A decoder as text_proj and decoder.

    Raises:
        UnclipError: it has what these have not; the setting is named.
    """
    config = shape.config
    for setting, value in ONLY.items():
        if getattr(config, setting) != value:
            raise UnclipError(
                f"decoder.network.{setting} is {getattr(config, setting)!r}, and diffusers' unCLIP has no counterpart for that;"
                f" a decoder with {setting} {value!r} can be exported"
            )
    if config.sinusoids == "half" and config.step_width // 2 != config.unet.channels:
        raise UnclipError(
            f"decoder.network.sinusoids is 'half', {config.step_width // 2} of them, and diffusers' U-Net has as many as channels, {config.unet.channels};"
            " a decoder with sinusoids 'channels' can be exported"
        )
    if shape.text_width != shape.emb_width:
        raise UnclipError(
            f"diffusers' {TEXT_CLASS} has one width for CLIP's embeddings and text states, this CLIP has {shape.emb_width} and {shape.text_width};"
            " such a decoder can't be exported"
        )
    text = {
        "clip_extra_context_tokens": config.num_image_tokens, "clip_embeddings_dim": shape.emb_width, "time_embed_dim": config.step_width,
        "cross_attention_dim": config.context_width,
    }  # fmt: skip
    unet = UNetShape(config.unet, 3, 6 if config.learned_variance else 3, config.step_width, config.context_width)
    return (
        Component(TEXT_NAME, TEXT_CLASS, text, text_links(shape)),
        Component(UNET_NAME, CONDITION_CLASS, unet_config(unet, name="decoder.network.unet"), unet_links(config.unet, step="step.layers", unet="unet")),
    )


def noising_of(config: DecoderConfig) -> Noising:
    """What the scheduler's config says of a decoder."""
    return Noising(prediction=config.prediction, schedule=config.schedule, num_train_steps=config.num_train_steps, clamp=PIXEL_CLAMP)


def decoder_from_diffusers(text_folder: Path, unet_folder: Path, noising: Noising) -> DecoderShape:
    """The decoder that two component folders describe; no weights are read.

    Raises:
        UnclipError: ours has no counterpart for what they say, they do not fit together, or the weights can't be as large.
    """
    text = Reader(text_folder, read_component_config(text_folder, TEXT_CLASS), component_shapes(text_folder))
    unet = unet_from_diffusers(Reader(unet_folder, read_component_config(unet_folder, CONDITION_CLASS), component_shapes(unet_folder)), attends=True)
    widths = text.size("time_embed_dim"), text.size("cross_attention_dim")
    if widths != (unet.step_width, unet.context_width):
        raise UnclipError(f"{text_folder} has time_embed_dim and cross_attention_dim {widths}, but {unet_folder} has {unet.step_width, unet.context_width}")
    if unet.in_channels != 3 or unet.out_channels not in (3, 6):
        raise UnclipError(f"{unet_folder} has {unet.in_channels} channels in and {unet.out_channels} out; expected 3, and 3 or with a learned variance 6")
    if noising.clamp != PIXEL_CLAMP:
        raise UnclipError(f"the scheduler of {unet_folder} clips at {noising.clamp}; pictures of unclip lie in [-{PIXEL_CLAMP}, {PIXEL_CLAMP}]")
    config = DecoderConfig(
        unet=unet.config, step_width=unet.step_width, sinusoids="channels", num_image_tokens=text.size("clip_extra_context_tokens", 4),
        context_width=unet.context_width, num_null_text=own_setting(text_folder, "num_null_text", NUM_EMPTY_TEXT),
        text_to_step=bool(own_setting(text_folder, "text_to_step", True)),
        learned_variance=unet.out_channels == 6, prediction=noising.prediction, schedule=noising.schedule, num_train_steps=noising.num_train_steps,
    )  # fmt: skip
    emb_width = text.size("clip_embeddings_dim", 768)
    return DecoderShape(config, emb_width, emb_width)


def text_links(shape: DecoderShape) -> list[Link]:
    """Ours and UnCLIPTextProjModel's."""
    return _condition_links(shape, {
        "text.0": "encoder_hidden_states_proj", "text.1": "text_encoder_hidden_states_norm", "text_emb_to_step": "embedding_proj",
        "emb_to_step": "clip_image_embeddings_project_to_time_embeddings", "emb_to_tokens": "clip_extra_context_tokens_proj",
        "null_emb": "learned_classifier_free_guidance_embeddings",
    })  # fmt: skip


def karlo_decoder_links(shape: DecoderShape) -> list[Link]:
    """Ours and those of the checkpoint of Karlo's decoder."""
    names = {
        "text.0": "text_seq_proj.0", "text.1": "text_seq_proj.1", "text_emb_to_step": "text_feat_proj", "emb_to_step": "clip_emb",
        "emb_to_tokens": "clip_tok_proj", "null_emb": "cf_param",
    }  # fmt: skip
    condition = _condition_links(shape, {ours: f"model.{theirs}" for ours, theirs in names.items()})
    return [*condition, *karlo_unet_links(shape.config.unet, step="step.layers", unet="unet", prefix="model")]


def _condition_links(shape: DecoderShape, names: dict[str, str]) -> list[Link]:
    """All that reads the condition; `names` are ours to theirs."""
    config, emb_width = shape.config, shape.emb_width

    def layer(ours: str) -> Link:
        return both(*(renamed(f"{ours}.{kind}", f"{names[ours]}.{kind}") for kind in ("weight", "bias")))

    def token_layer(ours: str) -> Link:
        return both(*(strided(f"{ours}.{kind}", f"{names[ours]}.{kind}", num=config.num_image_tokens) for kind in ("weight", "bias")))

    links = [
        *modules({ours: names[ours] for ours in ("text.0", "text.1")}),
        folded("emb_to_step", "emb_mean", "emb_std", layer("emb_to_step")),
        folded("emb_to_tokens", "emb_mean", "emb_std", token_layer("emb_to_tokens")),
        _null_link(names["null_emb"]),
        missing_there("null_text", (config.num_null_text, config.context_width) if config.num_null_text else (config.context_width,)),
    ]
    if config.text_to_step:
        return [*links, layer("text_emb_to_step"), missing_there("null_text_emb", (emb_width,))]
    theirs = names["text_emb_to_step"]
    return [*links, nothing_here({f"{theirs}.weight": (config.step_width, emb_width), f"{theirs}.bias": (config.step_width,)})]


def _null_link(theirs: str) -> Link:
    """What stands in for a hidden embedding: ours is whitened, theirs raw."""

    def give(held: list[Tensor]) -> list[Tensor]:
        return [held[0] * held[2] + held[1]]

    def take(held: list[Tensor]) -> list[Tensor]:
        return [held[0], torch.zeros_like(held[0]), torch.ones_like(held[0])]

    return Link(("null_emb", "emb_mean", "emb_std"), (theirs,), give, take, is_exact=False)


def hide_as_empty_caption(state: State, text_emb: Tensor, text_tokens: Tensor) -> None:
    """Makes "" what stands in for a hidden caption: its raw embedding (E,) and its states (L, S)."""
    projected = F.linear(text_tokens, state["text.0.weight"], state["text.0.bias"])
    state["null_text"] = F.layer_norm(projected, projected.shape[1:], state["text.1.weight"], state["text.1.bias"])
    if "null_text_emb" in state:
        state["null_text_emb"] = text_emb.clone()
