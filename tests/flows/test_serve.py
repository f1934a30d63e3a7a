"""`unclip serve` for real: schedules fire, others stay out, and stops, kills and lost servers cost no work."""

import contextlib
import http.server
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.automations import silent_runs
from flows.registry import own_file
from flows.server import ADDRESS, CREDENTIAL, answers, home_of
from tests.flows.conftest import REPOSITORY, clean_environment, free_port, wait_for

pytestmark = pytest.mark.slow  # a real server

LIMIT = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
QUICK = [
    {"name": "test", "entrypoint": "tests.flows.quick.beat", "parameters": {"root": ""}, "concurrency_limit": LIMIT, "schedules": [{"cron": "* * * * *"}]},
    {"name": "test", "entrypoint": "tests.flows.quick.hold", "parameters": {"root": ""}, "concurrency_limit": LIMIT},
]
SAVE_SECONDS = 20


@dataclass(frozen=True)
class Served:
    """A running `unclip serve`, and what it says."""

    process: "subprocess.Popen[str]"
    root: Path
    port: int
    said: Path
    client: SyncPrefectClient

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def run(self, name: str, **parameters: Any) -> Any:
        """Runs a deployment of this name. Returns the run's number."""
        return self.client.create_flow_run_from_deployment(self.client.read_deployment_by_name(name).id, parameters=parameters).id

    def state(self, run: Any) -> str:
        return str(self.client.read_flow_run(run).state_type.value)

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def server(self) -> psutil.Process:
        (server,) = [process for process in self.processes() if "server" in process.cmdline()]
        return server


@contextlib.contextmanager
def serving(folder: Path, deployments: list[dict[str, Any]], **environment: str) -> Iterator[Served]:
    """Starts it in a folder, and ends it whatever happened."""
    (folder / "prefect.yaml").write_text(yaml.safe_dump({"name": "tests", "deployments": deployments}))
    root, port, said = folder / "root", free_port(), folder / f"said-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "unclip", "serve", "--preset", "tiny", "--root", str(root), "--port", str(port)]
    with said.open("w") as out:
        process = subprocess.Popen(
            [*command, "--deployments", str(folder / "prefect.yaml")],
            cwd=REPOSITORY, env=clean_environment(PREFECT_RUNNER_POLL_FREQUENCY="1", **environment), stdout=out, stderr=out, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for("deployments", lambda: process.poll() is not None or "to run one now" in said.read_text(), 240)
        assert process.poll() is None, said.read_text()
        settings = {PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_API_AUTH_STRING: (home_of(root) / CREDENTIAL).read_text()}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield Served(process, root, port, said, client)
    except BaseException:
        print(said.read_text())
        raise
    finally:
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


class Webhook(http.server.BaseHTTPRequestHandler):
    """Somewhere that messages are sent to."""

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["text"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def heard() -> Iterator[tuple[str, list[str]]]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Webhook)
    server.heard = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", server.heard  # type: ignore[attr-defined]
    server.shutdown()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, heard: tuple[str, list[str]]) -> Iterator[Served]:
    deployments = yaml.safe_load(own_file().read_text())["deployments"]
    with serving(tmp_path_factory.mktemp("served"), [*deployments, *QUICK], UNCLIP_NOTIFY_URL=heard[0]) as served:
        yield served
        assert served.process.poll() is None, "it ended by itself"


def unclip(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "unclip", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=clean_environment(COLUMNS="200", **environment), capture_output=True, text=True, timeout=120, check=False
    )


def ended(served: Served, run: Any, seconds: float = 60) -> str:
    wait_for("the run's end", lambda: served.state(run) in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), seconds)
    return served.state(run)


def held(served: Served, seconds: float) -> tuple[Any, int]:
    """A run that holds a child: its number, and that of the child."""
    for name in ("child", "saved"):
        (served.root / name).unlink(missing_ok=True)
    run = served.run("hold/test", root=str(served.root), seconds=seconds)
    wait_for("the child", lambda: (served.root / "child").is_file() and (served.root / "child").read_text(), 60)
    return run, int((served.root / "child").read_text())


def cancel(served: Served, run: Any) -> None:
    served.client.set_flow_run_state(run, state=Cancelling())


