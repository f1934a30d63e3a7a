"""What is done with a finished root beside its stages: verifying and repairing its data, taking rows down, measuring models alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from unclip.clip import load_clip
from unclip.config import RunConfig
from unclip.data.manifest import finished_manifest, read_manifest
from unclip.data.marks import read_marks, write_marks
from unclip.data.source import GONE_TABLE
from unclip.data.takedown import Takedown, erase, links_of, marked_rows
from unclip.data.verify import Fault, discard, verify
from unclip.evaluation.duplicates import SHEET
from unclip.files import UnclipError, remove
from unclip.layout import SELECTED, Paths
from unclip.models import device_of, load_models, paths_of
from unclip.roots import bring_down, holding
from unclip.stages import STAGES, evaluate_section, is_done
from unclip.training.prior import trained_priors
from unclip.training.upsampler import load_trained_upsamplers


def verify_data(config: RunConfig) -> list[Fault]:
    """What is wrong with the shards and the embedding store of a root; see `verify`.

    Raises:
        UnclipError: a stage has not finished, or another run holds the root.
    """
    paths = paths_of(config)
    with holding(config.root, check=False):  # what is broken up there is to be found
        return verify(paths.shards, paths.embeddings, paths.clip)


def repair_data(config: RunConfig) -> list[Fault]:
    """Makes again the shards and parts that are at fault, and no others; returns what was wrong.

    Raises:
        UnclipError: a stage has not finished, another run holds the root, or a fault is still there afterwards.
    """
    paths = paths_of(config)
    with holding(config.root, check=False):
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
    with holding(config.root):
        finished_manifest(paths.source, "source")
        links = links_of(paths.source, keys, urls)
        before = read_marks(paths.root)
        marks = before.with_links(links)
        if marks != before:
            write_marks(paths.root, marks)
        gone = marked_rows(paths.source, marks)
        reports = paths.report.parent  # every version's
        discarded = [folder for folder in (reports, *_other_indexes(paths)) if folder.exists() and (gone or folder != reports)]
        if gone:
            remove(reports)  # they show pictures and captions; of a takedown that was killed the rows are still there
            for store in _folders(paths.embeddings.parent):
                remove(store / SELECTED / SHEET)
        done = erase(
            gone, paths.source, paths.shards, _folders(paths.embeddings.parent), marks, links, world=paths.world,
            curate_again=lambda: _run_again("curate", config),
        )  # fmt: skip
        _run_again("select", config)
        for index in _other_indexes(paths):
            remove(index)
        _run_again("index", config)
    done.discarded = discarded
    trained = [run for folder in (paths.clip, paths.prior, paths.decoder, paths.upsampler) for run in _folders(folder.parent)]
    return done, [run for run in trained if gone and (found := read_manifest(run)) is not None and not found.config.get("model")]


def take_down_gone(config: RunConfig) -> Takedown | None:
    """Takes down what the source stage found to have gone, where the config wants it; None where there is nothing.

    Raises:
        UnclipError: another run holds the root.
    """
    gone = paths_of(config).source / GONE_TABLE
    if not config.source.follow_removals:
        return None
    bring_down(config.root, ("source",))
    if not gone.is_file():
        return None
    done, _ = remove_data(config, keys=(), urls=pq.read_table(gone)["url"].to_pylist())
    remove(gone)  # only now: a kill before does it again, and finds it done
    return done


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


def _other_indexes(paths: Paths) -> list[Path]:
    """The indexes of other CLIPs than the config's, whose stages need their own configs."""
    return [index for index in _folders(paths.index.parent) if index != paths.index]


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*") if path.is_dir() and not path.name.startswith("."))


def measure_priors(config: RunConfig) -> dict[str, Any]:
    """Measures the trained priors of a root alone, holding the root; see `evaluate_priors`. No decoder is needed.

    Raises:
        UnclipError: a stage before the prior, or the prior, has not finished; or another run holds the root.
    """
    from unclip.evaluation.prior_report import evaluate_priors

    paths, device = paths_of(config), device_of(config)
    with holding(config.root):
        finished_manifest(paths.clip, "clip")
        priors = trained_priors(paths.prior, device=device)
        return evaluate_priors(paths, load_clip(paths.clip, device=device), priors, evaluate_section(config))


def measure_upsamplers(config: RunConfig, *, num: int, generated: bool) -> dict[str, Any]:
    """Measures the trained upsamplers of a root alone, holding the root; see `evaluate_upsamplers`.

    Args:
        generated: whether on generated pictures too, for which prior and decoder must have been trained.

    Raises:
        UnclipError: a stage that is needed has not finished, there is no upsampler, or another run holds the root.
    """
    from unclip.evaluation.upsampler import evaluate_upsamplers

    paths, low_size = paths_of(config), config.decoder.network.unet.image_size
    with holding(config.root):
        upsamplers = load_trained_upsamplers(paths.upsampler, config.upsampler, device=device_of(config))
        models = load_models(config, config.prior.kinds[0]) if generated else None
        return evaluate_upsamplers(paths, upsamplers, models, evaluate_section(config), low_size=low_size, num=num)
