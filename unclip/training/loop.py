"""The training engine: steps, schedule, EMA, checkpoints, metrics, and a resume that is exact.

Step n draws its noise from a generator seeded by (seed, n) and its batch from the loader's position n, so that a run
that was killed and started again goes through the same numbers as one that was not.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from unclip import checkpoint
from unclip.data.manifest import runtime
from unclip.files import UnclipError, remove_leftovers
from unclip.progress import progress
from unclip.training.draws import Draws
from unclip.training.ema import Ema
from unclip.training.optim import OptimizerName, make_optimizers

KEPT_CHECKPOINTS = 2
METRICS = "metrics.parquet"

Batch = Any
LossFn = Callable[[nn.Module, Batch, Draws], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        num_steps, batch_size: optimizer steps, and samples in each.
        learning_rate, warmup_steps, decay: peak rate, linear rise, and what follows to the end.
        optimizer: "muon" steps matrices and kernels by Muon, the rest by AdamW.
        weight_decay, betas, adam_eps: AdamW's; vectors are not decayed.
        grad_clip: largest norm of the gradient.
        ema_decay: of the weights used for sampling.
        precision: "bf16" runs the network under autocast.
        device: "auto" takes a GPU where there is one.
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
    ema_decay: float = 0.999
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    device: Literal["auto", "cpu"] = runtime("auto")
    num_threads: int = runtime(0)
    log_every: int = runtime(10)
    checkpoint_seconds: float = runtime(60.0)

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


class Interrupted(UnclipError):
    """Training was asked to stop; its state is on disk."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then a half cosine down to 0, or constant."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def train(
    run: Path, *, model: nn.Module, kind: str, network: Mapping[str, Any], loss_fn: LossFn, batches: Callable[[int], Iterator[Batch]], config: TrainingConfig
) -> Path:
    """Trains a model to its last step, from its newest checkpoint in `run` if there is one.

    Args:
        kind, network: what `config.json` of each checkpoint says, enough to build the model again.
        loss_fn: (model, batch, draws) -> loss and further numbers to record.
        batches: the endless batches from a number of steps on, the same for the same number.

    Returns:
        The folder of the last checkpoint.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; the state was saved first.
        UnclipError: the loss is not finite; the last good checkpoint stays.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=config.precision)
    model = model.to(accelerator.device)
    optimizers = make_optimizers(model, config.optimizer, lr=config.learning_rate, weight_decay=config.weight_decay, betas=config.betas, eps=config.adam_eps)
    ema = Ema(model, config.ema_decay)
    start, metrics = _resume(run, model, optimizers, ema)
    prepared, *optimizers = accelerator.prepare(model, *optimizers)
    content = {"kind": kind, "network": dict(network)}
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=start)
    kept: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    def save(step: int) -> None:
        for at, loss, more in kept:
            row = {"step": at, "loss": loss.item(), "learning_rate": learning_rate(config, at - 1), **{name: value.item() for name, value in more.items()}}
            metrics.append(row)
            for name, value in row.items():
                writer.add_scalar(name, value, at)
        kept.clear()
        writer.flush()
        pq.write_table(pa.Table.from_pylist(metrics), run / METRICS)
        state = {"step": step, "samples": step * config.batch_size}
        plain = accelerator.unwrap_model(prepared)
        checkpoint.write_checkpoint(
            checkpoint.step_folder(run, step),
            config=content,
            model=plain.state_dict(),
            ema=ema.state,
            optimizer={"optimizers": [optimizer.state_dict() for optimizer in optimizers]},
            state=state,
            extra=run / METRICS,
        )
        checkpoint.keep_checkpoints(run, KEPT_CHECKPOINTS)

    with _stop_asked() as asked, progress(kind, config.num_steps, unit="step", done=start) as bar:
        stream = batches(start)
        saved = time.monotonic()
        prepared.train()
        for step in range(start, config.num_steps):
            torch.manual_seed(config.seed * 1_000_003 + step)  # dropout inside the network
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = learning_rate(config, step)
            loss, more = loss_fn(prepared, next(stream), Draws(config.seed, step))
            prepared.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(prepared.parameters(), config.grad_clip)
            if not torch.isfinite(loss) or not torch.isfinite(norm):
                raise UnclipError(
                    f"{kind}: the loss of step {step + 1} is {loss.item()}, its gradient norm {norm.item()}; lower learning_rate, now {config.learning_rate}"
                )
            for optimizer in optimizers:
                optimizer.step()
            ema.update(accelerator.unwrap_model(prepared), step + 1)
            if (step + 1) % config.log_every == 0 or step + 1 == config.num_steps:
                kept.append((step + 1, loss.detach(), {name: value.detach() for name, value in more.items()}))
                bar.advance(0, note=f"loss {loss.item():.4f}")
            bar.advance()
            if asked and step + 1 < config.num_steps:
                save(step + 1)
                raise Interrupted(f"{kind}: stopped after step {step + 1} of {config.num_steps}, which is saved; run the same command to go on")
            if time.monotonic() - saved > config.checkpoint_seconds and step + 1 < config.num_steps:
                save(step + 1)
                saved = time.monotonic()
        if start < config.num_steps:
            save(config.num_steps)
    writer.close()
    return checkpoint.step_folder(run, config.num_steps)


def _resume(run: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], ema: Ema) -> tuple[int, list[dict[str, Any]]]:
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    steps = checkpoint.steps_of(run)
    if not steps:
        return 0, []
    folder = checkpoint.step_folder(run, steps[-1])
    checkpoint.load_weights(model, folder / checkpoint.MODEL)
    ema.load(checkpoint.read_tensors(folder / checkpoint.EMA))
    for optimizer, state in zip(optimizers, checkpoint.read_optimizer(folder)["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return steps[-1], pq.read_table(folder / METRICS).to_pylist()


@contextmanager
def _stop_asked() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or SIGINT comes; a second one kills at once."""
    asked: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def remember(number: int, _frame: Any) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, remember)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
