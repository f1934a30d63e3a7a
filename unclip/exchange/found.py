"""What folders of other software hold, by our names: component folders of diffusers, or the checkpoints of Karlo."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unclip.config import RunConfig
from unclip.exchange import decoder as decoders
from unclip.exchange import prior as priors
from unclip.exchange import upsampler as upsamplers
from unclip.exchange.component import OWN, STEM, read_component
from unclip.exchange.decoder import DecoderShape, decoder_components, decoder_from_diffusers, karlo_decoder_links
from unclip.exchange.exported import read_facts
from unclip.exchange.links import Link, State, give_all, require_same, shapes_of, take_all
from unclip.exchange.prior import PriorShape, karlo_prior_links, prior_component, prior_from_diffusers
from unclip.exchange.scheduler import read_scheduler
from unclip.exchange.weights import as_float, find_weights, read_shapes, read_torch, read_weights
from unclip.files import UnclipError, sha256_file
from unclip.training.upsampler import PLACES, Place
from unclip.upsampler import UpsamplerConfig

Format = Literal["diffusers", "karlo"]
KARLO_FILES = {
    "prior": "prior-ckpt",
    "decoder": "decoder-ckpt",
    "upsampler": "improved-sr-ckpt",
    "stats": "ViT-L-14_stats",
}  # how the names of Karlo's files begin


@dataclass(frozen=True)
class Found:
    """Models read from elsewhere, by our names.

    Attributes:
        prior, decoder: shape and weights; None where the folder has none.
        upsamplers: config and weights of those that the folder has.
        left_out: what the folder has and ours has no place for.
        files: what they were read from, with the SHA-256 of each.
        hides_with_empty: the models for which "" is yet to be made the hidden caption.
    """

    prior: tuple[PriorShape, State] | None = None
    decoder: tuple[DecoderShape, State] | None = None
    upsamplers: Mapping[Place, tuple[UpsamplerConfig, State]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    hides_with_empty: frozenset[str] = frozenset()


def read_diffusers(folder: Path, config: RunConfig) -> Found:
    """The models of a folder of components, where they are. An upsampler follows on the decoder that is there, or that of the config.

    Raises:
        UnclipError: there is none, or one is not what ours can be; nothing larger than the files is ever built.
    """
    has_prior = (folder / priors.NAME).is_dir()
    has_text, has_unet = ((folder / name).is_dir() for name in (decoders.TEXT_NAME, decoders.UNET_NAME))
    places: list[Place] = [place for place in PLACES if (folder / upsamplers.NAMES[place]).is_dir()]
    if not (has_prior or has_text or has_unet or places):
        names = [priors.NAME, decoders.TEXT_NAME, decoders.UNET_NAME, *upsamplers.NAMES.values()]
        raise UnclipError(f"expected component folders among {', '.join(names)} in {folder}; there are none")
    if has_text != has_unet:
        raise UnclipError(f"a decoder is both {decoders.UNET_NAME} and {decoders.TEXT_NAME}; {folder} has one of them")
    found = Found()
    files: dict[str, str] = {}
    hiding: set[str] = set()
    if has_prior:
        own = folder / priors.NAME
        prior = prior_from_diffusers(own, read_scheduler(folder / "prior_scheduler"))
        found = dataclasses.replace(found, prior=(prior, read_component(own, prior_component(prior), prior.on_meta())))
        files |= _digests([find_weights(own, STEM)])
        if not (own / OWN).is_file():
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
    size = config.decoder.network.unet.image_size if found.decoder is None else found.decoder[0].config.unet.image_size
    facts = read_facts(folder).get("components", {})
    larger: dict[Place, tuple[UpsamplerConfig, State]] = {}
    for place in places:
        name = upsamplers.NAMES[place]
        noising = read_scheduler(folder / upsamplers.SCHEDULERS[place])
        upsampler = upsamplers.upsampler_from_diffusers(folder / name, noising, facts.get(name, {}), low_size=size)
        component, size = upsamplers.upsampler_component(upsampler, place), upsampler.unet.image_size
        larger[place] = (upsampler, read_component(folder / name, component, upsamplers.on_meta(upsampler)))
        files |= _digests([find_weights(folder / name, STEM)])
    left_out = (upsamplers.LAST_STEP,) if (folder / upsamplers.LAST_STEP).is_dir() else ()
    return dataclasses.replace(found, upsamplers=larger, left_out=left_out, files=files, hides_with_empty=frozenset(hiding))


def read_karlo(folder: Path, config: RunConfig) -> Found:
    """The models of a folder with Karlo's checkpoint files, in the sizes of a config (preset karlo).

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
    upsampler = config.upsampler.first.network
    last_step = f"{upsamplers.KARLO_LAST_STEP}."
    links = upsamplers.karlo_upsampler_links(upsampler)
    given = {
        "prior": _take_karlo(paths["prior"], karlo_prior_links(prior), prior.on_meta(), "the prior that this config describes", stats),
        "decoder": _take_karlo(paths["decoder"], karlo_decoder_links(decoder), decoder.on_meta(), "the decoder that this config describes", {}),
        "upsampler": _take_karlo(
            paths["upsampler"], links, upsamplers.on_meta(upsampler), "the first upsampler that this config describes", {}, leave=last_step
        ),
    }
    return Found(
        (prior, given["prior"]), (decoder, given["decoder"]), {"first": (upsampler, given["upsampler"])}, (upsamplers.KARLO_LAST_STEP,),
        _digests(paths.values()), frozenset({"prior", "decoder"}),
    )  # fmt: skip


def _take_karlo(path: Path, links: list[Link], on_meta: Mapping[str, Tensor], means: str, more: Mapping[str, Tensor], *, leave: str = "\n") -> State:
    """Our tensors from one of Karlo's files, in which names that begin with `leave` are another network's."""
    expected = {name: shape for name, shape in shapes_of(give_all(links, on_meta)).items() if name not in more}
    found = {name: shape for name, shape in read_shapes(path).items() if not name.startswith(leave)}
    require_same(found, expected, where=str(path), means=means)
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
