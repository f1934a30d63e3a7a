"""The stages in their order: what each reads under the root, what it leaves there, and whether it has anything to do."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unclip.clip import load_clip
from unclip.config import RunConfig
from unclip.data.curate import curate, curate_inputs
from unclip.data.download import download, download_inputs
from unclip.data.embed import embed, embed_inputs
from unclip.data.index import build_index, index_inputs
from unclip.data.manifest import Manifest, finished_manifest, is_current, read_manifest
from unclip.data.marks import read_marks, write_marks
from unclip.data.select import select, select_inputs
from unclip.data.source import SourceConfig, build_source, source_inputs
from unclip.data.store import rows_digest
from unclip.data.takedown import Takedown, erase, links_of, marked_rows
from unclip.data.verify import Fault, discard, verify
from unclip.decoder import load_decoder
from unclip.evaluation.config import EvaluateSection, evaluate_inputs
from unclip.evaluation.duplicates import SHEET, draw_clusters, is_drawn
from unclip.files import UnclipError, exclusive, remove
from unclip.generate import Models
from unclip.layout import SELECTED, Paths, lay_out
from unclip.prior.condition import PriorKind
from unclip.training.clip import clip_inputs, clip_is_trained, make_or_import_clip
from unclip.training.decoder import decoder_inputs, decoder_is_trained, train_decoder
from unclip.training.prior import family_of, load_trained_prior, prior_inputs, priors_are_current, train_priors, trained_priors
from unclip.training.run import last_checkpoint
from unclip.training.upsampler import UpsamplerFamily, load_trained_upsamplers, train_upsamplers, upsampler_inputs, upsamplers_are_current
from unclip.worlds.write import write_world


def paths_of(config: RunConfig) -> Paths:
    """The folders that a config names."""
    return lay_out(Path(config.root), clip=config.clip.name, prior=config.prior.run, decoder=config.decoder.run, upsampler=config.upsampler.run)


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
    return source_inputs(_source_section(config), read_marks(paths.root))


def _run_source(config: RunConfig, paths: Paths) -> Manifest:
    if config.world is not None:
        write_world(paths.world, config.world)
    return build_source(paths.source, _source_section(config), read_marks(paths.root))


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
        section=_evaluate_section,
        inputs=lambda config, paths: evaluate_inputs(paths, config.evaluate),
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
            return result_of(name, config), False
        stage.inputs(config, paths)  # a stage that comes before its turn says so before it begins
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
        at_fault = {fault.stage for fault in faults}
        if "download" in at_fault:
            STAGES["download"].run(config, paths)
        if at_fault & {"download", "curate"}:
            STAGES["curate"].run(config, paths)
        if at_fault & {"download", "curate", "embed"}:
            STAGES["embed"].run(config, paths)
        if faults:
            STAGES["select"].run(config, paths)
            if left := verify(paths.shards, paths.embeddings, paths.clip):
                raise UnclipError(f"{len(left)} parts are still at fault, the first is {left[0].part} ({left[0].what}); remove {paths.root} and run again")
    return faults


def remove_data(config: RunConfig, *, keys: Sequence[str], urls: Sequence[str]) -> tuple[Takedown, list[Path]]:
    """Takes links down, by themselves or by keys of their rows; see `unclip.data.takedown`.

    Curation, store and index follow. The report, and indexes of other CLIPs, go: their stages make them again. Models stay.

    Returns:
        what was taken down, and the folders of models that were trained while it was there.

    Raises:
        UnclipError: the source stage has not finished, a key is unknown, a link is none; or another run holds the root.
    """
    paths = paths_of(config)
    with exclusive(paths.root):
        finished_manifest(paths.source, "source")
        links = links_of(paths.source, keys, urls)
        before = read_marks(paths.root)
        marks = before.with_links(links)
        if marks != before:
            write_marks(paths.root, marks)
        gone = marked_rows(paths.source, marks)
        if gone:
            remove(paths.report)  # it shows pictures and captions; of a takedown that was killed the rows are still there
            for store in _folders(paths.embeddings.parent):
                remove(store / SELECTED / SHEET)
        done = erase(
            gone, paths.source, paths.shards, _folders(paths.embeddings.parent), marks, links, world=paths.world,
            curate_again=lambda: _run_again("curate", config),
        )  # fmt: skip
        _run_again("select", config)
        for index in _folders(paths.index.parent):
            if index != paths.index:
                remove(index)
        _run_again("index", config)
    trained = [*_folders(paths.clip.parent), *_folders(paths.prior.parent), *_folders(paths.decoder.parent)]
    return done, [run for run in trained if gone and (found := read_manifest(run)) is not None and not found.config.get("model")]


def _follow(config: RunConfig, paths: Paths) -> None:
    """What was made of the shards before is made again where they have changed."""
    for name in ("curate", "embed", "select"):
        manifest = read_manifest(STAGES[name].folder(paths))
        if manifest is None or not manifest.finished:
            return
        if not is_done(name, config):
            STAGES[name].run(config, paths)


def _digest_of_rows(store: Path) -> str | None:
    """What stands for the rows of a store, None where a stage has to work on it first."""
    try:
        return rows_digest(store)
    except UnclipError:
        return None


def _run_again(name: str, config: RunConfig) -> None:
    """Runs a stage that has been here and is out of date, where what it reads is finished; it is left to its turn elsewhere."""
    paths = paths_of(config)
    stage = STAGES[name]
    if read_manifest(stage.folder(paths)) is None or is_done(name, config):
        return
    try:
        stage.inputs(config, paths)
    except UnclipError:
        return
    stage.run(config, paths)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*") if path.is_dir() and not path.name.startswith("."))


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


def measure_upsamplers(config: RunConfig, *, num: int, generated: bool) -> dict[str, Any]:
    """Measures the trained upsamplers of a root alone, holding the root; see `evaluate_upsamplers`.

    Args:
        generated: whether on generated pictures too, for which prior and decoder must have been trained.

    Raises:
        UnclipError: a stage that is needed has not finished, there is no upsampler, or another run holds the root.
    """
    from unclip.evaluation.upsampler import evaluate_upsamplers

    paths, low_size = paths_of(config), config.decoder.network.unet.image_size
    with exclusive(paths.root):
        upsamplers = load_trained_upsamplers(paths.upsampler, config.upsampler, device=device_of(config))
        models = load_models(config, config.prior.kinds[0]) if generated else None
        return evaluate_upsamplers(paths, upsamplers, models, _evaluate_section(config), low_size=low_size, num=num)


def load_models(config: RunConfig, prior: PriorKind | None) -> Models:
    """The trained models of a root, for generation; without a prior text embeddings are used as image embeddings.

    Raises:
        UnclipError: a stage has not finished.
    """
    paths, device = paths_of(config), device_of(config)
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
