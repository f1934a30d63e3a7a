"""Import: component folders of diffusers, or the checkpoints of Karlo, as trained models of a root."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unclip import checkpoint
from unclip.clip import load_clip
from unclip.config import RunConfig
from unclip.data.manifest import Stage, read_manifest
from unclip.exchange import decoder as decoders
from unclip.exchange import prior as priors
from unclip.exchange.component import OWN, STEM, read_component
from unclip.exchange.decoder import DecoderShape, decoder_components, decoder_from_diffusers, karlo_decoder_links
from unclip.exchange.exported import FACTS, clip_facts
from unclip.exchange.links import Link, State, give_all, require_same, shapes_of, take_all
from unclip.exchange.prior import PriorShape, karlo_prior_links, prior_component, prior_from_diffusers
from unclip.exchange.scheduler import read_scheduler
from unclip.exchange.weights import as_float, find_weights, read_shapes, read_torch, read_weights
from unclip.files import UnclipError, exclusive, read_json, sha256_file
from unclip.layout import Paths
from unclip.training.prior import family_of, section_of

Format = Literal["diffusers", "karlo"]
KARLO_FILES = {"prior": "prior-ckpt", "decoder": "decoder-ckpt", "stats": "ViT-L-14_stats"}  # how the names of Karlo's files begin
EMPTY = ""  # the hidden caption of models that were made elsewhere


@dataclass(frozen=True)
class Found:
    """Models read from elsewhere, by our names.

    Attributes:
        prior, decoder: shape and weights; None where the folder has none.
        files: what they were read from, with the SHA-256 of each.
        hides_with_empty: the models for which "" is yet to be made the hidden caption.
    """

    prior: tuple[PriorShape, State] | None = None
    decoder: tuple[DecoderShape, State] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    hides_with_empty: frozenset[str] = frozenset()


def read_diffusers(folder: Path) -> Found:
    """The prior and the decoder of a folder of components, where they are.

    Raises:
        UnclipError: there is neither, or one is not what ours can be; nothing larger than the files is ever built.
    """
    has_prior = (folder / priors.NAME).is_dir()
    has_text, has_unet = ((folder / name).is_dir() for name in (decoders.TEXT_NAME, decoders.UNET_NAME))
    if not has_prior and not has_unet:
        raise UnclipError(f"expected component folders {priors.NAME}, or {decoders.UNET_NAME} and {decoders.TEXT_NAME}, in {folder}; there are none")
    if has_text != has_unet:
        raise UnclipError(f"a decoder is both {decoders.UNET_NAME} and {decoders.TEXT_NAME}; {folder} has one of them")
    found = Found()
    files: dict[str, str] = {}
    hiding: set[str] = set()
    if has_prior:
        place = folder / priors.NAME
        prior = prior_from_diffusers(place, read_scheduler(folder / "prior_scheduler"))
        found = dataclasses.replace(found, prior=(prior, read_component(place, prior_component(prior), prior.on_meta())))
        files |= _digests([find_weights(place, STEM)])
        if not (place / OWN).is_file():
            hiding.add("prior")
    if has_unet:
        text, unet = folder / decoders.TEXT_NAME, folder / decoders.UNET_NAME
        decoder = decoder_from_diffusers(text, unet, read_scheduler(folder / "decoder_scheduler"))
        on_meta, components = decoder.on_meta(), decoder_components(decoder)
        state = read_component(text, components[0], on_meta) | read_component(unet, components[1], on_meta)
        found = dataclasses.replace(found, decoder=(decoder, state))
        files |= _digests([find_weights(text, STEM), find_weights(unet, STEM)])
        if not (text / OWN).is_file():
            hiding.add("decoder")
    return dataclasses.replace(found, files=files, hides_with_empty=frozenset(hiding))


def read_karlo(folder: Path, config: RunConfig) -> Found:
    """The prior and the decoder of a folder with Karlo's checkpoint files, in the sizes of a config (preset karlo).

    `ViT-L-14_stats` holds mean and std of CLIP's image embeddings: a pair, or in safetensors tensors of these names.

    Raises:
        UnclipError: files are missing or hold more than tensors, or their sizes are not the config's.
    """
    paths = {name: find_weights(folder, stem) for name, stem in KARLO_FILES.items()}
    prior_config = dataclasses.replace(config.prior.network, num_null_text=priors.NUM_EMPTY_TEXT)
    decoder_config = dataclasses.replace(config.decoder.network, num_null_text=priors.NUM_EMPTY_TEXT)
    if not decoder_config.text_to_step or not decoder_config.learned_variance or decoder_config.prediction != "eps" or prior_config.prediction != "x0":
        raise UnclipError("Karlo's decoder has text_to_step, learned_variance and prediction 'eps', its prior prediction 'x0'; give --preset karlo")
    mean, std = _read_stats(paths["stats"])
    width = len(mean)
    prior, decoder = PriorShape(prior_config, width, width), DecoderShape(decoder_config, width, width)
    stats = {"clip_mean": mean[None], "clip_std": std[None]}
    given = {
        "prior": _take_karlo(paths["prior"], karlo_prior_links(prior), prior.on_meta(), "the prior that this config describes", stats),
        "decoder": _take_karlo(paths["decoder"], karlo_decoder_links(decoder), decoder.on_meta(), "the decoder that this config describes", {}),
    }
    return Found((prior, given["prior"]), (decoder, given["decoder"]), _digests(paths.values()), frozenset({"prior", "decoder"}))


def _take_karlo(path: Path, links: list[Link], on_meta: Mapping[str, Tensor], means: str, more: Mapping[str, Tensor]) -> State:
    expected = {name: shape for name, shape in shapes_of(give_all(links, on_meta)).items() if name not in more}
    require_same(read_shapes(path), expected, where=str(path), means=means)
    taken = take_all(links, as_float(read_weights(path)) | dict(more))
    return {name: value.contiguous() for name, value in taken.items()}


def _read_stats(path: Path) -> tuple[Tensor, Tensor]:
    if path.suffix == ".safetensors":
        held = read_weights(path)
        pair: Any = (held.get("mean"), held.get("std"))
    else:
        pair = read_torch(path)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(value, Tensor) and value.ndim == 1 and len(value) for value in pair):
        raise UnclipError(f"expected mean and std of CLIP's image embeddings in {path}, got {type(pair).__name__}")
    mean, std = (value.to(torch.float32) for value in pair)
    if mean.shape != std.shape or not bool((std > 0).all()):
        raise UnclipError(f"mean and std in {path} must be of one width and every std positive, got {tuple(mean.shape)} and {tuple(std.shape)}")
    return mean, std


def _digests(paths: Any) -> dict[str, str]:
    return {f"{path.parent.name}/{path.name}": sha256_file(path) for path in paths}


def import_models(config: RunConfig, paths: Callable[[RunConfig], Paths], folder: Path, kind: Format, run: str) -> RunConfig:
    """Puts the models of a folder into a root, as runs of this name; returns the config that uses them.

    A hidden caption, which guidance moves away from, is for models that were made elsewhere the caption "", as the
    root's CLIP reads it.

    Raises:
        UnclipError: the root has no CLIP, or another than the models belong to; runs of this name hold something else; or
            the models can't be read.
    """
    clip_folder = paths(config).clip
    facts = clip_facts(clip_folder)
    _require_clip(folder, facts, clip_folder)
    found = read_karlo(folder, config) if kind == "karlo" else read_diffusers(folder)
    for name, model in (("prior", found.prior), ("decoder", found.decoder)):
        if model is not None and (model[0].emb_width, model[0].text_width) != (facts["emb_width"], facts["text_width"]):
            raise UnclipError(
                f"the {name} in {folder} is for a CLIP with embeddings {model[0].emb_width} and text states {model[0].text_width} wide,"
                f" that of the root ({clip_folder}) has {facts['emb_width']} and {facts['text_width']}"
            )
    with exclusive(Path(config.root)):
        if found.hides_with_empty:
            _hide_with_empty(found, clip_folder)
        inputs = {"imported": "", **found.files}
        if found.prior is not None:
            prior, state = found.prior
            section = dataclasses.replace(config.prior, run=run, network=prior.config, kinds=("diffusion",))
            config = dataclasses.replace(config, prior=section)
            place = paths(config).prior
            digest = _write(place / "diffusion", "prior-diffusion", section_of(section, "diffusion"), prior.network(), state, inputs)
            _finish(place, "prior", family_of(section), inputs, digest, kinds={"diffusion": 0})
        if found.decoder is not None:
            decoder, state = found.decoder
            config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, run=run, network=decoder.config))
            _write(paths(config).decoder, "decoder", config.decoder, decoder.network(), state, inputs)
    return config


def _require_clip(folder: Path, facts: Mapping[str, Any], clip_folder: Path) -> None:
    """Where the folder says which CLIP its models belong to, that must be the root's."""
    if not (folder / FACTS).is_file():
        return
    said = read_json(folder / FACTS).get("clip", {})
    if said.get("weights_sha256") != facts["weights_sha256"]:
        raise UnclipError(
            f"the models in {folder} belong to a CLIP with the weights {str(said.get('weights_sha256'))[:16]} ({said.get('origin')}),"
            f" that of the root ({clip_folder}) has {facts['weights_sha256'][:16]} ({facts['origin']})"
        )


