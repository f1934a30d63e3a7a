"""The folder of a training run: one model, one config, one set of inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unclip import checkpoint
from unclip.data.manifest import Manifest, Stage, finished_manifest, is_current, read_manifest
from unclip.files import UnclipError, fingerprint


def open_run(run: Path, stage: str, config: Any, inputs: Mapping[str, str]) -> Stage:
    """Opens a run to be worked on. A run that was trained on other inputs is moved aside first, never overwritten."""
    earlier = read_manifest(run)
    if earlier is not None:
        is_current(run, stage, config, inputs)  # refuses another config before anything is moved
        if dict(earlier.inputs) != dict(inputs):
            aside = run.with_name(f"{run.name}-on-{fingerprint(dict(earlier.inputs))[:8]}")
            if aside.exists():
                raise UnclipError(f"{run} was trained on other inputs, and {aside} holds an earlier run on the same ones; remove one of the two")
            run.rename(aside)
    return Stage(run, stage, config, inputs)


def has_all_steps(run: Path, num_steps: int) -> bool:
    """Whether a finished run was trained to its last step, and not only to a bound (max_steps, max_minutes)."""
    manifest = read_manifest(run)
    return manifest is not None and manifest.finished and int(manifest.counts["steps"]) >= num_steps


def last_checkpoint(run: Path, stage: str) -> Path:
    """The checkpoint that a finished run ended with.

    Raises:
        UnclipError: the run has not finished.
    """
    manifest: Manifest = finished_manifest(run, stage)
    folder = checkpoint.step_folder(run, int(manifest.counts["steps"]))
    if not folder.is_dir():
        raise UnclipError(f"{run} says that it ended at {folder.name}, but that folder is gone; remove {run} and train again")
    return folder
