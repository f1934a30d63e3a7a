"""Two machines, here two commands on one: they meet, train to the curve of one process, and end together."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.data.test_embed import wait_until
from tests.pipeline import command, copied, environment, folder_of, manifest
from tests.training.test_distributed import processes_of
from tests.training.toy import rows_of, weights_of
from unclip import checkpoint

pytestmark = pytest.mark.slow
SECONDS = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machines(words: list[str], cwds: tuple[Path, Path]) -> list["subprocess.Popen[str]"]:
    """The same command on two machines, of which each has a working directory of its own."""
    together = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-minutes", "3"]
    return [subprocess.Popen([*words, *together], cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for cwd in cwds]


def test_two_machines_train_to_the_curve_of_one_process(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(copy, "prior"))
    both = machines(command("prior", copy, "--prior.training.log_every", "1"), (tmp_path, tmp_path))
    said = [machine.communicate(timeout=SECONDS) for machine in both]
    assert [machine.returncode for machine in both] == [0, 0], said
    assert sorted(out.count("prior: done in") for out, _ in said) == [0, 1]
    assert sorted(out.count("which leads: it writes") for out, _ in said) == [0, 1]
    assert manifest(copy, "prior")["finished"]
    assert manifest(copy, "prior")["counts"] == manifest(root, "prior")["counts"]
    ours, theirs = (rows_of(folder_of(where, "prior") / "diffusion") for where in (copy, root))
    assert ours[-1]["step"] == theirs[-1]["step"]
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-5)
    weights, others = (weights_of(folder_of(where, "prior") / "diffusion") for where in (copy, root))
    for name in others:  # the biases of keys have no gradient but rounding, of which AdamW makes steps
        torch.testing.assert_close(weights[name], others[name], atol=2e-3 if "qkv.bias" in name else 1e-4, rtol=1e-4)
    assert processes_of(copy) == []


def test_sigterm_on_one_machine_saves_and_ends_both(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    run = folder_of(copy, "decoder")
    shutil.rmtree(run)
    both = machines(
        command("decoder", copy, "--decoder.training.num_steps=100000", "--decoder.training.checkpoint_seconds=1000", "--decoder.num_workers=0"),
        (tmp_path, tmp_path),
    )
    wait_until(lambda: bool(list(run.glob("tensorboard/*"))) or any(machine.poll() is not None for machine in both))
    time.sleep(1.0)
    asked = time.monotonic()
    both[1].send_signal(signal.SIGTERM)
    said = [machine.communicate(timeout=60) for machine in both]
    assert time.monotonic() - asked < 20
    assert [machine.returncode for machine in both] == [130, 130], said
    errors = "".join(error for _, error in said)
    assert errors.count("run the same command to go on") == 1
    assert "Traceback" not in errors
    assert len(checkpoint.steps_of(run)) == 1
    assert processes_of(copy) == []


def test_a_machine_that_is_lost_ends_the_other_in_one_line(root: Path, tmp_path: Path) -> None:
    copy = copied(root, tmp_path / "root")
    run = folder_of(copy, "decoder")
    shutil.rmtree(run)
    long = command("decoder", copy, "--decoder.training.num_steps=100000", "--decoder.training.checkpoint_seconds=1", "--decoder.num_workers=0")
    both = machines(long, (tmp_path, tmp_path))
    wait_until(lambda: bool(checkpoint.steps_of(run)) or any(machine.poll() is not None for machine in both))
    lost = psutil.Process(both[0].pid)
    for process in [*lost.children(recursive=True), lost]:
        process.kill()
    for machine in both:
        said = machine.communicate(timeout=60)
    assert both[1].returncode == 1, said
    assert said[1].strip().splitlines()[-1].endswith("was lost; the last checkpoint stays, and the same command goes on from it")
    assert "Traceback" not in said[1]
    assert checkpoint.steps_of(run)
    assert processes_of(copy) == []


def test_machines_that_see_other_folders_are_one_line(root: Path, tmp_path: Path) -> None:
    cwds = tmp_path / "one", tmp_path / "other"
    for cwd in cwds:
        (cwd / "root").parent.mkdir()
        shutil.rmtree(folder_of(copied(root, cwd / "root"), "prior"))
        config = cwd / "root" / "run.json"
        config.write_text(config.read_text().replace(str(cwd / "root"), "root"))
    both = machines(command("prior", Path("root")), cwds)
    said = [machine.communicate(timeout=SECONDS) for machine in both]
    assert [machine.returncode for machine in both] == [2, 2], said
    for _, errors in said:
        assert errors.strip().splitlines()[-1].startswith("unclip: expected every machine to see the same root, but on ")
        assert "Traceback" not in errors
    assert not any((cwd / "root" / "prior" / "main" / "diffusion").exists() for cwd in cwds)
