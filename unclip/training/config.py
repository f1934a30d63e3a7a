"""How a model is trained: the settings, and the learning rate that follows from them."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from unclip.data.manifest import runtime
from unclip.training.optim import OptimizerName

Section = TypeVar("Section")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        num_steps, batch_size: optimizer steps, and samples in each, over all processes.
        learning_rate, warmup_steps, decay: peak rate, linear rise, and what follows to the end.
        optimizer: "muon" steps matrices and kernels by Muon, the rest by AdamW.
        weight_decay, betas, adam_eps: AdamW's; vectors are not decayed.
        grad_clip: largest norm of the gradient.
        ema_decays: averages of the weights that are kept at once; the first is used for sampling.
        warm_start: a checkpoint, or a run's folder, of the same kind and network whose averaged weights are begun with; one
            that begins with ".." is looked for from the run's own folder.
        precision: "bf16" runs the network under autocast.
        accumulate: pieces that a process takes its share of the batch in, one after the other.
        parallel: what several processes share: "ddp" the batch, "fsdp" also weights, averages and the optimizer's state.
        compile: whether the network goes through torch.compile.
        device: "auto" takes a GPU where there is one.
        max_steps, max_minutes: bounds of one call, after which it ends in good order; 0 is none.
    """

    __pydantic_config__ = {"extra": "forbid"}

    num_steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    decay: Literal["cosine", "constant"] = "cosine"
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    adam_eps: float = 1e-8
    grad_clip: float = 1.0
    ema_decays: tuple[float, ...] = (0.999,)
    warm_start: str = ""
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    accumulate: int = runtime(1)
    parallel: Literal["ddp", "fsdp"] = runtime("ddp")
    compile: bool = runtime(False)
    device: Literal["auto", "cpu"] = runtime("auto")
    num_threads: int = runtime(0)
    max_steps: int = runtime(0)
    max_minutes: float = runtime(0.0)
    log_every: int = runtime(10)
    checkpoint_seconds: float = runtime(60.0)
    tracker: Literal["tensorboard", "wandb", "none"] = runtime("tensorboard")

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_steps", "max_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size {self.batch_size}, got {self.accumulate}")
        if not self.ema_decays or len(set(self.ema_decays)) < len(self.ema_decays) or not all(0.0 <= decay < 1.0 for decay in self.ema_decays):
            raise ValueError(f"ema_decays must name at least one decay in [0, 1), each once, got {list(self.ema_decays)}")
        if self.parallel == "fsdp" and self.optimizer == "muon":
            raise ValueError("parallel 'fsdp' cuts the matrices that Muon has to see whole; expected optimizer 'adamw', got 'muon'")


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then a half cosine down to 0, or constant."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def bounded(section: Section, *, max_steps: int, max_minutes: float) -> Section:
    """A stage's section with these bounds on every training in it; 0 leaves what it says itself."""
    bounds = {name: value for name, value in {"max_steps": max_steps, "max_minutes": max_minutes}.items() if value}
    if not bounds:
        return section
    return _with_bounds(section, bounds)


def _with_bounds(section: Any, bounds: dict[str, float]) -> Any:
    if isinstance(section, TrainingConfig):
        return dataclasses.replace(section, **bounds)  # type: ignore[arg-type]
    inner = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return dataclasses.replace(section, **{name: _with_bounds(value, bounds) for name, value in inner.items() if dataclasses.is_dataclass(value)})
