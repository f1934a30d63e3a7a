"""The stages in their order: what each reads under the root, what it leaves there, and whether it has anything to do."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unclip.clip import load_clip
from unclip.config import RunConfig
from unclip.data.download import download, download_inputs
from unclip.data.embed import embed, embed_inputs
from unclip.data.index import build_index, index_inputs
from unclip.data.manifest import Manifest, finished_manifest, is_current
from unclip.data.source import SourceConfig, build_source, source_inputs
from unclip.data.verify import Fault, discard, verify
from unclip.decoder import load_decoder
from unclip.evaluation.config import EvaluateSection, evaluate_inputs
from unclip.files import UnclipError, exclusive
from unclip.generate import Models
from unclip.layout import Paths, lay_out
from unclip.prior.condition import PriorKind
from unclip.training.clip import clip_inputs, clip_is_trained, make_or_import_clip
from unclip.training.decoder import decoder_inputs, decoder_is_trained, train_decoder
from unclip.training.prior import family_of, load_trained_prior, prior_inputs, priors_are_current, train_priors, trained_priors
from unclip.training.run import last_checkpoint
from unclip.worlds.write import write_world


def paths_of(config: RunConfig) -> Paths:
    """The folders that a config names."""
    return lay_out(Path(config.root), clip=config.clip.name, prior=config.prior.run, decoder=config.decoder.run)


def device_of(config: RunConfig) -> str:
    """The device for work that is not training: a GPU where there is one, unless CLIP is told to stay off it."""
    return "cuda" if config.clip.training.device == "auto" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        does: what it does, in a few words.
        folder: where it leaves its result.
        section: the part of the config that decides what it makes.
        inputs: a digest for each thing it would read today; raises UnclipError where an earlier stage has not finished.
        run: does the work that is not yet done.
        parts_done: whether what the stage is made of is done too, where its manifest does not say so by itself.
    """

    does: str
    folder: Callable[[Paths], Path]
    section: Callable[[RunConfig], object]
    inputs: Callable[[RunConfig, Paths], Mapping[str, str]]
    run: Callable[[RunConfig, Paths], Manifest]
    parts_done: Callable[[RunConfig, Paths], bool] = lambda config, paths: True


def _source_section(config: RunConfig) -> SourceConfig:
    if config.world is None:
        return config.source
    return dataclasses.replace(config.source, path=str(paths_of(config).world), split_column="split")


def _source_inputs(config: RunConfig, paths: Paths) -> Mapping[str, str]:
    if config.world is not None and not paths.world.exists():
        return {}  # the stage makes the world before it reads it
    return source_inputs(_source_section(config))


def _run_source(config: RunConfig, paths: Paths) -> Manifest:
    if config.world is not None:
        write_world(paths.world, config.world)
    return build_source(paths.source, _source_section(config))


def _evaluate_section(config: RunConfig) -> EvaluateSection:
    world = "" if config.world is None else config.world.name
    return EvaluateSection(world=world, prior=config.prior.kinds[0], evaluate=config.evaluate, generate=config.generate)


def _run_evaluate(config: RunConfig, paths: Paths) -> Manifest:
    from unclip.evaluation.report import evaluate  # plots and judges, which no other stage should wait for

    priors = trained_priors(paths.prior, device=device_of(config))
    return evaluate(paths, load_models(config, config.prior.kinds[0]), priors, _evaluate_section(config))


STAGES: Mapping[str, Stage] = {
    "source": Stage(
        does="reads the table or folder of links and captions, and rejects what can't be used",
        folder=lambda paths: paths.source,
        section=_source_section,
        inputs=_source_inputs,
        run=_run_source,
    ),
    "download": Stage(
        does="fetches the pictures with img2dataset into WebDataset shards",
        folder=lambda paths: paths.shards,
        section=lambda config: config.download,
        inputs=lambda config, paths: download_inputs(paths.source),
        run=lambda config, paths: download(paths.source, paths.shards, config.download),
    ),
    "clip": Stage(
        does="trains a small CLIP on the shards, or takes one from open_clip",
        folder=lambda paths: paths.clip,
        section=lambda config: config.clip,
        inputs=lambda config, paths: clip_inputs(paths.shards, config.clip),
        run=lambda config, paths: make_or_import_clip(paths.shards, paths.clip, config.clip),
        parts_done=lambda config, paths: clip_is_trained(paths.clip, config.clip),
    ),
    "embed": Stage(
        does="embeds pictures and captions into the Parquet store",
        folder=lambda paths: paths.embeddings,
        section=lambda config: config.embed,
        inputs=lambda config, paths: embed_inputs(paths.shards, paths.clip),
        run=lambda config, paths: embed(paths.shards, paths.clip, paths.embeddings, config.embed, device=device_of(config)),
    ),
    "index": Stage(
        does="builds the FAISS index and measures its recall",
        folder=lambda paths: paths.index,
        section=lambda config: config.index,
        inputs=lambda config, paths: index_inputs(paths.embeddings),
        run=lambda config, paths: build_index(paths.embeddings, paths.index, config.index),
    ),
    "prior": Stage(
        does="trains the priors: caption to CLIP image embedding",
        folder=lambda paths: paths.prior,
        section=lambda config: family_of(config.prior),
        inputs=lambda config, paths: prior_inputs(paths.embeddings),
        run=lambda config, paths: train_priors(paths.embeddings, paths.prior, config.prior),
        parts_done=lambda config, paths: priors_are_current(paths.embeddings, paths.prior, config.prior),
    ),
    "decoder": Stage(
        does="trains the decoder: CLIP image embedding and caption to picture",
        folder=lambda paths: paths.decoder,
        section=lambda config: config.decoder,
        inputs=lambda config, paths: decoder_inputs(paths.shards, paths.embeddings),
        run=lambda config, paths: train_decoder(paths.shards, paths.embeddings, paths.decoder, config.decoder),
        parts_done=lambda config, paths: decoder_is_trained(paths.decoder, config.decoder),
    ),
    "evaluate": Stage(
        does="generates from held-out captions, measures, and writes the report",
        folder=lambda paths: paths.report,
        section=_evaluate_section,
        inputs=lambda config, paths: evaluate_inputs(paths),
        run=_run_evaluate,
    ),
}


