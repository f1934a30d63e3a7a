"""The stages in their order: what each reads under the root, what it leaves there, and whether it has anything to do."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unclip.config import RunConfig
from unclip.data.again import rows_to_try_again
from unclip.data.clusters import CLUSTERS
from unclip.data.curate import curate, curate_inputs
from unclip.data.download import download, download_inputs
from unclip.data.embed import embed, embed_inputs
from unclip.data.index import build_index, index_inputs
from unclip.data.manifest import MANIFEST, Manifest, finished_manifest, is_current
from unclip.data.marks import REMOVED, read_marks
from unclip.data.select import select, select_inputs
from unclip.data.source import TABLE, SourceConfig, build_source, source_inputs
from unclip.evaluation.config import EvaluateSection, evaluate_inputs
from unclip.evaluation.duplicates import SHEET, draw_clusters, is_drawn
from unclip.files import UnclipError
from unclip.layout import Paths
from unclip.models import device_of, load_models, paths_of
from unclip.roots import bring_down, holding
from unclip.space import require_space
from unclip.training.clip import clip_inputs, clip_is_trained, make_or_import_clip
from unclip.training.decoder import decoder_inputs, decoder_is_trained, train_decoder
from unclip.training.prior import family_of, prior_inputs, priors_are_current, train_priors, trained_priors
from unclip.training.upsampler import UpsamplerFamily, train_upsamplers, upsampler_inputs, upsamplers_are_current
from unclip.worlds.write import write_world


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
        idle: why the config leaves the stage nothing to do; empty where it has a task.
    """

    does: str
    folder: Callable[[Paths], Path]
    section: Callable[[RunConfig], object]
    inputs: Callable[[RunConfig, Paths], Mapping[str, str]]
    run: Callable[[RunConfig, Paths], Manifest]
    parts_done: Callable[[RunConfig, Paths], bool] = lambda config, paths: True
    idle: Callable[[RunConfig], str] = lambda config: ""


def _source_section(config: RunConfig) -> SourceConfig:
    if config.world is None:
        return config.source
    return dataclasses.replace(config.source, path=str(paths_of(config).world), split_column="split")


def _source_inputs(config: RunConfig, paths: Paths) -> Mapping[str, str]:
    if config.world is not None and not paths.world.exists():
        return {}  # the stage makes the world before it reads it
    return source_inputs(_source_section(config), read_marks(paths.root), _again(config, paths))


def _run_source(config: RunConfig, paths: Paths) -> Manifest:
    if config.world is not None:
        write_world(paths.world, config.world)
    return build_source(paths.source, _source_section(config), read_marks(paths.root), _again(config, paths))


def _again(config: RunConfig, paths: Paths) -> frozenset[str]:
    return rows_to_try_again(paths.source / TABLE, paths.shards, config.download.later_tries)


def _after(stage: str, paths: Paths, inputs: Mapping[str, str]) -> Mapping[str, str]:
    """The inputs of a stage that goes by what another one kept.

    Raises:
        UnclipError: that one has not finished.
    """
    finished_manifest(STAGES[stage].folder(paths), stage)
    return inputs


def _clip_inputs(config: RunConfig, paths: Paths) -> Mapping[str, str]:
    inputs = clip_inputs(paths.shards, config.clip)
    return inputs if config.clip.model else _after("curate", paths, inputs)  # a published CLIP reads no shard


def _run_select(config: RunConfig, paths: Paths) -> Manifest:
    manifest = select(paths.embeddings, config.select)
    draw_clusters(paths.shards, paths.selected)
    return manifest


def evaluate_section(config: RunConfig) -> EvaluateSection:
    world = "" if config.world is None else config.world.name
    return EvaluateSection(world=world, prior=config.prior.kinds[0], evaluate=config.evaluate, generate=config.generate)


