"""What `unclip serve` is doing: whether its server and its deployments are up, what runs next and how the last runs ended."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from flows.environment import set_environment
from flows.server import access_of, answers, home_of
from unclip.files import UnclipError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

LAST = 10


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a deployment; `reason` is what its state says, empty where it says nothing."""

    deployment: str
    name: str
    state: str
    when: datetime | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is up. `problem` is empty where all is; `polled` names the deployments that someone waits for runs of."""

    problem: str
    api: str = ""
    deployments: Sequence[str] = ()
    polled: Sequence[str] = ()
    coming: Sequence[Run] = ()
    last: Sequence[Run] = ()


def status_of(root: Path) -> Status:
    """Asks the server of a root, or that of PREFECT_API_URL."""
    home, elsewhere = home_of(root), os.environ.get("PREFECT_API_URL", "")
    access = {"PREFECT_API_URL": elsewhere} if elsewhere else access_of(home)
    if not access:
        return Status(problem=f"nobody serves {root}; `unclip serve --root {root}` does")
    api = access["PREFECT_API_URL"]
    if not answers(api):
        return Status(problem=f"the server does not answer at {api}", api=api)
    os.environ.update(access)
    set_environment(root)
    return _asked(api)


def _asked(api: str) -> Status:
    from prefect.client.orchestration import get_client  # only now: Prefect reads the environment when it is imported
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import DeploymentStatus, StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.exceptions import PrefectHTTPStatusError

    waiting = FlowRunFilterStateType(any_=[StateType.SCHEDULED])
    others = FlowRunFilterStateType(any_=[kind for kind in StateType if kind != StateType.SCHEDULED])
    try:
        with get_client(sync_client=True) as client:
            flows = {flow.id: flow.name for flow in client.read_flows()}
            found = client.read_deployments()
            names: dict[UUID | None, str] = {one.id: f"{flows[one.flow_id]}/{one.name}" for one in found}
            coming, last = (
                client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=kind)), sort=sort, limit=LAST)
                for kind, sort in ((waiting, FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC), (others, FlowRunSort.EXPECTED_START_TIME_DESC))
            )
    except PrefectHTTPStatusError as error:
        raise UnclipError(f"the server at {api} refuses to answer ({error.response.status_code}); is PREFECT_API_AUTH_STRING its password?") from None
    polled = sorted(names[one.id] for one in found if one.status == DeploymentStatus.READY)
    return Status(
        problem="" if names else f"the server at {api} has no deployment",
        api=api,
        deployments=sorted(names.values()),
        polled=polled,
        coming=[_run(one, names.get(one.deployment_id, one.name)) for one in _first_of_each(coming)],
        last=[_run(one, names.get(one.deployment_id, one.name)) for one in last],
    )


def _first_of_each(runs: "Sequence[FlowRun]") -> "list[FlowRun]":
    """The next run of each deployment: a schedule has its runs of a week ahead."""
    return list({run.deployment_id: run for run in reversed(runs)}.values())[::-1]


def _run(run: "FlowRun", deployment: str) -> Run:
    state = run.state
    return Run(
        deployment=deployment,
        name=run.name,
        state=run.state_name or "",
        when=run.expected_start_time,
        reason="" if state is None or state.message is None else state.message,
    )
