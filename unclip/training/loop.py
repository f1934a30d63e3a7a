"""The training engine: steps, schedule, averages, checkpoints, metrics, and a resume that is exact.

Step n draws its noise from a generator seeded by (seed, n) and its batch from the loader's position n, so that a run
that was killed and started again goes through the same numbers as one that was not. A step's batch is cut into equal
chunks, one after the other in each process; the draws are cut like it, so that the loss does not depend on the cut.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from unclip import checkpoint
from unclip.data.loader import Piece
from unclip.data.stream import working
from unclip.files import UnclipError, remove_leftovers
from unclip.progress import progress
from unclip.training.config import TrainingConfig, learning_rate
from unclip.training.draws import Draws, step_seed
from unclip.training.ema import Ema
from unclip.training.metrics import Recorder, require_tracker, sum_and_count
from unclip.training.optim import make_optimizers
from unclip.training.processes import Interrupted, is_leader, num_processes
from unclip.training.shards import shard, whole
from unclip.training.snapshot import Trained, resume, warm_start, whence, write_bad_batch
from unclip.training.stop import stop_asked

CHUNK_SEEDS = 1 << 40  # apart, so that dropout differs between the chunks of a batch; no step's seed comes near

Batch = Any
Batches = Callable[[int, Piece], Iterator[Batch]]
LossFn = Callable[[nn.Module, Batch, Draws], tuple[Tensor, Mapping[str, Tensor]]]


def train(run: Path, *, model: nn.Module, kind: str, network: Mapping[str, Any], loss_fn: LossFn, batches: Batches, config: TrainingConfig) -> Path:
    """Trains a model to its last step or the config's bound, from its newest checkpoint in `run` if there is one.

    Several processes must call it with the same arguments; the first writes the files.

    Args:
        kind, network: what `config.json` of each checkpoint says, enough to build the model again.
        loss_fn: (model, chunk, draws) -> mean loss of the chunk, and further numbers to record: scalars that are means
            over the chunk too, or (2,) a sum and how many it is of. It calls the model it is given once.
        batches: from a number of steps on, this process's piece of each of the endless batches, the same for the same number:
            arrays, tensors, or anything that has a length, slices and `tensors()`, a sample a row.

    Returns:
        The folder of the last checkpoint.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; the state was saved first.
        UnclipError: the loss is not finite; the last good checkpoint stays, and the batch is kept. Or the batch can't be
            cut for so many processes, the tracker is missing, or warm_start fits not.
    """
    num_chunks = config.accumulate * num_processes()
    if config.batch_size % num_chunks:
        raise UnclipError(
            f"{kind}: batch_size {config.batch_size} can't be cut into {num_chunks} equal pieces"
            f" ({num_processes()} processes, accumulate {config.accumulate}); choose numbers that divide it"
        )
    require_tracker(config.tracker)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    accelerator = _make_accelerator(config)
    is_sharded = config.parallel == "fsdp" and num_processes() > 1
    model = model.to(accelerator.device)
    if is_sharded:
        shard(model, accelerator.device, num_processes())
    adamw = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": config.betas, "eps": config.adam_eps}
    trained = Trained(model, make_optimizers(model, config.optimizer, **adamw), Ema(model, config.ema_decays))
    start, rows = _open(run, trained, kind, network, config)
    prepared = accelerator.prepare_model(model, evaluation_mode=is_sharded)  # which leaves out DDP
    if config.compile:
        prepared = torch.compile(prepared)
    recorder = Recorder(run, config.tracker, rows, kind=kind, start=start) if is_leader() else None
    last = min(config.num_steps, start + config.max_steps) if config.max_steps else config.num_steps

    def save(done: int) -> None:
        metrics = run if recorder is None else recorder.write()
        content = {"kind": kind, "network": dict(network)}
        trained.write(run, done, config=content, samples=done * config.batch_size, metrics=metrics)

    own = Piece(accelerator.process_index, num_processes())
    with stop_asked() as asked, progress(kind, last, unit="step", done=start) as bar, working(batches(start, own)) as stream:
        began = saved = time.monotonic()
        prepared.train()
        done = start
        for step in range(start, last):
            rate = learning_rate(config, step)
            for group in (group for optimizer in trained.optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            batch = next(stream)
            mean_loss, numbers = _accumulate_gradients(accelerator, prepared, loss_fn, batch, step, config)
            norm = float(whole(nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)))
            now = time.monotonic()
            is_due = is_leader() and now - saved > config.checkpoint_seconds
            is_over = is_leader() and 0.0 < config.max_minutes * 60 < now - began
            loss, stops, saves, overs = _summed([mean_loss / num_processes(), float(asked()), float(is_due), float(is_over)], accelerator.device)
            if not math.isfinite(loss) or not math.isfinite(norm):
                _refuse(run, batch, kind, step, loss, norm, config)
            for optimizer in trained.optimizers:
                optimizer.step()
            trained.ema.update(model, step + 1)
            done = step + 1
            is_last = done == last or overs > 0
            if done % config.log_every == 0 or is_last:
                means = _means(numbers, accelerator.device)
                if recorder is not None:
                    recorder.add(done, {"loss": loss, "learning_rate": rate, "gradient_norm": norm, **means})
                bar.advance(0, note=f"loss {loss:.4f}")
            bar.advance()
            if is_last:
                break
            if stops:
                save(done)
                raise Interrupted(f"{kind}: stopped after step {done} of {config.num_steps}, which is saved; run the same command to go on")
            if saves:
                save(done)
                saved = time.monotonic()
        if done > start:
            save(done)
    if recorder is not None:
        recorder.close()
    return checkpoint.step_folder(run, done)


def _make_accelerator(config: TrainingConfig) -> Accelerator:
    AcceleratorState._reset_state()  # accelerate keeps the precision of the process's first training for all others
    on_cpu = config.device == "cpu" or (num_processes() > 1 and not torch.cuda.is_available())  # unasked, accelerate shares no work between CPUs
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=config.precision)
    assert accelerator.num_processes == num_processes()
    return accelerator


def _open(run: Path, trained: Trained, kind: str, network: Mapping[str, Any], config: TrainingConfig) -> tuple[int, list[Any]]:
    """Makes the run's folder, and loads what the run goes on from: the steps done, and the metrics so far."""
    if is_leader():
        run.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run)
    if num_processes() > 1:
        dist.barrier()
    start, rows = resume(run, trained)
    if start == 0 and config.warm_start:
        warm_start(whence(run, config.warm_start), trained, kind=kind, network=network)
    return start, rows


