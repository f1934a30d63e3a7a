"""Work on a Ray cluster: the same bytes as here, processes that die are made up for, and what can't be is one line."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.data.test_embed import wait_until
from tests.pipeline import command, copied, environment, folder_of, manifest
from unclip.data import cluster
from unclip.data.cluster import Process, RayConfig, _fitting, on_cluster
from unclip.data.embed import EmbedConfig
from unclip.files import UnclipError


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would write one into the home folder."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)


def say(number: int) -> int:
    if number == 0:
        raise UnclipError("expected more than 0, got 0")
    if number < 0:
        os._exit(-number)
    return 10 * number


def title(process: psutil.Process) -> str:
    """What a process calls itself; nothing of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def below(process: psutil.Process) -> list[psutil.Process]:
    """All processes that a command has started, Ray's too."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def at_work(process: psutil.Process) -> list[psutil.Process]:
    """Ray's processes below a command that have a shard in hand; their titles say so."""
    return [child for child in below(process) if "ray::embed_shard" in title(child)]


@pytest.mark.slow
def test_ray_embeds_the_same_bytes_though_the_command_and_then_a_process_were_killed(root: Path, tmp_path: Path) -> None:
    alone = {path.name: path.read_bytes() for path in folder_of(root, "embed").glob("[0-9]*.parquet")}
    together = copied(root, tmp_path / "root")
    shutil.rmtree(folder_of(together, "embed"))
    words = command("embed", together, "--embed.engine", "ray")
    first = psutil.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: bool(at_work(first)) or first.poll() is not None)
    left = [child for child in below(first) if "Agent" not in title(child)]  # these two of Ray's notice within a minute, and write nothing of ours
    assert left
    first.kill()
    first.communicate(timeout=60)
    wait_until(lambda: not any(title(child) for child in left), 30)
    second = psutil.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: bool(at_work(second)) or second.poll() is not None)
    at_work(second)[0].kill()
    out, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    assert b"embed: done in" in out
    assert {path.name: path.read_bytes() for path in folder_of(together, "embed").glob("[0-9]*.parquet")} == alone
    assert manifest(together, "embed")["digest"] == manifest(root, "embed")["digest"]


@pytest.mark.slow
def test_what_goes_wrong_on_the_cluster_is_one_line() -> None:
    with pytest.raises(UnclipError, match="^expected more than 0, got 0$"):
        dict(on_cluster(say, {"a": 0}, RayConfig()))
    with pytest.raises(UnclipError, match="the process of b died 2 times on the Ray cluster"):
        dict(on_cluster(say, {"a": 1, "b": -9}, RayConfig(retries=1)))
    with pytest.raises(UnclipError, match="takes 1 CPUs and 64 GPUs, but no machine of the Ray cluster has so many"):
        dict(on_cluster(say, {"a": 1}, RayConfig(gpus=64)))


def test_a_cluster_without_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UnclipError, match=r"pip install 'unclip\[ray\]', on every machine"):
        next(on_cluster(say, {"a": 1}, RayConfig()))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UnclipError, match=f"expected a Ray cluster at '{address}', but .*refused"):
        next(on_cluster(say, {"a": 1}, RayConfig(address=address)))


@pytest.mark.parametrize(
    ("resources", "taken", "room"),
    [
        ({"CPU": 16.0}, {"cpus": 4}, 4),
        ({"CPU": 16.0}, {"cpus": 32}, 0),
        ({"CPU": 16.0, "GPU": 2.0}, {"cpus": 4, "gpus": 1}, 2),
        ({"CPU": 4.0, "GPU": 2.0}, {"cpus": 4, "gpus": 1}, 1),
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus": 0.4}, 4),  # two on each, not five on both
        ({"CPU": 16.0, "GPU": 4.0}, {"gpus": 3}, 1),
        ({}, {}, 0),  # a machine that only leads
    ],
)
def test_a_machine_holds_as_many_processes_as_what_they_take_allows(resources: dict[str, float], taken: dict[str, Any], room: int) -> None:
    assert _fitting(resources, RayConfig(**taken)) == room


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: RayConfig(cpus=0), "cpus must be at least 1"),
        (lambda: RayConfig(gpus=1.5), "gpus must be a whole number, or a share of one"),
        (lambda: RayConfig(address=""), "address must be host:port"),
        (lambda: RayConfig(address="ray://head:10001"), "address must be host:port"),
        (lambda: EmbedConfig(ray=RayConfig(gpus=1)), "the settings of ray are for engine 'ray'"),
        (lambda: EmbedConfig(engine="ray", shared=True), "expected shared false"),
    ],
)
def test_settings_that_can_not_be_are_refused(wrong: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()


def test_a_machine_with_another_version_is_refused() -> None:
    cluster._require_same_version(Process(1).version())
    with pytest.raises(UnclipError, match=r"has unclip 0\.0\.0, expected"):
        cluster._require_same_version("0.0.0")
