"""The scheduler's config of diffusers: what the network predicts, and the noise it was trained with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip.diffusion.process import Prediction
from unclip.diffusion.schedule import LINEAR_BETAS, ScheduleName
from unclip.files import UnclipError, read_json, write_json

CONFIG = "scheduler_config.json"
MAX_TRAIN_STEPS = 100_000
PREDICTIONS: Mapping[Prediction, str] = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}
SCHEDULES: Mapping[ScheduleName, str] = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {  # diffusers' own, for what a config leaves out
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"},
    "DDPMScheduler": {"beta_schedule": "linear", "prediction_type": "epsilon", "beta_start": 1e-4, "beta_end": 0.02},
}


@dataclass(frozen=True, kw_only=True)
class Noising:
    """What a scheduler's config says of a model: x0 is kept in [-clamp, clamp]."""

    prediction: Prediction
    schedule: ScheduleName
    num_train_steps: int
    clamp: float


def linear_betas(num_train_steps: int) -> tuple[float, float]:
    """First and last beta of our linear schedule."""
    scale = 1000 / num_train_steps
    return scale * LINEAR_BETAS[0], scale * LINEAR_BETAS[1]


def write_scheduler(folder: Path, noising: Noising, *, learned_variance: bool = False) -> None:
    """Writes a DDPMScheduler's config into a folder that does not exist yet."""
    folder.mkdir(parents=True)
    content: dict[str, Any] = {
        "_class_name": "DDPMScheduler", "num_train_timesteps": noising.num_train_steps, "beta_schedule": SCHEDULES[noising.schedule],
        "prediction_type": PREDICTIONS[noising.prediction], "timestep_spacing": "linspace", "clip_sample": True, "clip_sample_range": noising.clamp,
        "variance_type": "learned_range" if learned_variance else "fixed_small",
    }  # fmt: skip
    if noising.schedule == "linear":
        content["beta_start"], content["beta_end"] = linear_betas(noising.num_train_steps)
    write_json(folder / CONFIG, content)


def read_scheduler(folder: Path) -> Noising:
    """Reads the config of a DDPMScheduler or an UnCLIPScheduler.

    Raises:
        UnclipError: there is none, or it says what ours has no counterpart for.
    """
    path = folder / CONFIG
    config = read_json(path)
    if not isinstance(config, dict) or config.get("_class_name") not in DEFAULTS:
        raise UnclipError(f"expected one of {', '.join(DEFAULTS)} in {path}, which says what the network predicts; got {config!r:.100}")
    config = {**DEFAULTS[config["_class_name"]], **config}
    prediction = next((ours for ours, theirs in PREDICTIONS.items() if theirs == config["prediction_type"]), None)
    schedule = next((ours for ours, theirs in SCHEDULES.items() if theirs == config["beta_schedule"]), None)
    if prediction is None or schedule is None:
        expected = f"one of {', '.join(PREDICTIONS.values())} and one of {', '.join(SCHEDULES.values())}"
        raise UnclipError(
            f"expected prediction_type and beta_schedule in {path} to be {expected}, got {config['prediction_type']!r}, {config['beta_schedule']!r}"
        )
    steps, clamp = config.get("num_train_timesteps", 1000), config.get("clip_sample_range", 1.0)
    if not isinstance(steps, int) or not 2 <= steps <= MAX_TRAIN_STEPS:
        raise UnclipError(f"num_train_timesteps in {path} must be in [2, {MAX_TRAIN_STEPS}], got {steps!r}")
    if config.get("clip_sample", True) is not True or not isinstance(clamp, int | float) or clamp <= 0:
        raise UnclipError(f"clip_sample and clip_sample_range in {path} must be true and positive, got {config.get('clip_sample')!r} and {clamp!r}")
    if schedule == "linear":
        betas = config["beta_start"], config["beta_end"]
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(betas, linear_betas(steps), strict=True)):
            raise UnclipError(f"beta_start and beta_end in {path} must be {linear_betas(steps)} for {steps} steps, got {betas}")
    return Noising(prediction=prediction, schedule=schedule, num_train_steps=steps, clamp=float(clamp))