def test_others_stay_out(served: Served) -> None:
    asked, known = f"{served.api}/deployments/filter", (home_of(served.root) / CREDENTIAL).read_text().partition(":")
    assert httpx.get(f"{served.api}/health").status_code == 200
    assert httpx.get(f"{served.api}/admin/settings").status_code == 401
    assert httpx.get(f"{served.api}/admin/settings", auth=("unclip", "guessed")).status_code == 401
    assert httpx.post(asked, json={}).status_code == 403
    assert httpx.post(asked, json={}, auth=(known[0], known[2])).status_code == 403, "a POST without a CSRF token"
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert httpx.options(asked, headers=preflight | {"Origin": "http://evil.example"}).status_code == 400
    assert httpx.options(asked, headers=preflight | {"Origin": f"http://127.0.0.1:{served.port}"}).status_code == 200


def test_it_listens_on_this_machine_only_and_tells_nobody(served: Served) -> None:
    for process in [psutil.Process(served.process.pid), *served.processes()]:
        connections = process.net_connections("inet")
        assert {entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN} <= {"127.0.0.1"}
        assert {entry.raddr.ip for entry in connections if entry.raddr} <= {"127.0.0.1"}
        assert (home_of(served.root) / CREDENTIAL).read_text().partition(":")[2] not in " ".join(process.cmdline())
    settings = served.client._client.get("/admin/settings").json()
    assert settings["server"]["analytics_enabled"] is False
    assert settings["server"]["ui"]["show_promotional_content"] is False
    assert settings["telemetry"]["enable_resource_metrics"] is False
    assert settings["server"]["api"]["host"] == "127.0.0.1"
    assert psutil.Process(served.server().pid).environ()["DO_NOT_TRACK"] == "1"


def test_its_files_are_for_their_owner_alone(served: Served) -> None:
    home = home_of(served.root)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / CREDENTIAL).stat().st_mode) == 0o600
    assert (home / "prefect.db").is_file()


def test_every_deployment_is_there_and_the_night_is_planned(served: Served) -> None:
    flows = {flow.id: flow.name for flow in served.client.read_flows()}
    there = served.client.read_deployments()
    assert {f"{flows[one.flow_id]}/{one.name}" for one in there} == {
        "everything/nightly", "data/on-demand", "prior/on-demand", "decoder/on-demand", "upsampler/on-demand", "evaluate/on-demand", "generate/on-demand",
        "prior/machines", "decoder/machines", "upsampler/machines", "beat/test", "hold/test",
    }  # fmt: skip
    assert {one.global_concurrency_limit.limit for one in there if one.name != "machines"} == {1}
    nightly = served.client.read_deployment_by_name("everything/nightly")
    assert nightly.parameters["config"]["root"] == str(served.root), "the served config, not the file's"
    wait_for("a night", lambda: any(run.deployment_id == nightly.id for run in served.client.read_flow_runs(limit=200)), 90)
    nights = [run.expected_start_time for run in served.client.read_flow_runs(limit=200) if run.deployment_id == nightly.id]
    assert {f"{night:%H:%M}" for night in nights} == {"02:15"}


