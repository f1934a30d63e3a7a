"""The prior stage: every kind of prior that a run wants, on cached embeddings, each in a folder of its own. No CLIP is loaded."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unclip import checkpoint
from unclip.data.manifest import Manifest, Stage, finished_manifest, is_current, read_manifest, runtime
from unclip.data.store import iter_batches, rows_digest
from unclip.files import fingerprint
from unclip.layout import require_plain_name
from unclip.prior.condition import PRIOR_KINDS, Prior, PriorKind
from unclip.prior.kinds import load_prior
from unclip.training.prior_autoregressive import AutoregressivePriorTraining, train_autoregressive_prior
from unclip.training.prior_diffusion import DiffusionPriorTraining, train_diffusion_prior
from unclip.training.prior_linear import LinearPriorTraining, train_linear_prior
from unclip.training.prior_regression import RegressionPriorTraining, train_regression_prior
from unclip.training.processes import together
from unclip.training.run import has_all_steps, last_checkpoint, open_run

STAGE = "prior"


@dataclass(frozen=True, kw_only=True)
class PriorConfig(DiffusionPriorTraining):
    """The priors of a run. The settings of the diffusion prior stand here, those of the others in sections of their own.

    Attributes:
        run: name of the run's folder, which holds a folder for each kind.
        kinds: which are trained; pictures are made with the first, the others are measured beside it.
    """

    run: str = "main"
    kinds: tuple[PriorKind, ...] = runtime(("diffusion", "linear"))
    autoregressive: AutoregressivePriorTraining = field(default_factory=AutoregressivePriorTraining)
    regression: RegressionPriorTraining = field(default_factory=RegressionPriorTraining)
    linear: LinearPriorTraining = field(default_factory=LinearPriorTraining)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_plain_name("run", self.run)
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds must name at least one kind, each once, got {list(self.kinds)}")


@dataclass(frozen=True, kw_only=True)
class PriorFamily:
    """What a run of several kinds is known by; each kind's own folder holds its settings."""

    run: str


def family_of(config: PriorConfig) -> PriorFamily:
    """The identity of a run."""
    return PriorFamily(run=config.run)


def section_of(config: PriorConfig, kind: PriorKind) -> Any:
    """The settings that decide what a prior of this kind becomes."""
    if kind == "diffusion":
        return DiffusionPriorTraining(**{f.name: getattr(config, f.name) for f in dataclasses.fields(DiffusionPriorTraining)})
    return getattr(config, kind)


# (store, folder of the kind, its section) -> the folder that holds the weights
TRAINERS: Mapping[PriorKind, Callable[[Path, Path, Any], Path]] = {
    "diffusion": train_diffusion_prior,
    "autoregressive": train_autoregressive_prior,
    "regression": train_regression_prior,
    "linear": train_linear_prior,
}


def prior_inputs(store: Path) -> dict[str, str]:
    """What the stage would read today."""
    return {"embeddings": rows_digest(store)}


def priors_are_current(store: Path, run: Path, config: PriorConfig) -> bool:
    """Whether every kind that is wanted has been trained on this store.

    Raises:
        UnclipError: one was trained with other settings.
    """
    inputs = prior_inputs(store)
    done = [_is_done(run / kind, kind, section_of(config, kind), inputs) for kind in config.kinds]  # all are looked at, and another config refused
    return all(done)


def train_priors(store: Path, run: Path, config: PriorConfig) -> Manifest:
    """Trains the kinds of prior that are not yet done. Kinds that are trained by steps are trained by all processes together.

    Raises:
        UnclipError: the store has no text states, or captions longer than a network takes; or a kind was trained with
            other settings.
    """
    inputs = prior_inputs(store)
    stage = Stage(run, STAGE, family_of(config), inputs)
    for kind in config.kinds:
        folder, section = run / kind, section_of(config, kind)
        if _is_done(folder, kind, section, inputs):
            continue
        child = open_run(folder, _stage_of(kind), section, inputs)
        weights = together(TRAINERS[kind], store, folder, section) if hasattr(section, "training") else TRAINERS[kind](store, folder, section)
        child.finish(counts={"steps": checkpoint.step_of(weights)}, digest=checkpoint.digest(weights))
    rows = sum(int((batch["split"] == "train").sum()) for batch in iter_batches(store, ["split"]))
    finished = {kind: manifest for kind in PRIOR_KINDS if (manifest := _finished(run, kind, inputs)) is not None}
    steps = {kind: manifest.counts["steps"] for kind, manifest in finished.items()}
    counts = {"steps": sum(steps.values()), "rows_in": rows, "kept": rows, "rejected": {}, "kinds": steps}
    return stage.finish(counts=counts, digest=fingerprint({kind: manifest.digest for kind, manifest in finished.items()}))


def trained_priors(run: Path, *, device: str = "cpu") -> dict[PriorKind, Prior]:
    """All priors of a finished run, for sampling, in the order of `PRIOR_KINDS`.

    Raises:
        UnclipError: the run has not finished.
    """
    inputs = finished_manifest(run, STAGE).inputs
    found = [kind for kind in PRIOR_KINDS if _finished(run, kind, inputs) is not None]
    return {kind: load_trained_prior(run, kind, device=device) for kind in found}


def load_trained_prior(run: Path, kind: PriorKind, *, device: str = "cpu") -> Prior:
    """One prior of a run, for sampling.

    Raises:
        UnclipError: that kind has not been trained.
    """
    return load_prior(last_checkpoint(run / kind, _stage_of(kind)), kind, device=device)


def _stage_of(kind: PriorKind) -> str:
    return f"prior-{kind}"


def _num_steps(section: Any) -> int:
    """The steps that a kind is trained for; one that is fitted in one pass has no training section."""
    return section.training.num_steps if hasattr(section, "training") else 1


def _is_done(folder: Path, kind: PriorKind, section: Any, inputs: Mapping[str, str]) -> bool:
    return is_current(folder, _stage_of(kind), section, inputs) and has_all_steps(folder, _num_steps(section))


def _finished(run: Path, kind: PriorKind, inputs: Mapping[str, str]) -> Manifest | None:
    manifest = read_manifest(run / kind)
    return manifest if manifest is not None and manifest.finished and dict(manifest.inputs) == dict(inputs) else None
