"""The diffusion prior as diffusers' PriorTransformer, which is Karlo's, and as Karlo's own checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unclip.exchange.component import Component, Reader, component_shapes, own_setting, read_component_config
from unclip.exchange.links import Link, both, folded, interleaved, joined, missing_there, modules, renamed, reshaped
from unclip.exchange.scheduler import Noising
from unclip.files import UnclipError
from unclip.prior.diffusion import NUM_LAST_TOKENS, DiffusionPrior, DiffusionPriorConfig

NAME, CLASS = "prior", "PriorTransformer"
NUM_EMPTY_TEXT = 2  # tokens of "": start and end of the text
ADDITIONAL = NUM_LAST_TOKENS + 1  # and the text embedding
ONLY: dict[str, Any] = {  # what ours has at one value only, which is also diffusers' default
    "norm_in_type": None, "embedding_proj_norm_type": None, "encoder_hid_proj_type": "linear", "added_emb_type": "prd", "time_embed_act_fn": "silu",
    "additional_embeddings": ADDITIONAL, "dropout": 0.0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PriorShape:
    """A prior's config and the widths of its CLIP."""

    config: DiffusionPriorConfig
    emb_width: int
    text_width: int

    def on_meta(self) -> dict[str, Tensor]:
        """Its tensors, of which nothing is stored."""
        with torch.device("meta"):
            return DiffusionPrior(self.config, emb_width=self.emb_width, text_width=self.text_width).state_dict()

    def network(self) -> dict[str, Any]:
        """What our checkpoint's config says of it."""
        return dataclasses.asdict(self.config) | {"emb_width": self.emb_width, "text_width": self.text_width}


def prior_component(shape: PriorShape) -> Component:
    """A prior as a component.

    Raises:
        UnclipError: it has what PriorTransformer has not.
    """
    config = shape.config
    if config.self_condition:
        raise UnclipError(
            "prior.network.self_condition is True, and diffusers' PriorTransformer is given no earlier estimate; a prior without it can be exported"
        )
    if shape.text_width != shape.emb_width:
        raise UnclipError(
            f"diffusers' PriorTransformer has one width for CLIP's embeddings and text states, this CLIP has {shape.emb_width} and {shape.text_width};"
            " such a prior can't be exported"
        )
    theirs = {
        "num_attention_heads": config.width // config.head_width, "attention_head_dim": config.head_width, "num_layers": config.depth,
        "embedding_dim": shape.emb_width, "num_embeddings": config.max_text_tokens, "additional_embeddings": ADDITIONAL,
    }  # fmt: skip
    return Component(NAME, CLASS, theirs, prior_links(shape))


def noising_of(config: DiffusionPriorConfig) -> Noising:
    """What the scheduler's config says of a prior."""
    return Noising(prediction=config.prediction, schedule=config.schedule, num_train_steps=config.num_train_steps, clamp=config.clamp)


def prior_from_diffusers(folder: Path, noising: Noising) -> PriorShape:
    """The prior that a component folder describes; no weights are read.

    Raises:
        UnclipError: ours has no counterpart for what config.json says, or the weights can't be as large as that.
    """
    reader = Reader(folder, read_component_config(folder, CLASS), component_shapes(folder))
    emb_width, head_width = reader.size("embedding_dim", 768), reader.size("attention_head_dim", 64)
    width = reader.product("attention_head_dim", "num_attention_heads", (64, 32))
    reader.require(ONLY, defaults=ONLY)
    for name, implied in {"time_embed_dim": width, "embedding_proj_dim": emb_width, "clip_embed_dim": emb_width}.items():
        reader.require_implied(name, implied)
    try:
        config = DiffusionPriorConfig(
            width=width, head_width=head_width, depth=reader.count("num_layers", 20), max_text_tokens=reader.size("num_embeddings", 77),
            num_null_text=own_setting(folder, "num_null_text", NUM_EMPTY_TEXT), prediction=noising.prediction, schedule=noising.schedule,
            num_train_steps=noising.num_train_steps, clamp=noising.clamp,
        )  # fmt: skip
    except ValueError as error:
        raise UnclipError(f"{folder} describes what unclip's prior can't be: {error}") from None
    return PriorShape(config, emb_width, emb_width)


