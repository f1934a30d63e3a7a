"""The training engine: learning, exact resume, asked to stop, refusing a loss that is not finite."""

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.data.loader import WHOLE, Piece, batches_of
from unclip.data.manifest import identity
from unclip.files import UnclipError, read_json
from unclip.training.config import TrainingConfig, bounded, learning_rate
from unclip.training.draws import Draws
from unclip.training.ema import Ema
from unclip.training.loop import train
from unclip.training.metrics import METRICS
from unclip.training.prior import PriorConfig
from unclip.training.processes import Interrupted

CONFIG = TrainingConfig(
    num_steps=12, batch_size=8, learning_rate=0.05, warmup_steps=3, log_every=1, checkpoint_seconds=1e9, device="cpu", ema_decays=(0.9, 0.5)
)
DATA = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Linear(16, 16), nn.Linear(16, 1))


def loss_fn(model: nn.Module, batch: Tensor, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
    noise = draws.normal(*batch.shape) * 0.1
    loss = (model(batch + noise) - batch.sum(1, keepdim=True)).square().mean()
    return loss, {"twice": 2 * loss.detach()}


def batches(start: int, own: Piece = WHOLE) -> Iterator[Tensor]:
    return (DATA[torch.from_numpy(rows)] for rows in batches_of(len(DATA), CONFIG.batch_size, seed=3, start=start, piece=own))


def run(folder: Path, config: TrainingConfig = CONFIG, stream=batches) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    last = train(folder, model=make_model(), kind="test", network={"any": 1}, loss_fn=loss_fn, batches=stream, config=config)
    return everything_in(last)


def everything_in(last: Path) -> dict[str, Tensor]:
    files = (checkpoint.MODEL, checkpoint.EMA, checkpoint.other_ema(0.5))
    return {f"{file} {name}": value for file in files for name, value in checkpoint.read_tensors(last / file).items()}


def losses(folder: Path) -> list[float]:
    last = checkpoint.step_folder(folder, checkpoint.steps_of(folder)[-1])
    return pq.read_table(last / METRICS)["loss"].to_pylist()


def test_it_learns_and_records_every_step(tmp_path: Path) -> None:
    run(tmp_path, TrainingConfig(**{**vars(CONFIG), "num_steps": 80}))
    found = losses(tmp_path)
    assert len(found) == 80
    assert sum(found[-10:]) < 0.3 * sum(found[:10])


@pytest.mark.parametrize(("stop_at", "optimizer"), [(1, "adamw"), (5, "muon"), (11, "adamw")])
def test_stopped_and_resumed_is_the_same_to_the_last_digit(tmp_path: Path, stop_at: int, optimizer: str) -> None:
    config = TrainingConfig(**{**vars(CONFIG), "optimizer": optimizer})
    whole = run(tmp_path / "whole", config)

    def stopping(start: int, own: Piece) -> Iterator[Tensor]:
        for number, batch in enumerate(batches(start), start):
            if number == stop_at - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(Interrupted, match=f"stopped after step {stop_at} of 12"):
        run(tmp_path / "stopped", config, stream=stopping)
    resumed = run(tmp_path / "stopped", config)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    before = run(tmp_path)

    def none_left(start: int, own: Piece) -> Iterator[Tensor]:
        assert start == CONFIG.num_steps
        yield from ()

    assert all(torch.equal(before[name], value) for name, value in run(tmp_path, stream=none_left).items())


def test_few_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, TrainingConfig(**{**vars(CONFIG), "checkpoint_seconds": 0.0}))
    assert checkpoint.steps_of(tmp_path) == [11, 12]


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    def spoilt(start: int, own: Piece) -> Iterator[Tensor]:
        for number, batch in enumerate(batches(start)):
            yield batch * float("nan") if number == 4 else batch

    with pytest.raises(UnclipError, match=r"loss of step 5 is nan.*bad-batch\.safetensors"):
        run(tmp_path, TrainingConfig(**{**vars(CONFIG), "checkpoint_seconds": 0.0}), stream=spoilt)
    assert checkpoint.steps_of(tmp_path)[-1] == 4
    assert checkpoint.read_tensors(tmp_path / "bad-batch.safetensors")["batch"].isnan().all()
    record = read_json(tmp_path / "bad-batch.json")
    assert record == {"step": 5, "seed": 0, "draws_seed": 4, "loss": "nan", "gradient_norm": "nan"}
    batch = next(batches(4))
    spoilt_draw = Draws(0, record["step"] - 1).normal(*batch.shape)
    assert torch.equal(spoilt_draw, torch.randn(batch.shape, generator=torch.Generator().manual_seed(record["draws_seed"])))