def _accumulate_gradients(
    accelerator: Accelerator, prepared: nn.Module, loss_fn: LossFn, batch: Batch, step: int, config: TrainingConfig
) -> tuple[float, dict[str, Tensor]]:
    """Leaves the batch's gradient in the parameters; the mean loss of this process's chunks, and sum and count of each further number."""
    num_chunks = config.accumulate * num_processes()
    rows = len(batch) // config.accumulate
    prepared.zero_grad(set_to_none=True)
    losses: list[Tensor] = []
    numbers: dict[str, Tensor] = {}
    for piece in range(config.accumulate):
        chunk = accelerator.process_index * config.accumulate + piece
        torch.manual_seed(step_seed(config.seed, step) + chunk * CHUNK_SEEDS)  # dropout inside the network
        with _gradients_stay_here(prepared) if piece + 1 < config.accumulate else nullcontext():
            draws = Draws(config.seed, step, chunk=chunk, num_chunks=num_chunks)
            loss, more = loss_fn(prepared, batch[piece * rows : (piece + 1) * rows], draws)
            accelerator.backward(loss / config.accumulate)
        losses.append(loss.detach())
        for name, value in more.items():
            numbers[name] = numbers.get(name, 0.0) + sum_and_count(value)
    return torch.stack(losses).mean().item(), numbers


def _gradients_stay_here(prepared: nn.Module) -> AbstractContextManager[None]:
    """DDP averages once a step; sharded gradients have no place of their own to wait in, and are averaged each time."""
    stay: Callable[[], AbstractContextManager[None]] = getattr(prepared, "no_sync", nullcontext)
    return stay()


def _summed(values: list[float], device: torch.device) -> list[float]:
    """Numbers added up over all processes."""
    if num_processes() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    found: list[float] = sums.tolist()
    return found


def _means(numbers: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    """Means over the batch; not a number where nothing was averaged."""
    if not numbers:
        return {}
    pairs = _summed(torch.stack(list(numbers.values())).flatten().tolist(), device)
    return {name: total / count if count else math.nan for name, total, count in zip(numbers, pairs[::2], pairs[1::2], strict=True)}


def _refuse(run: Path, batch: Batch, kind: str, step: int, loss: float, norm: float, config: TrainingConfig) -> None:
    path = write_bad_batch(run, batch, seed=config.seed, step=step, loss=loss, gradient_norm=norm)
    raise UnclipError(
        f"{kind}: the loss of step {step + 1} is {loss}, its gradient norm {norm}; lower learning_rate, now {config.learning_rate}. The batch is in {path}"
    )
