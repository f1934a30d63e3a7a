"""The way for several machines: a server, a work pool, a worker of Prefect's own, and a schedule that fires."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.server import LocalServer, credential_of
from tests.flows.conftest import clean_environment, free_port, wait_for

pytestmark = pytest.mark.slow


def test_a_worker_runs_what_a_schedule_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = {
        "name": "test", "entrypoint": "tests.flows.quick.beat", "parameters": {"root": str(tmp_path)}, "schedules": [{"cron": "* * * * *"}],
        "work_pool": {"name": "local"},
    }  # fmt: skip
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump({"name": "tests", "deployments": [deployment]}))
    home = tmp_path / ".prefect"
    home.mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(home))
    with LocalServer(home, free_port()) as server:
        access = {"PREFECT_API_URL": server.api, "PREFECT_API_AUTH_STRING": credential_of(home), "PREFECT_HOME": str(home)}
        environment = clean_environment(**access, PYTHONPATH=str(Path(__file__).parents[2]), PREFECT_WORKER_QUERY_SECONDS="2")

        def prefect(*words: str) -> None:
            done = subprocess.run(
                [sys.executable, "-m", "prefect", "--no-prompt", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

        prefect("work-pool", "create", "local", "--type", "process", "--overwrite")
        prefect("deploy", "--all")
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local", "--type", "process"],
            cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for("a run that the schedule asked for", lambda: list((tmp_path / "beats").glob("*")), 150)
            settings = {PREFECT_API_URL: access["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: access["PREFECT_API_AUTH_STRING"]}
            with temporary_settings(settings), get_client(sync_client=True) as client:
                wait_for("its end", lambda: any(run.state_type == "COMPLETED" for run in client.read_flow_runs()), 60)
                assert all(run.auto_scheduled for run in client.read_flow_runs())
        finally:
            worker.terminate()
            worker.wait(60)