def test_a_bound_ends_in_good_order_and_the_same_call_goes_on(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    bounded_config = bounded(CONFIG, max_steps=5, max_minutes=0.0)
    for steps in (5, 10, 12):
        found = run(tmp_path / "bounded", bounded_config)
        assert checkpoint.steps_of(tmp_path / "bounded")[-1] == steps
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert losses(tmp_path / "bounded") == losses(tmp_path / "whole")


def test_minutes_are_a_bound_too(tmp_path: Path) -> None:
    run(tmp_path, TrainingConfig(**{**vars(CONFIG), "max_minutes": 1e-9}))
    assert checkpoint.steps_of(tmp_path) == [1]


def test_bounds_reach_every_training_of_a_section_and_nothing_else() -> None:
    config = PriorConfig()
    found = bounded(config, max_steps=7, max_minutes=1.5)
    assert (found.training.max_steps, found.training.max_minutes) == (7, 1.5)
    assert identity(found) == identity(config)
    assert bounded(config, max_steps=0, max_minutes=0.0) == config


def test_a_warm_start_begins_with_the_averaged_weights_of_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "earlier")
    last = checkpoint.step_folder(tmp_path / "earlier", 12)
    theirs = checkpoint.read_tensors(last / checkpoint.EMA)
    for path in (tmp_path / "earlier", last):
        config = TrainingConfig(**{**vars(CONFIG), "warm_start": str(path), "learning_rate": 1e-12, "max_steps": 1})
        found = run(tmp_path / f"later-{path.name}", config)
        for file in (checkpoint.MODEL, checkpoint.EMA, checkpoint.other_ema(0.5)):
            for name, value in theirs.items():
                torch.testing.assert_close(found[f"{file} {name}"], value, atol=1e-6, rtol=1e-6)


def test_a_warm_start_that_was_begun_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "earlier")
    config = TrainingConfig(**{**vars(CONFIG), "warm_start": str(tmp_path / "earlier")})
    whole = run(tmp_path / "whole", config)
    run(tmp_path / "parts", bounded(config, max_steps=5, max_minutes=0.0))
    parts = run(tmp_path / "parts", config)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_another_networks_weights_are_no_warm_start(tmp_path: Path) -> None:
    run(tmp_path / "earlier")
    config = TrainingConfig(**{**vars(CONFIG), "warm_start": str(tmp_path / "earlier")})
    with pytest.raises(UnclipError, match="same network, but in .* any is 1 there, 2 here"):
        train(tmp_path / "a", model=make_model(), kind="test", network={"any": 2}, loss_fn=loss_fn, batches=batches, config=config)
    with pytest.raises(UnclipError, match="kind 'test', expected 'other'"):
        train(tmp_path / "b", model=make_model(), kind="other", network={"any": 1}, loss_fn=loss_fn, batches=batches, config=config)
    with pytest.raises(UnclipError, match="nowhere is neither"):
        run(tmp_path / "c", TrainingConfig(**{**vars(CONFIG), "warm_start": "nowhere"}))


def test_learning_rate_warms_up_and_decays_by_half_a_cosine() -> None:
    rates = [learning_rate(CONFIG, step) for step in range(12)]
    assert rates[:3] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])
    assert rates[3] == pytest.approx(0.05)
    assert rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)
    assert learning_rate(TrainingConfig(**{**vars(CONFIG), "decay": "constant"}), 11) == 0.05


def test_each_average_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = Ema(model, (0.5, 0.2))
    expected = {0.5: 0.0, 0.2: 0.0}
    for step, value in enumerate([1.0, 2.0, 5.0, 3.0], 1):
        model.weight.data.fill_(value)
        ema.update(model, step)
        for wanted in expected:
            decay = min(wanted, (1 + step) / (10 + step))
            expected[wanted] = decay * expected[wanted] + (1 - decay) * value
    assert {decay: state["weight"].item() for decay, state in ema.states.items()} == pytest.approx(expected)
    assert expected[0.5] != expected[0.2]
