"""Several processes: the loss curve of one, files that one can go on with, and a command that starts and stops them."""

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.data.pairs import write_pairs
from tests.pipeline import command, copied, environment, folder_of, manifest
from tests.training.toy import CONFIG, PICTURES, TOGETHER, rows_of, train_on_pictures, train_toy, weights_of
from unclip import checkpoint
from unclip.files import UnclipError
from unclip.training.config import TrainingConfig
from unclip.training.launch import own_address
from unclip.training.together import Together, without_options

TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]


def agrees(found: Path, expected: Path) -> None:
    """The same rows in the metrics and the same files in the checkpoint, to float tolerance."""
    ours, theirs = rows_of(found), rows_of(expected)
    assert len(ours) == len(theirs) == CONFIG.num_steps
    for row, other in zip(ours, theirs, strict=True):
        assert {name for name in row if row[name] is None} == {name for name in other if other[name] is None}
        numbers = {name: value for name, value in other.items() if value is not None}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-6)
    weights, others = weights_of(found), weights_of(expected)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=1e-5, rtol=1e-5)
    read = [checkpoint.read_optimizer(checkpoint.step_folder(folder, CONFIG.num_steps)) for folder in (found, expected)]
    assert list(described(read[0])) == list(described(read[1]))


def described(state: object) -> object:
    """What stands where in an optimizer's state."""
    if isinstance(state, dict):
        return [(name, described(value)) for name, value in state.items()]
    if isinstance(state, list):
        return [described(value) for value in state]
    return tuple(state.shape) if isinstance(state, torch.Tensor) else type(state)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `toy.TOGETHER` asks of two processes, and the same by one in folders of these names with "one-"."""
    folder = tmp_path_factory.mktemp("trained")
    train_toy(folder / "begun-by-one", dataclasses.replace(CONFIG, max_steps=5))
    write_pairs(folder / "pairs")
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "--module", "tests.training.toy", str(folder)], env=environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train_toy(folder / "one", CONFIG)
    train_toy(folder / "one-muon", dataclasses.replace(CONFIG, optimizer="muon"))
    return folder


@pytest.mark.parametrize("name", [name for name in TOGETHER if name.startswith(("ddp", "fsdp"))])
def test_two_processes_have_the_curve_and_the_weights_of_one(trained: Path, name: str) -> None:
    agrees(trained / name, trained / ("one-muon" if "muon" in name else "one"))


def test_two_processes_whose_workers_read_their_own_pictures_have_the_curve_of_one_that_reads_all(trained: Path, tmp_path: Path) -> None:
    train_on_pictures(tmp_path, dataclasses.replace(PICTURES, accumulate=1), trained / "pairs", 0)
    agrees(trained / "pictures", tmp_path)


def test_one_goes_on_where_two_stopped_and_two_where_one_did(trained: Path) -> None:
    assert len(rows_of(trained / "begun-by-two")) == 5
    train_toy(trained / "begun-by-two", CONFIG)
    agrees(trained / "begun-by-two", trained / "one")
    agrees(trained / "begun-by-one", trained / "one")


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_several_goes_is_the_same_batch(trained: Path, tmp_path: Path, accumulate: int) -> None:
    train_toy(tmp_path, dataclasses.replace(CONFIG, accumulate=accumulate))
    agrees(tmp_path, trained / "one")


def test_what_can_not_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulate must divide batch_size 8, got 3"):
        TrainingConfig(batch_size=8, accumulate=3)
    with pytest.raises(ValueError, match="expected optimizer 'adamw', got 'muon'"):
        TrainingConfig(parallel="fsdp", optimizer="muon")


def test_a_batch_that_the_processes_can_not_share_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.training.loop.num_processes", lambda: 3)
    with pytest.raises(UnclipError, match="batch_size 8 can't be cut into 3 equal pieces"):
        train_toy(tmp_path, CONFIG)


def processes_of(root: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if str(root) in " ".join(process.info["cmdline"] or [])]


@pytest.mark.slow
def test_the_command_trains_in_two_processes_to_the_same_curve(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "prior"))
    done = subprocess.run(
        [*command("prior", copy), "--nproc", "2", "--prior.training.log_every", "1"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("prior: done in") == 1  # the first process alone speaks
    assert manifest(copy, "prior")["finished"]
    assert manifest(copy, "prior")["counts"] == manifest(root, "prior")["counts"]
    ours, theirs = (rows_of(folder_of(where, "prior") / "diffusion") for where in (copy, root))
    assert len(ours) == theirs[-1]["step"]
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-5)
    weights, others = (weights_of(folder_of(where, "prior") / "diffusion") for where in (copy, root))
    for name in others:  # the biases of keys have no gradient but rounding, of which AdamW makes steps
        torch.testing.assert_close(weights[name], others[name], atol=2e-3 if "qkv.bias" in name else 1e-4, rtol=1e-4)
    assert processes_of(copy) == []


@pytest.mark.slow
def test_sigterm_saves_in_all_processes_and_none_is_left(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "decoder"))
    long = [
        *command("decoder", copy),
        "--nproc=2",
        "--decoder.training.num_steps=100000",
        "--decoder.training.checkpoint_seconds=1000",
        "--decoder.num_workers=1",
    ]
    child = subprocess.Popen(long, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(folder_of(copy, "decoder").glob("tensorboard/*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    asked = time.monotonic()
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    assert time.monotonic() - asked < 20
    assert child.returncode == 130, errors
    assert errors.count("run the same command to go on") == 1
    assert "Traceback" not in errors
    assert len(checkpoint.steps_of(folder_of(copy, "decoder"))) == 1
    assert processes_of(copy) == []


@pytest.mark.slow
def test_a_users_error_in_the_processes_is_the_commands_own(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    (folder_of(copy, "embed") / "manifest.json").unlink()
    shutil.rmtree(folder_of(copy, "decoder"))
    done = subprocess.run([*command("decoder", copy), "--nproc", "2"], env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("unclip: expected the finished result of `unclip embed`")
    assert "Traceback" not in done.stderr


def test_one_process_gets_the_command_without_what_is_said_of_all() -> None:
    assert without_options(["train", "prior", "--nproc", "2", "--root", "a"]) == ["train", "prior", "--root", "a"]
    assert without_options(["train", "--nproc=2", "prior", "--dry-run"]) == ["train", "prior", "--dry-run"]
    together = Together(nproc=2, nnodes=3, rdzv_endpoint="node0:29400", rdzv_minutes=2)
    assert without_options(["train", *together.arguments(), "prior", "--rdzv_minutes=1"]) == ["train", "prior"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"nproc": 0}, "nproc must be at least 1, got 0"),
        ({"nnodes": 2}, "expected rdzv_endpoint, the host:port of one of them"),
        ({"rdzv_endpoint": "node0:29400"}, "expected nnodes of 2 or more, got 1"),
        ({"nnodes": 2, "rdzv_endpoint": "node0"}, "must be host:port, such as node0:29400, got 'node0'"),
        ({"nnodes": 2, "rdzv_endpoint": "node0:0"}, "must be host:port"),
    ],
)
def test_machines_that_can_not_meet_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UnclipError, match=says):
        Together(**wrong)


def test_a_machine_is_known_by_the_address_that_reaches_the_endpoint() -> None:
    assert own_address("127.0.0.1:29400") == "127.0.0.1"
    assert own_address("localhost:29400") == "localhost"
    with pytest.raises(UnclipError, match="expected --rdzv-endpoint to name a machine that can be reached"):
        own_address(f"{'n' * 64}:29400")  # longer than a name may be, so nobody is asked for it
