"""One flow a stage, and the task that they share with the whole pipeline: most are a child process that works on the data root."""

import logging
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from flows.artifacts import Progress, show_counts, show_report
from flows.process import StageError, run_child
from unclip.config import RunConfig, as_dict
from unclip.files import write_json
from unclip.models import paths_of
from unclip.stages import STAGES, bring_records, is_done, result_of, run_stage

Counts = dict[str, Any]

ASKED = ".stage.json"  # under the root: the config that a stage is asked to work with
HERE = ("curate", "select")  # no model is loaded: on most roots a child would take longer to start than they take
TRAINED = ("prior", "decoder", "upsampler")  # the commands of `unclip train`
RETRY_SECONDS = (30.0, 120.0, 480.0)  # a network may be back by then


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def work_on(name: str, config: RunConfig) -> Counts:
    """Does what is not yet done of a stage, and returns its counts.

    Raises:
        UnclipError: something that the user can put right.
        StageError, StoppedError: see `run_child`.
    """
    logger, progress = get_run_logger(), Progress(name)
    folder = STAGES[name].folder(paths_of(config))
    bring_records(config)

    def say(line: str) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info(line)
        else:
            print(line, file=sys.stderr, flush=True)
        progress.read(line)

    if why := STAGES[name].idle(config):
        logger.info("%s has nothing to do, because %s", name, why)
        return dict(result_of(name, config).counts)
    if is_done(name, config):
        logger.info("%s is done already: %s", name, folder)
        return dict(result_of(name, config).counts)
    file = paths_of(config).root / ASKED
    write_json(file, as_dict(config))
    if name in HERE:
        run_stage(name, config)
    else:
        run_child(command_of(name, file), name=name, say=None if sys.stderr.isatty() else say)
    return dict(result_of(name, config).counts)


def command_of(name: str, file: Path) -> list[str]:
    """The command line that works on a stage with the config in a file."""
    return [sys.executable, "-m", "unclip", *(["train"] if name in TRAINED else []), name, "--config", str(file)]


def is_worth_retrying(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage failed in a way that time may cure: neither a user's error nor a stop that someone asked for."""
    return isinstance(state.result(raise_on_failure=False), StageError)


work_on_network = work_on.with_options(
    retries=len(RETRY_SECONDS), retry_delay_seconds=list(RETRY_SECONDS), retry_jitter_factor=0.2, retry_condition_fn=is_worth_retrying
)


@flow(name="source", persist_result=False)
def source(config: RunConfig) -> Counts:
    """Reads the table or folder of links and captions, and rejects what can't be used.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("source", work_on("source", config))


@flow(name="download", persist_result=False)
def download(config: RunConfig) -> Counts:
    """Fetches the pictures into WebDataset shards.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("download", work_on_network("download", config))


@flow(name="curate", persist_result=False)
def curate(config: RunConfig) -> Counts:
    """Drops rows by rules that need no model: duplicates, small pictures, captions that say nothing.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("curate", work_on("curate", config))


@flow(name="clip", persist_result=False)
def clip(config: RunConfig) -> Counts:
    """Trains a small CLIP on the shards, or takes one from open_clip.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("clip", work_on("clip", config))


@flow(name="embed", persist_result=False)
def embed(config: RunConfig) -> Counts:
    """Embeds pictures and captions into the Parquet store.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("embed", work_on("embed", config))


@flow(name="select", persist_result=False)
def select(config: RunConfig) -> Counts:
    """Drops rows by their embeddings: unlike pairs, near duplicates, leaks from training to evaluation.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("select", work_on("select", config))


@flow(name="index", persist_result=False)
def index(config: RunConfig) -> Counts:
    """Builds the FAISS index and measures its recall.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("index", work_on("index", config))


@flow(name="prior", persist_result=False)
def prior(config: RunConfig) -> Counts:
    """Trains the prior: from a caption to a CLIP image embedding.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("prior", work_on("prior", config))


@flow(name="decoder", persist_result=False)
def decoder(config: RunConfig) -> Counts:
    """Trains the decoder: from a CLIP image embedding and the caption to a picture.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("decoder", work_on("decoder", config))


@flow(name="upsampler", persist_result=False)
def upsampler(config: RunConfig) -> Counts:
    """Trains the upsamplers: from a small picture to a large one.

    Args:
        config: the whole run; what is left out has its default.
    """
    return _shown("upsampler", work_on("upsampler", config))


@flow(name="evaluate", persist_result=False)
def evaluate(config: RunConfig) -> Counts:
    """Generates from held-out captions, measures, and writes the report.

    Args:
        config: the whole run; what is left out has its default.
    """
    counts = _shown("evaluate", work_on("evaluate", config))
    show_report(paths_of(config).report)
    return counts


def _shown(name: str, counts: Counts) -> Counts:
    show_counts({name: counts})
    return counts
