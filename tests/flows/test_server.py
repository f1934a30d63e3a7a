"""A real server: schedules fire, every deployment is there, wrong parameters are refused, and nobody else can reach it."""

import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import yaml

from flows.serve import DEPLOYMENTS
from tests.flows.conftest import REPOSITORY, Served, clean_environment, wait_for


def deployment(served: Served, name: str) -> dict:
    return httpx.get(f"{served.api}/deployments/name/{name}").raise_for_status().json()


def test_every_deployment_is_registered_once_and_allows_one_run(served: Served) -> None:
    registered = httpx.post(f"{served.api}/deployments/filter", json={}).json()
    assert sorted((one["entrypoint"], one["name"]) for one in registered) == sorted((one.entrypoint, one.name) for one in DEPLOYMENTS)
    assert {(one["global_concurrency_limit"]["limit"], one["concurrency_options"]["collision_strategy"]) for one in registered} == {(1, "CANCEL_NEW")}
    assert [one["name"] for one in registered if one["schedules"]] == ["nightly"]


def test_the_nightly_schedule_makes_runs(served: Served) -> None:
    nightly = deployment(served, "everything/nightly")
    asked = {"deployments": {"id": {"any_": [nightly["id"]]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    wait_for("scheduled runs", lambda: httpx.post(f"{served.api}/flow_runs/filter", json=asked).json(), 60)
    run = httpx.post(f"{served.api}/flow_runs/filter", json=asked).json()[0]
    assert "T02:15:00" in run["expected_start_time"]


def test_a_misspelt_nested_parameter_is_refused_with_its_path(served: Served) -> None:
    nightly = deployment(served, "everything/nightly")
    answer = httpx.post(f"{served.api}/deployments/{nightly['id']}/create_flow_run", json={"parameters": {"config": {"prior": {"network": {"dept": 3}}}}})
    assert answer.status_code == 409, answer.text
    assert "config.prior.network" in answer.text
    assert "dept" in answer.text


def test_the_parameter_form_knows_every_nested_setting(served: Served) -> None:
    schema = deployment(served, "everything/nightly")["parameter_openapi_schema"]
    sections = schema["definitions"]
    assert sections["RunConfig"]["properties"]["prior"]["$ref"] == "#/definitions/PriorConfig"
    assert sections["DiffusionPriorConfig"]["properties"]["depth"]["type"] == "integer"
    assert all(section["additionalProperties"] is False for section in sections.values())


def test_a_run_does_the_work_in_a_child_and_leaves_its_result_on_disk(served: Served) -> None:
    source = deployment(served, "source/on-demand")
    run = httpx.post(f"{served.api}/deployments/{source['id']}/create_flow_run", json={}).json()

    def state() -> str:
        return str(httpx.get(f"{served.api}/flow_runs/{run['id']}").json()["state_type"])

    wait_for("the run's end", lambda: state() in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), 90)
    logs = [log["message"] for log in httpx.post(f"{served.api}/logs/filter", json={"logs": {"flow_run_id": {"any_": [run["id"]]}}}).json()]
    assert state() == "COMPLETED", logs
    assert (served.root / "source" / "manifest.json").is_file()
    wait_for("the child's lines in the log", lambda: "source: done" in str(httpx.post(f"{served.api}/logs/filter", json={}).json()), 20)
    counts = httpx.get(f"{served.api}/artifacts/source-counts/latest").json()
    assert '"rows in": 120' in counts["data"]


def test_the_server_answers_on_this_machine_only(served: Served) -> None:
    listening = {entry.laddr.ip for entry in psutil.Process(served.pid).net_connections("tcp") if entry.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_the_server_tells_nobody_of_itself(served: Served) -> None:
    settings = httpx.get(f"{served.api}/admin/settings").json()
    assert settings["server"]["analytics_enabled"] is False
    assert settings["server"]["ui"]["show_promotional_content"] is False


def test_prefect_yaml_names_the_same_deployments() -> None:
    written = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    crons = {one["entrypoint"]: "".join(schedule["cron"] for schedule in one.get("schedules", [])) for one in written}
    assert [(one["entrypoint"], one["name"], crons[one["entrypoint"]]) for one in written] == [(one.entrypoint, one.name, one.cron) for one in DEPLOYMENTS]
    assert all(one["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"} for one in written)


def test_serving_without_a_server_says_in_one_line_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.serve", "--preset", "tiny", "--root", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "prefect server start" in ended.stderr
    assert "PREFECT_API_URL" in ended.stderr
