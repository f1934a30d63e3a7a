"""The trained models of a root, where they lie and what they are loaded on."""

import torch

from unclip.clip import load_clip
from unclip.config import RunConfig
from unclip.data.manifest import finished_manifest
from unclip.decoder import load_decoder
from unclip.generate import Models
from unclip.layout import Paths, lay_out
from unclip.prior.condition import PriorKind
from unclip.roots import bring_down, local_root
from unclip.training.prior import load_trained_prior
from unclip.training.run import last_checkpoint
from unclip.training.upsampler import load_trained_upsamplers

MODEL_FOLDERS = ("clip", "prior", "decoder", "upsampler")


def paths_of(config: RunConfig) -> Paths:
    """The folders that a config names; those of the working copy where the root is behind a URL (see roots.py)."""
    runs = {"prior": config.prior.run, "decoder": config.decoder.run, "upsampler": config.upsampler.run, "report": config.evaluate.run}
    return lay_out(local_root(config.root), clip=config.clip.name, **runs)


def device_of(config: RunConfig) -> str:
    """The device for work that is not training: a GPU where there is one, unless CLIP is told to stay off it."""
    return "cuda" if config.clip.training.device == "auto" and torch.cuda.is_available() else "cpu"


def load_models(config: RunConfig, prior: PriorKind | None) -> Models:
    """The trained models of a root, for generation; without a prior text embeddings are used as image embeddings.

    Raises:
        UnclipError: a stage has not finished.
    """
    paths, device = paths_of(config), device_of(config)
    bring_down(config.root, MODEL_FOLDERS)
    finished_manifest(paths.clip, "clip")
    chosen = None if prior is None else load_trained_prior(paths.prior, prior, device=device)
    decoder = load_decoder(last_checkpoint(paths.decoder, "decoder"), device=device)
    return Models(load_clip(paths.clip, device=device), chosen, decoder, load_trained_upsamplers(paths.upsampler, config.upsampler, device=device))


def origins_of(config: RunConfig, prior: PriorKind | None) -> dict[str, str]:
    """Which models `load_models` gives, each by a name and a digest of what it is: a record for the pictures made with them.

    Raises:
        UnclipError: a stage has not finished.
    """
    paths = paths_of(config)
    kind = "none" if prior is None else f"{prior} {finished_manifest(paths.prior / prior, f'prior-{prior}').digest}"
    upsampler = f"{config.upsampler.run} {finished_manifest(paths.upsampler, 'upsampler').digest}" if config.upsampler.num_upsamplers else "none"
    return {
        "clip": f"{config.clip.name} {finished_manifest(paths.clip, 'clip').digest}",
        "prior": kind,
        "decoder": f"{config.decoder.run} {finished_manifest(paths.decoder, 'decoder').digest}",
        "upsampler": upsampler,
    }