def prior_links(shape: PriorShape) -> list[Link]:
    """Ours and PriorTransformer's."""
    links = [*_outer_links(shape, {
        "encoder_hidden_states_proj": "caption.text_in", "embedding_proj": "caption.text_emb_in", "time_embedding.linear_1": "step.layers.0",
        "time_embedding.linear_2": "step.layers.2", "proj_in": "noised_in", "norm_out": "transformer.norm", "proj_to_clip_embeddings": "out",
    }, query="prd_embedding", positions="positional_embedding")]  # fmt: skip
    for number in range(shape.config.depth):
        block, own = f"transformer_blocks.{number}", f"transformer.blocks.{number}"
        links += modules(
            {f"{own}.norm1": f"{block}.norm1", f"{own}.norm2": f"{block}.norm3", f"{own}.out": f"{block}.attn1.to_out.0",
             f"{own}.mlp.0": f"{block}.ff.net.0.proj", f"{own}.mlp.2": f"{block}.ff.net.2"}
        )  # fmt: skip
        links += [joined(f"{own}.qkv.{kind}", [f"{block}.attn1.to_{part}.{kind}" for part in "qkv"]) for kind in ("weight", "bias")]
    return links


def karlo_prior_links(shape: PriorShape) -> list[Link]:
    """Ours and those of the checkpoint of Karlo's prior, with its statistics as clip_mean and clip_std (1, E)."""
    links = [*_outer_links(shape, {
        "model.text_enc_proj": "caption.text_in", "model.text_emb_proj": "caption.text_emb_in", "model.time_embed.0": "step.layers.0",
        "model.time_embed.2": "step.layers.2", "model.clip_img_proj": "noised_in", "model.final_ln": "transformer.norm", "model.out_proj": "out",
    }, query="model.prd_emb", positions="model.positional_embedding")]  # fmt: skip
    for number in range(shape.config.depth):
        block, own = f"model.transformer.resblocks.{number}", f"transformer.blocks.{number}"
        links += modules(
            {f"{own}.norm1": f"{block}.ln_1", f"{own}.norm2": f"{block}.ln_2", f"{own}.out": f"{block}.attn.c_proj",
             f"{own}.mlp.0": f"{block}.mlp.c_fc", f"{own}.mlp.2": f"{block}.mlp.c_proj"}
        )  # fmt: skip
        head_width = shape.config.head_width
        links += [interleaved(f"{own}.qkv.{kind}", f"{block}.attn.c_qkv.{kind}", parts=3, head_width=head_width) for kind in ("weight", "bias")]
    return links


def _outer_links(shape: PriorShape, names: dict[str, str], *, query: str, positions: str) -> list[Link]:
    """All but the blocks, which both layouts have in the same way; `names` are theirs to ours."""
    config = shape.config
    plain = {ours: theirs for theirs, ours in names.items() if ours != "caption.text_emb_in"}
    embedding = next(theirs for theirs, ours in names.items() if ours == "caption.text_emb_in")
    layer = [renamed(f"caption.text_emb_in.{kind}", f"{embedding}.{kind}") for kind in ("weight", "bias")]
    links = [
        *modules(plain),
        folded("caption.text_emb_in", "caption.text_mean", "caption.text_std", both(*layer)),  # theirs reads it raw
        reshaped("query", query, (-1,), (1, 1, -1)),
        _positions_link(positions, config.max_text_tokens),
        reshaped("emb_mean", "clip_mean", (-1,), (1, -1)),
        reshaped("emb_std", "clip_std", (-1,), (1, -1)),
        missing_there("eps_square", (config.num_train_steps,)),
    ]
    if config.num_null_text:
        links += [missing_there("caption.null_text", (config.num_null_text, config.width)), missing_there("caption.null_emb", (shape.emb_width,))]
    return links


def _positions_link(theirs: str, max_text_tokens: int) -> Link:
    """Positions of text, of the text embedding and of the last tokens, which theirs has in one (1, L, D)."""

    def give(held: list[Tensor]) -> list[Tensor]:
        return [torch.cat([held[0], held[1][None], held[2]])[None]]

    def take(held: list[Tensor]) -> list[Tensor]:
        rows = held[0][0]
        return [rows[:max_text_tokens], rows[max_text_tokens], rows[max_text_tokens + 1 :]]

    return Link(("caption.positions", "caption.emb_position", "positions"), (theirs,), give, take)


def hide_as_empty_caption(state: dict[str, Tensor], text_emb: Tensor, text_tokens: Tensor) -> None:
    """Makes "" what stands in for a hidden caption: its raw embedding (E,) and its states (L, S)."""
    state["caption.null_text"] = text_tokens @ state["caption.text_in.weight"].T + state["caption.text_in.bias"]
    state["caption.null_emb"] = (text_emb - state["caption.text_mean"]) / state["caption.text_std"]