def _hide_with_empty(found: Found, clip_folder: Path) -> None:
    text = load_clip(clip_folder).encode_texts([EMPTY])
    if text.text_tokens.shape[1] != priors.NUM_EMPTY_TEXT:
        raise UnclipError(f"expected {priors.NUM_EMPTY_TEXT} tokens of an empty caption from the CLIP in {clip_folder}, got {text.text_tokens.shape[1]}")
    if found.prior is not None and "prior" in found.hides_with_empty:
        priors.hide_as_empty_caption(found.prior[1], text.text_emb[0], text.text_tokens[0])
    if found.decoder is not None and "decoder" in found.hides_with_empty:
        decoders.hide_as_empty_caption(found.decoder[1], text.text_emb[0], text.text_tokens[0])


def _write(run: Path, stage: str, section: Any, network: Mapping[str, Any], state: State, inputs: Mapping[str, str]) -> str:
    """Writes a run that ended before its first step; returns the digest of its weights."""
    earlier = read_manifest(run)
    if earlier is not None and dict(earlier.inputs) != dict(inputs):
        raise UnclipError(f"{run} holds another model; give the imported one another name with --run, or remove that folder")
    opened = Stage(run, stage, section, inputs)
    folder = checkpoint.step_folder(run, 0)
    content = {"kind": stage, "network": dict(network)}
    checkpoint.write_checkpoint(folder, config=content, model=state, ema=state, optimizer={"optimizers": []}, state={"step": 0, "samples": 0})
    digest = checkpoint.digest(folder)
    opened.finish(counts={"steps": 0, "rows_in": 0, "kept": 0, "rejected": {}}, digest=digest)
    return digest


def _finish(run: Path, stage: str, section: Any, inputs: Mapping[str, str], digest: str, **more: Any) -> None:
    Stage(run, stage, section, inputs).finish(counts={"steps": 0, "rows_in": 0, "kept": 0, "rejected": {}, **more}, digest=digest)
