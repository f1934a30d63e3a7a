"""The flows: every stage in its order, one child a stage, and only what time may cure is tried again."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client

import flows.everything as nights
import flows.generate
from flows import stages
from flows.artifacts import data_uri
from flows.data import data
from flows.everything import everything
from flows.process import StageError, StoppedError
from flows.stages import RETRY_SECONDS, command_of, work_on, work_on_network
from unclip.cli import app
from unclip.config import RunConfig, load_config
from unclip.data.captions import read_captions
from unclip.files import UnclipError
from unclip.night import Night
from unclip.stages import STAGES
from unclip.training.together import Together
from unclip.versions import Version


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run in which nothing is done yet, and whatever its children do counts as done."""
    monkeypatch.setattr(stages, "is_done", lambda name, config: False)
    monkeypatch.setattr(stages, "result_of", lambda name, config: SimpleNamespace(counts={"rows_in": 1, "kept": 1}))
    return load_config(preset="tiny", settings={"root": str(tmp_path)})


def test_everything_runs_each_stage_once_and_in_order(harness: None, config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worked: list[str] = []
    monkeypatch.setattr(stages, "run_child", lambda command, *, name, say: worked.append(name))
    monkeypatch.setattr(stages, "run_stage", lambda name, config: worked.append(name))
    monkeypatch.setattr(nights, "begin", lambda config: Night(Version(name="main"), config, None))
    monkeypatch.setattr(nights, "trained", lambda night, stage: night)
    monkeypatch.setattr(nights, "decide", lambda night: [])
    monkeypatch.setattr(nights, "show_numbers", lambda night: None)
    result = everything(config)
    assert worked == list(STAGES)
    assert list(result["counts"]) == list(STAGES)
    assert len(json.dumps(result)) < 2000
    assert load_config(file=tmp_path / "run.json") == config


def test_a_stage_that_is_done_starts_no_child(harness: None, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "is_done", lambda name, config: True)
    monkeypatch.setattr(stages, "run_child", lambda *_, **__: pytest.fail("a child was started"))
    assert stages.prior(config) == {"rows_in": 1, "kept": 1}


def test_the_data_stages_are_all_up_to_the_index(harness: None, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[str] = []
    monkeypatch.setattr(stages, "run_child", lambda command, *, name, say: worked.append(name))
    monkeypatch.setattr(stages, "run_stage", lambda name, config: worked.append(name))
    assert list(data(config)) == worked == list(STAGES)[: list(STAGES).index("prior")]


CAPTIONS = ["a large red star", "--out=/tmp/elsewhere", "two\nlines", "$(touch /tmp/x) `id` '; rm -rf /"]


def test_pictures_are_asked_for_by_a_file_and_shown(harness: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def draw(command: list[str], *, name: str, say: object) -> None:
        ran.append(command)
        _, bound, _ = app.parse_args(command[3:], exit_on_error=False, print_error=False)
        given = bound.arguments
        assert read_captions(given["captions"]) == CAPTIONS
        assert (given["root"], given["num"], given["seed"], given["upsample"]) == (str(tmp_path), 2, 7, False)
        given["out"].mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(given["out"] / "sheet.png")

    monkeypatch.setattr(flows.generate, "run_child", draw)
    out = Path(flows.generate.generate(captions=CAPTIONS, root=str(tmp_path), num=2, seed=7, upsample=False))
    assert out.parent == tmp_path / "generated"
    assert not any(caption in word for word in ran[0] for caption in CAPTIONS), "a caption on the command line"
    with get_client(sync_client=True) as client:
        shown = {one.key: one.data for one in client.read_artifacts()}
    assert shown["generated"] == data_uri(out / "sheet.png")


def attempts(monkeypatch: pytest.MonkeyPatch, config: RunConfig, codes: list[int], task: Any) -> int:
    """How often the task starts a child, where the children end with these codes one after the other."""
    count = Path(config.root) / "attempts"
    count.write_text("0")
    code = "import sys; p = sys.argv[1]; n = int(open(p).read()); open(p, 'w').write(str(n + 1)); print('the reason'); sys.exit(int(sys.argv[2 + n]))"
    monkeypatch.setattr(stages, "command_of", lambda name, file: [sys.executable, "-c", code, str(count), *map(str, codes)])

    @flow
    def work() -> Any:
        return task("download", config)

    with contextlib.suppress(UnclipError, StageError, StoppedError):
        work()
    return int(count.read_text())


@pytest.mark.parametrize(
    ("task", "codes", "expected"),
    [
        (work_on_network, [1, 1, 0], 3),  # a network that comes back
        (work_on_network, [1, 1, 1, 1, 0], 1 + len(RETRY_SECONDS)),
        (work_on_network, [2, 0], 1),  # the user's to put right
        (work_on_network, [143, 0], 1),  # someone stopped it
        (work_on, [1, 0], 1),
    ],
)
def test_only_the_networks_failures_are_tried_again(
    harness: None, config: RunConfig, monkeypatch: pytest.MonkeyPatch, task: Any, codes: list[int], expected: int
) -> None:
    assert attempts(monkeypatch, config, codes, task.with_options(retry_delay_seconds=0)) == expected


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_a_command_that_takes_the_config(name: str) -> None:
    command = command_of(name, Path("run.json"))
    assert command[:3] == [sys.executable, "-m", "unclip"]
    _, bound, _ = app.parse_args(command[3:], exit_on_error=False, print_error=False)
    assert bound.arguments == {"config": Path("run.json")}


@pytest.mark.parametrize("name", ["prior", "decoder", "upsampler"])
def test_machines_that_train_together_get_the_same_command(harness: None, config: RunConfig, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(stages, "run_child", lambda command, *, name, say: commands.append(command))
    together = Together(nproc=4, nnodes=2, rdzv_endpoint="node0:29400")
    getattr(stages, name)(config, dataclasses.asdict(together))  # as a form gives it
    _, bound, _ = app.parse_args(commands[0][3:], exit_on_error=False, print_error=False)
    assert bound.arguments == {"config": stages.asked_file(name, config), "processes": together}
    with pytest.raises(Exception, match="expected rdzv_endpoint"):
        getattr(stages, name)(config, {"nnodes": 2})


def test_a_misspelt_nested_setting_is_refused_before_anything_runs(harness: None, config: RunConfig) -> None:
    with pytest.raises(Exception, match=r"config\.prior\.network\.dept"):
        everything({"root": config.root, "prior": {"network": {"dept": 3}}})  # type: ignore[arg-type]
