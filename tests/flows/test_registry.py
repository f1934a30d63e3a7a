"""The deployments of prefect.yaml: each can be run as it stands, nothing in the file is passed over, and no parameter is a secret."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.environment import HEARTBEAT_SECONDS, QUIET
from flows.registry import FILE, Deployment, own_file, read_deployments
from tests.flows.conftest import REPOSITORY
from unclip.files import UnclipError

OWN = read_deployments(own_file())
ONE = """
name: unclip
deployments:
  - name: nightly
    entrypoint: flows.everything.everything
    parameters: {config: {root: data/mine}}
    schedules: [{cron: "15 2 * * *", timezone: UTC}]
    concurrency_limit: {limit: 1, collision_strategy: CANCEL_NEW}
    work_pool: {name: local, job_variables: {env: {A: "1"}}}
"""


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / FILE).write_text(text)
    return tmp_path / FILE


def schema_of(deployment: Deployment) -> dict[str, Any]:
    return _schema_of(deployment.entrypoint)


@cache
def _schema_of(entrypoint: str) -> dict[str, Any]:
    return parameter_schema(load_flow_from_entrypoint(entrypoint)).model_dump_for_openapi()


def names_in(schema: Any) -> Iterator[str]:
    """The names of all settings in a parameter schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from names_in(inner)
    if isinstance(schema, list):
        for inner in schema:
            yield from names_in(inner)


def test_these_are_the_deployments() -> None:
    assert own_file() == REPOSITORY / FILE
    assert [(one.entrypoint, one.name) for one in OWN] == [
        ("flows.everything.everything", "nightly"),
        ("flows.data.data", "on-demand"),
        ("flows.stages.prior", "on-demand"),
        ("flows.stages.decoder", "on-demand"),
        ("flows.stages.upsampler", "on-demand"),
        ("flows.stages.evaluate", "on-demand"),
        ("flows.stages.prior", "machines"),
        ("flows.stages.decoder", "machines"),
        ("flows.stages.upsampler", "machines"),
        ("flows.generate.generate", "on-demand"),
    ]
    assert [one.name for one in OWN if one.schedules] == ["nightly"]
    assert {(one.concurrency_limit.limit, one.concurrency_limit.collision_strategy) for one in OWN} == {(1, "CANCEL_NEW"), (64, "ENQUEUE")}


@pytest.mark.parametrize("deployment", OWN, ids=lambda one: f"{one.entrypoint} {one.name}")
def test_a_deployment_runs_with_the_parameters_of_the_file(deployment: Deployment) -> None:
    load_flow_from_entrypoint(deployment.entrypoint).validate_parameters(dict(deployment.parameters))


@pytest.mark.parametrize("deployment", OWN, ids=lambda one: f"{one.entrypoint} {one.name}")
def test_a_worker_is_as_quiet_as_we_are_and_its_heart_beats_as_the_server_expects(deployment: Deployment) -> None:
    assert deployment.work_pool is not None
    environment = deployment.work_pool.job_variables.env
    assert environment.items() >= QUIET.items()
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)


@pytest.mark.parametrize("deployment", OWN, ids=lambda one: f"{one.entrypoint} {one.name}")
def test_no_parameter_is_a_place_for_a_secret_and_none_is_made_up(deployment: Deployment) -> None:
    schema = schema_of(deployment)
    secret = re.compile(r"password|passwd|secret|credential|auth|api_?key|access_?key|private_?key|(^|_)token$|(^|_)key$", re.IGNORECASE)
    assert [name for name in names_in(schema) if secret.search(name)] == []
    assert all(section["additionalProperties"] is False for section in schema.get("definitions", {}).values())


@pytest.mark.parametrize(
    ("parameters", "path", "word"),
    [
        ({"config": {"prior": {"network": {"dept": 3}}}}, "config.prior.network", "dept"),
        ({"config": {"prior": {"network": {"depth": "deep"}}}}, "config.prior.network.depth", "deep"),
        ({"config": {"decoder": {"training": {"num_steps": 1.5}}}}, "config.decoder.training.num_steps", "1.5"),
        ({"config": {"world": {"name": "moon"}}}, "config.world.name", "moon"),
    ],
)
def test_the_server_refuses_a_wrong_value_by_its_path(parameters: dict[str, Any], path: str, word: str) -> None:
    with pytest.raises(ValidationError) as refused:
        validate(parameters, schema_of(OWN[0]), raise_on_error=True, ignore_required=True)
    where = ".".join(str(part) for part in refused.value.__cause__.absolute_path)  # type: ignore[union-attr]
    assert path.startswith(where)
    assert word in str(refused.value)


@pytest.mark.parametrize("num", [0, -1, "many"])
def test_the_server_refuses_a_wrong_number_of_pictures(num: object) -> None:
    with pytest.raises(ValidationError, match=str(num)):
        validate({"captions": ["a red star"], "root": "data/demo", "num": num}, schema_of(OWN[-1]), raise_on_error=True)


def test_a_file_is_read_with_what_it_leaves_out(tmp_path: Path) -> None:
    (deployment,) = read_deployments(written(tmp_path, ONE))
    assert deployment.parameters == {"config": {"root": "data/mine"}}
    assert deployment.schedules[0].active


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: unclip", "name: unclip\npul: []", "unknown key pul"),
        ("    parameters:", "    paramters:", "unknown key deployments.0.paramters"),
        ("timezone:", "timezon:", "unknown key deployments.0.schedules.0.timezon"),
        ("job_variables:", "job_variable:", "unknown key deployments.0.work_pool.job_variable"),
        ("limit: 1", "limit: one", "deployments.0.concurrency_limit.limit"),
        ("CANCEL_NEW", "CANCEL", "deployments.0.concurrency_limit.collision_strategy"),
        ("flows.everything.everything", "flows/everything.py:everything", "expected a dotted name"),
        ("    entrypoint: flows.everything.everything\n", "", "deployments.0.entrypoint"),
        ("name: unclip", "name: [", "is not YAML"),
    ],
)
def test_what_prefect_would_pass_over_is_refused_by_its_path(old: str, new: str, told: str, tmp_path: Path) -> None:
    assert old in ONE
    with pytest.raises(UnclipError, match=re.escape(told)):
        read_deployments(written(tmp_path, ONE.replace(old, new, 1)))


def test_a_deployment_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnclipError, match=r"each deployment once, got flows\.everything\.everything nightly"):
        read_deployments(written(tmp_path, ONE + ONE.partition("deployments:\n")[2]))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnclipError, match="there is no such file"):
        read_deployments(tmp_path / FILE)