def _run_evaluate(config: RunConfig, paths: Paths) -> Manifest:
    from unclip.evaluation.report import evaluate  # plots and judges, which no other stage should wait for

    priors = trained_priors(paths.prior, device=device_of(config))
    return evaluate(paths, load_models(config, config.prior.kinds[0]), priors, evaluate_section(config))


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
    "curate": Stage(
        does="drops rows by rules that need no model: duplicates, small pictures, captions that say nothing",
        folder=lambda paths: paths.curated,
        section=lambda config: config.curate,
        inputs=lambda config, paths: curate_inputs(paths.shards),
        run=lambda config, paths: curate(paths.source, paths.shards, config.curate),
    ),
    "clip": Stage(
        does="trains a small CLIP on the shards, or takes one from open_clip",
        folder=lambda paths: paths.clip,
        section=lambda config: config.clip,
        inputs=_clip_inputs,
        run=lambda config, paths: make_or_import_clip(paths.shards, paths.clip, config.clip),
        parts_done=lambda config, paths: clip_is_trained(paths.clip, config.clip),
    ),
    "embed": Stage(
        does="embeds pictures and captions into the Parquet store",
        folder=lambda paths: paths.embeddings,
        section=lambda config: config.embed,
        inputs=lambda config, paths: _after("curate", paths, embed_inputs(paths.shards, paths.clip)),
        run=lambda config, paths: embed(paths.shards, paths.clip, paths.embeddings, config.embed, device=device_of(config)),
    ),
    "select": Stage(
        does="drops rows by their embeddings: unlike pairs, near duplicates, and what leaks from training to evaluation",
        folder=lambda paths: paths.selected,
        section=lambda config: config.select,
        inputs=lambda config, paths: select_inputs(paths.embeddings),
        run=_run_select,
        parts_done=lambda config, paths: is_drawn(paths.selected),
    ),
    "index": Stage(
        does="builds the FAISS index and measures its recall",
        folder=lambda paths: paths.index,
        section=lambda config: config.index,
        inputs=lambda config, paths: _after("select", paths, index_inputs(paths.embeddings)),
        run=lambda config, paths: build_index(paths.embeddings, paths.index, config.index),
    ),
    "prior": Stage(
        does="trains the priors: caption to CLIP image embedding",
        folder=lambda paths: paths.prior,
        section=lambda config: family_of(config.prior),
        inputs=lambda config, paths: _after("select", paths, prior_inputs(paths.embeddings)),
        run=lambda config, paths: train_priors(paths.embeddings, paths.prior, config.prior),
        parts_done=lambda config, paths: priors_are_current(paths.embeddings, paths.prior, config.prior),
    ),
    "decoder": Stage(
        does="trains the decoder: CLIP image embedding and caption to picture",
        folder=lambda paths: paths.decoder,
        section=lambda config: config.decoder,
        inputs=lambda config, paths: _after("select", paths, decoder_inputs(paths.shards, paths.embeddings)),
        run=lambda config, paths: train_decoder(paths.shards, paths.embeddings, paths.decoder, config.decoder),
        parts_done=lambda config, paths: decoder_is_trained(paths.decoder, config.decoder),
    ),
    "upsampler": Stage(
        does="trains the upsamplers: small picture to large picture",
        folder=lambda paths: paths.upsampler,
        section=lambda config: UpsamplerFamily(run=config.upsampler.run),
        inputs=lambda config, paths: _after("select", paths, upsampler_inputs(paths.shards, paths.embeddings)),
        run=lambda config, paths: train_upsamplers(paths.shards, paths.embeddings, paths.upsampler, config.upsampler),
        parts_done=lambda config, paths: upsamplers_are_current(paths.shards, paths.embeddings, paths.upsampler, config.upsampler),
        idle=lambda config: "" if config.upsampler.num_upsamplers else "upsampler.num_upsamplers is 0, so pictures stay as large as the decoder makes them",
    ),
    "evaluate": Stage(
        does="generates from held-out captions, measures, and writes the report",
        folder=lambda paths: paths.report,
        section=evaluate_section,
        inputs=lambda config, paths: evaluate_inputs(paths, config.evaluate),
        run=_run_evaluate,
    ),
}


# the folders right under a root that a stage reads or writes, which is what is brought down where the root is behind a URL
NEEDS: Mapping[str, tuple[str, ...]] = {
    "source": ("world", "source"),
    "download": ("world", "source", "shards"),
    "curate": ("source", "shards"),
    "clip": ("shards", "clip"),
    "embed": ("shards", "clip", "embeddings"),
    "select": ("shards", "embeddings"),
    "index": ("embeddings", "index"),
    "prior": ("clip", "embeddings", "prior"),
    "decoder": ("shards", "embeddings", "decoder"),
    "upsampler": ("shards", "embeddings", "upsampler"),
    "evaluate": ("world", "source", "shards", "clip", "embeddings", "index", "prior", "decoder", "upsampler", "report"),
}


def run_stage(name: str, config: RunConfig) -> tuple[Manifest, bool]:
    """Runs one stage where it has anything to do, holding the root. Returns its manifest, and whether it worked.

    Raises:
        UnclipError: see the stage; or another run, here or on another machine, holds the root.
    """
    stage, paths = STAGES[name], paths_of(config)
    with holding(config.root, (REMOVED, *NEEDS[name]), shared=name == "embed" and config.embed.shared):
        if is_done(name, config):
            return result_of(name, config), False
        stage.inputs(config, paths)  # a stage that comes before its turn says so before it begins
        require_space(name, config, paths)
        return stage.run(config, paths), True


def result_of(name: str, config: RunConfig) -> Manifest:
    """The manifest of a stage that is done; one that has nothing to do says so in its counts.

    Raises:
        UnclipError: it has not finished.
    """
    if why := STAGES[name].idle(config):
        return Manifest(name, config={}, inputs={}, finished=True, counts={"nothing to do": why})
    return finished_manifest(STAGES[name].folder(paths_of(config)), name)


def is_done(name: str, config: RunConfig) -> bool:
    """Whether running a stage would change nothing.

    Raises:
        UnclipError: its folder was made with another config.
    """
    stage, paths = STAGES[name], paths_of(config)
    if stage.idle(config):
        return True
    folder = stage.folder(paths)
    try:
        inputs = stage.inputs(config, paths)
    except UnclipError:
        is_current(folder, name, stage.section(config), {})  # another config is refused even so
        return False
    return is_current(folder, name, stage.section(config), inputs) and stage.parts_done(config, paths)


def bring_records(config: RunConfig) -> None:
    """Of a root behind a URL, brings down what `is_done` goes by, and the report; nothing where the root is a folder."""
    paths = paths_of(config)
    folders = [stage.folder(paths) for stage in STAGES.values()]
    folders += [paths.prior / kind for kind in config.prior.kinds] + [paths.upsampler / place for place in config.upsampler.wanted]
    names = [(folder / MANIFEST).relative_to(paths.root).as_posix() for folder in folders]
    names += [(paths.selected / file).relative_to(paths.root).as_posix() for file in (SHEET, CLUSTERS)]
    bring_down(config.root, (REMOVED, "world", "report", *names))
