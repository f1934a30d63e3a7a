"""Import: models that were made elsewhere become trained models of a root."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip import checkpoint
from unclip.clip import load_clip
from unclip.config import RunConfig
from unclip.data.manifest import Stage, read_manifest
from unclip.exchange import decoder as decoders
from unclip.exchange import prior as priors
from unclip.exchange import upsampler as upsamplers
from unclip.exchange.exported import clip_facts, read_facts
from unclip.exchange.found import Format, Found, read_diffusers, read_karlo
from unclip.exchange.links import State
from unclip.files import UnclipError, fingerprint
from unclip.layout import Paths
from unclip.roots import bring_down, holding
from unclip.training.prior import family_of, section_of
from unclip.training.upsampler import UpsamplerFamily

EMPTY = ""  # the hidden caption of models that were made elsewhere


@dataclass(frozen=True)
class Imported:
    """What became of a folder of models.

    Attributes:
        config: the config that uses them.
        runs: the folders of the runs that they are.
        left_out: what the folder has and ours has no place for.
    """

    config: RunConfig
    runs: tuple[Path, ...]
    left_out: tuple[str, ...]


def import_models(config: RunConfig, paths: Callable[[RunConfig], Paths], folder: Path, kind: Format, run: str) -> Imported:
    """Puts the models of a folder into a root, as runs of this name.

    A hidden caption, which guidance moves away from, is for models that were made elsewhere the caption "", as the
    root's CLIP reads it.

    Raises:
        UnclipError: the root has no CLIP, or another than the models belong to; runs of this name hold something else; or
            the models can't be read.
    """
    bring_down(config.root, ("clip",))
    clip_folder = paths(config).clip
    facts = clip_facts(clip_folder)
    _require_clip(folder, facts, clip_folder)
    found = read_karlo(folder, config) if kind == "karlo" else read_diffusers(folder, config)
    for name, model in (("prior", found.prior), ("decoder", found.decoder)):
        if model is not None and (model[0].emb_width, model[0].text_width) != (facts["emb_width"], facts["text_width"]):
            raise UnclipError(
                f"the {name} in {folder} is for a CLIP with embeddings {model[0].emb_width} and text states {model[0].text_width} wide,"
                f" that of the root ({clip_folder}) has {facts['emb_width']} and {facts['text_width']}"
            )
    using = _config_for(config, found, run)
    with holding(config.root, ("clip", "prior", "decoder", "upsampler")):
        if found.hides_with_empty:
            _hide_with_empty(found, clip_folder)
        runs = _write_runs(using, paths(using), found)
    return Imported(using, runs, found.left_out)


def _config_for(config: RunConfig, found: Found, run: str) -> RunConfig:
    """The config that uses the models."""
    changed: dict[str, Any] = {}
    try:
        if found.prior is not None:
            changed["prior"] = dataclasses.replace(config.prior, run=run, network=found.prior[0].config, kinds=("diffusion",))
        if found.decoder is not None:
            changed["decoder"] = dataclasses.replace(config.decoder, run=run, network=found.decoder[0].config)
        if found.upsamplers:
            networks = {place: dataclasses.replace(getattr(config.upsampler, place), network=found.upsamplers[place][0]) for place in found.upsamplers}
            changed["upsampler"] = dataclasses.replace(config.upsampler, run=run, num_upsamplers=len(networks), **networks)
        return dataclasses.replace(config, **changed)
    except ValueError as error:
        raise UnclipError(f"the models do not fit the other settings of the root: {error}; give those beside, such as --upsampler.num_upsamplers 0") from None


def _write_runs(config: RunConfig, paths: Paths, found: Found) -> tuple[Path, ...]:
    inputs = {"imported": "", **found.files}
    used = {"prior": found.prior, "decoder": found.decoder, "upsampler": found.upsamplers or None}
    for name, model in used.items():
        if model is not None:
            _require_free(getattr(paths, name), inputs)
    runs = []
    if found.prior is not None:
        shape, state = found.prior
        digest = _write(paths.prior / "diffusion", "prior-diffusion", "prior-diffusion", section_of(config.prior, "diffusion"), shape.network(), state, inputs)
        _finish(paths.prior, "prior", family_of(config.prior), inputs, digest, kinds={"diffusion": 0})
        runs.append(paths.prior)
    if found.decoder is not None:
        decoder, state = found.decoder
        _write(paths.decoder, "decoder", "decoder", config.decoder, decoder.network(), state, inputs)
        runs.append(paths.decoder)
    if found.upsamplers:
        digests = {
            place: _write(
                paths.upsampler / place, f"upsampler-{place}", "upsampler", getattr(config.upsampler, place), upsamplers.network_of(network), state, inputs
            )
            for place, (network, state) in found.upsamplers.items()
        }
        steps = dict.fromkeys(digests, 0)
        _finish(paths.upsampler, "upsampler", UpsamplerFamily(run=config.upsampler.run), inputs, fingerprint(digests), upsamplers=steps)
        runs.append(paths.upsampler)
    return tuple(runs)


def _require_clip(folder: Path, facts: Mapping[str, Any], clip_folder: Path) -> None:
    """Where the folder says which CLIP its models belong to, that must be the root's."""
    said = read_facts(folder).get("clip")
    if said is None:
        return
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


def _write(run: Path, stage: str, kind: str, section: Any, network: Mapping[str, Any], state: State, inputs: Mapping[str, str]) -> str:
    """Writes a run that ended before its first step; returns the digest of its weights."""
    _require_free(run, inputs)
    opened = Stage(run, stage, section, inputs)
    folder = checkpoint.step_folder(run, 0)
    content = {"kind": kind, "network": dict(network)}
    checkpoint.write_checkpoint(folder, config=content, model=state, ema=state, optimizer={"optimizers": []}, state={"step": 0, "samples": 0})
    digest = checkpoint.digest(folder)
    opened.finish(counts={"steps": 0, "rows_in": 0, "kept": 0, "rejected": {}}, digest=digest)
    return digest


def _require_free(run: Path, inputs: Mapping[str, str]) -> None:
    earlier = read_manifest(run)
    if earlier is not None and dict(earlier.inputs) != dict(inputs):
        raise UnclipError(f"{run} holds another model; give the imported one another name with --run, or remove that folder")


def _finish(run: Path, stage: str, section: Any, inputs: Mapping[str, str], digest: str, **more: Any) -> None:
    Stage(run, stage, section, inputs).finish(counts={"steps": 0, "rows_in": 0, "kept": 0, "rejected": {}, **more}, digest=digest)