def test_a_run_by_hand_shows_up_on_the_same_page(served: Served) -> None:
    show = "import os; from pathlib import Path; from flows.environment import prepare; prepare(Path({!r})); print(os.environ['PREFECT_API_URL'])"
    command = [sys.executable, "-c", show.format(str(served.root))]
    said = subprocess.run(command, cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.strip() == served.api


def test_a_schedule_fires(served: Served) -> None:
    wait_for("a run that nobody asked for", lambda: list((served.root / "beats").glob("*")), 130)


def test_a_wrong_parameter_is_refused_at_the_form_and_at_the_command_line(served: Served) -> None:
    with pytest.raises(PrefectHTTPStatusError) as refused:
        served.run("everything/nightly", config={"prior": {"network": {"dept": 3}}})
    assert "config.prior.network" in refused.value.response.text
    assert "dept" in refused.value.response.text
    access = {"PREFECT_API_URL": served.api, "PREFECT_API_AUTH_STRING": (home_of(served.root) / CREDENTIAL).read_text()}
    command = [
        sys.executable,
        "-m",
        "prefect",
        "--no-prompt",
        "deployment",
        "run",
        "everything/nightly",
        "-p",
        'config={"prior": {"network": {"depth": "deep"}}}',
    ]
    said = subprocess.run(command, cwd=served.root, env=clean_environment(DO_NOT_TRACK="1", **access), capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1
    assert "config.prior.network.depth" in " ".join((said.stdout + said.stderr).split())


def test_a_second_one_is_refused_and_the_check_shows_what_is_up(served: Served) -> None:
    second = unclip("serve", "--root", str(served.root), "--port", str(free_port()))
    assert (second.returncode, len(second.stderr.splitlines())) == (2, 1)
    assert "is served already" in second.stderr
    ended(served, served.run("beat/test", root=str(served.root)))
    check = unclip("serve", "--check", "--root", str(served.root))
    assert check.returncode == 0, check.stderr
    for shown in (f"http://127.0.0.1:{served.port}", "everything/nightly", "02:15 ", "Completed"):
        assert shown in check.stdout


def test_a_cancelled_run_saves_in_time(served: Served) -> None:
    run, child = held(served, 300)
    cancel(served, run)
    wait_for("the state that the child saves", lambda: (served.root / "saved").is_file(), SAVE_SECONDS)
    assert (served.root / "saved").read_text() == "stopped"
    assert ended(served, run) == "CANCELLED"
    assert not psutil.pid_exists(child)


def test_a_second_run_of_a_deployment_is_cancelled(served: Served) -> None:
    first, _ = held(served, 300)
    assert ended(served, served.run("hold/test", root=str(served.root))) == "CANCELLED"
    assert served.state(first) == "RUNNING"
    cancel(served, first)
    ended(served, first)


def test_a_server_that_is_lost_stops_no_run_and_comes_back(served: Served) -> None:
    run, child = held(served, 40)
    lost = served.server()
    lost.kill()
    lost.wait(10)
    wait_for("another server", lambda: answers(served.api), 90)
    wait_for("the child's end", lambda: not psutil.pid_exists(child), 60)
    assert (served.root / "saved").read_text() == "finished"
    assert ended(served, run) == "COMPLETED"
    assert "it is started again" in served.said.read_text()


def test_someone_is_told_of_a_run_that_failed_and_of_a_quality_that_fell(served: Served, heard: tuple[str, list[str]]) -> None:
    for _ in range(3):  # where SQLite is fought over, Prefect drops an event now and then
        assert ended(served, served.run("beat/test", root=str(served.root), fail=True)) in ("FAILED", "CANCELLED")
        with contextlib.suppress(AssertionError):
            wait_for("both messages", lambda: len({message.partition("\n")[0] for message in heard[1]}) == 2, 20)
            break
    messages = "\n".join(heard[1])
    assert "unclip: quality-fell\nthe cosine fell from 0.7 to 0.6" in messages
    assert "unclip: a run failed\nbeat " in messages
    assert "a night that failed" in messages


def assert_a_stop_lets_the_run_save_and_leaves_nothing(served: Served, stop: Callable[[int, int], None], number: int) -> None:
    _, child = held(served, 300)
    started = served.processes()
    stop(served.process.pid, number)
    wait_for("the state that the child saves", lambda: (served.root / "saved").is_file(), SAVE_SECONDS)
    assert served.process.wait(60) == 0, served.said.read_text()
    assert (served.root / "saved").read_text() == "stopped"
    assert [process for process in started if process.is_running()] == []
    assert not psutil.pid_exists(child)
    assert not (home_of(served.root) / ADDRESS).exists()


def test_what_a_kill_leaves_is_marked_and_ended_and_the_next_one_is_stopped_by_hand(tmp_path: Path) -> None:
    with serving(tmp_path, QUICK) as served:
        shorter = silent_runs()
        shorter.trigger.within = timedelta(seconds=35)  # type: ignore[union-attr]
        shorter.name = "the same, for those who can't wait"
        served.client.create_automation(shorter)
        run, _ = held(served, 300)
        time.sleep(3)  # the first heartbeat is on its way
        server = served.server()
        victims = [process for process in served.processes() if process.pid != server.pid]
        served.process.kill()
        for process in victims:
            process.kill()
        assert ended(served, run, seconds=90) == "CRASHED"
        assert server.is_running()
    with serving(tmp_path, QUICK[1:]) as served:
        assert not server.is_running(), "the killed one's server"
        assert [one.entrypoint for one in served.client.read_deployments()] == ["tests.flows.quick.hold"], "what is offered no longer is gone"
        assert served.state(run) == "CRASHED"
        assert_a_stop_lets_the_run_save_and_leaves_nothing(served, os.killpg, signal.SIGINT)  # Ctrl-C on a terminal reaches the whole group


def test_sigterm_lets_runs_save_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, QUICK[1:]) as served:
        assert_a_stop_lets_the_run_save_and_leaves_nothing(served, os.kill, signal.SIGTERM)
