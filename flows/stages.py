"""The task that works on one stage, as a child process where it takes long, and a flow for each model and for the report alone."""

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
from unclip.files import fingerprint, write_json
from unclip.models import paths_of
from unclip.stages import STAGES, bring_records, is_done, result_of, run_stage
from unclip.training.together import ALONE, Together
from unclip.versions import in_use

Counts = dict[str, Any]

HERE = ("curate", "select")  # no model is loaded: on most roots a child would take longer to start than they take
TRAINED = ("prior", "decoder", "upsampler")  # the commands of `unclip train`
RETRY_SECONDS = (30.0, 120.0, 480.0)  # a network may be back by then


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def work_on(name: str, config: RunConfig, together: Together = ALONE) -> Counts:
    """Does what is not yet done of a stage, and returns its counts.

    Args:
        together: of a stage that trains, the processes that do; on several machines each has a run of its own.

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
    if name in HERE:
        run_stage(name, config)
        return dict(result_of(name, config).counts)
    file = asked_file(name, config)
    write_json(file, as_dict(config))
    try:
        run_child([*command_of(name, file), *together.arguments()], name=name, say=None if sys.stderr.isatty() else say)
    finally:
        if together == ALONE:  # other machines may not have read it yet
            file.unlink(missing_ok=True)
    return dict(result_of(name, config).counts)


def asked_file(name: str, config: RunConfig) -> Path:
    """Where a stage finds the config that it is asked to work with: named by what it holds, so that no two runs mistake each other's,
    and machines that train together have one command.
    """
    return paths_of(config).root / f".{name}-{fingerprint(as_dict(config))}.json"


def command_of(name: str, file: Path) -> list[str]:
    """The command line that works on a stage with the config in a file."""
    return [sys.executable, "-m", "unclip", *(["train"] if name in TRAINED else []), name, "--config", str(file)]


def is_worth_retrying(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage failed in a way that time may cure: neither a user's error nor a stop that someone asked for."""
    return isinstance(state.result(raise_on_failure=False), StageError)


work_on_network = work_on.with_options(
    retries=len(RETRY_SECONDS), retry_delay_seconds=list(RETRY_SECONDS), retry_jitter_factor=0.2, retry_condition_fn=is_worth_retrying
)


@flow(name="prior", persist_result=False)
def prior(config: RunConfig, together: Together = ALONE) -> Counts:
    """Trains the prior: from a caption to a CLIP image embedding.

    Args:
        config: the whole run; what is left out has its default.
        together: how many processes share the training; with several machines each has a run with the same parameters.
    """
    return _shown("prior", work_on("prior", in_use(config), together))


@flow(name="decoder", persist_result=False)
def decoder(config: RunConfig, together: Together = ALONE) -> Counts:
    """Trains the decoder: from a CLIP image embedding and the caption to a picture.

    Args:
        config: the whole run; what is left out has its default.
        together: how many processes share the training; with several machines each has a run with the same parameters.
    """
    return _shown("decoder", work_on("decoder", in_use(config), together))


@flow(name="upsampler", persist_result=False)
def upsampler(config: RunConfig, together: Together = ALONE) -> Counts:
    """Trains the upsamplers: from a small picture to a large one.

    Args:
        config: the whole run; what is left out has its default.
        together: how many processes share the training; with several machines each has a run with the same parameters.
    """
    return _shown("upsampler", work_on("upsampler", in_use(config), together))


@flow(name="evaluate", persist_result=False)
def evaluate(config: RunConfig) -> Counts:
    """Generates from held-out captions, measures, and writes the report.

    Args:
        config: the whole run; what is left out has its default.
    """
    counts = _shown("evaluate", work_on("evaluate", in_use(config)))
    show_report(paths_of(in_use(config)).report)
    return counts


def _shown(name: str, counts: Counts) -> Counts:
    show_counts({name: counts})
    return counts