def run_stage(name: str, config: RunConfig) -> tuple[Manifest, bool]:
    """Runs one stage where it has anything to do, holding the root. Returns its manifest, and whether it worked.

    Raises:
        UnclipError: see the stage; or another run holds the root.
    """
    stage, paths = STAGES[name], paths_of(config)
    with exclusive(paths.root, shared=name == "embed" and config.embed.shared):
        if is_done(name, config):
            return finished_manifest(stage.folder(paths), name), False
        return stage.run(config, paths), True


def is_done(name: str, config: RunConfig) -> bool:
    """Whether running a stage would change nothing.

    Raises:
        UnclipError: its folder was made with another config.
    """
    stage, paths = STAGES[name], paths_of(config)
    folder = stage.folder(paths)
    try:
        inputs = stage.inputs(config, paths)
    except UnclipError:
        is_current(folder, name, stage.section(config), {})  # another config is refused even so
        return False
    return is_current(folder, name, stage.section(config), inputs) and stage.parts_done(config, paths)


def pending(config: RunConfig) -> list[str]:
    """The stages that have anything to do: the first that is not done, and all after it that depend on it.

    Raises:
        UnclipError: a folder was made with another config.
    """
    return [name for name in STAGES if not is_done(name, config)]


def verify_data(config: RunConfig) -> list[Fault]:
    """What is wrong with the shards and the embedding store of a root; see `verify`.

    Raises:
        UnclipError: a stage has not finished, or another run holds the root.
    """
    paths = paths_of(config)
    with exclusive(paths.root):
        return verify(paths.shards, paths.embeddings, paths.clip)


def repair_data(config: RunConfig) -> list[Fault]:
    """Makes again the shards and parts that are at fault, and no others; returns what was wrong.

    Raises:
        UnclipError: a stage has not finished, another run holds the root, or a fault is still there afterwards.
    """
    paths = paths_of(config)
    with exclusive(paths.root):
        faults = verify(paths.shards, paths.embeddings, paths.clip)
        discard(faults, paths.shards, paths.embeddings)
        if any(fault.stage == "download" for fault in faults):
            STAGES["download"].run(config, paths)
        if faults:
            STAGES["embed"].run(config, paths)
            if left := verify(paths.shards, paths.embeddings, paths.clip):
                raise UnclipError(f"{len(left)} parts are still at fault, the first is {left[0].part} ({left[0].what}); remove {paths.root} and run again")
    return faults


def measure_priors(config: RunConfig) -> dict[str, Any]:
    """Measures the trained priors of a root alone, holding the root; see `evaluate_priors`. No decoder is needed.

    Raises:
        UnclipError: a stage before the prior, or the prior, has not finished; or another run holds the root.
    """
    from unclip.evaluation.prior_report import evaluate_priors

    paths, device = paths_of(config), device_of(config)
    with exclusive(paths.root):
        finished_manifest(paths.clip, "clip")
        priors = trained_priors(paths.prior, device=device)
        return evaluate_priors(paths, load_clip(paths.clip, device=device), priors, _evaluate_section(config))


def load_models(config: RunConfig, prior: PriorKind | None) -> Models:
    """The trained models of a root, for generation; without a prior text embeddings are used as image embeddings.

    Raises:
        UnclipError: a stage has not finished.
    """
    paths, device = paths_of(config), device_of(config)
    finished_manifest(paths.clip, "clip")
    chosen = None if prior is None else load_trained_prior(paths.prior, prior, device=device)
    decoder = load_decoder(last_checkpoint(paths.decoder, "decoder"), device=device)
    return Models(load_clip(paths.clip, device=device), chosen, decoder)
