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
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import DeploymentStatus, StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.exceptions import PrefectHTTPStatusError

    def state_in(*kinds: StateType) -> FlowRunFilterState:
        return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(kinds)))

    def next_of(deployment: UUID) -> FlowRunFilter:
        return FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]), state=state_in(StateType.SCHEDULED))

    begun = FlowRunFilter(state=state_in(*(kind for kind in StateType if kind != StateType.SCHEDULED)))
    try:
        with get_client(sync_client=True) as client:
            flows = {flow.id: flow.name for flow in client.read_flows()}
            found = client.read_deployments()
            coming = [
                run for one in found for run in client.read_flow_runs(flow_run_filter=next_of(one.id), sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC, limit=1)
            ]
            last = client.read_flow_runs(flow_run_filter=begun, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=LAST)
    except PrefectHTTPStatusError as error:
        raise UnclipError(f"the server at {api} refuses to answer ({error.response.status_code}); is PREFECT_API_AUTH_STRING its password?") from None
    names: dict[UUID | None, str] = {one.id: f"{flows[one.flow_id]}/{one.name}" for one in found}
    return Status(
        problem="" if names else f"the server at {api} has no deployment",
        api=api,
        deployments=sorted(names.values()),
        polled=sorted(names[one.id] for one in found if one.status == DeploymentStatus.READY),
        coming=[_run(one, names.get(one.deployment_id, one.name)) for one in coming],
        last=[_run(one, names.get(one.deployment_id, one.name)) for one in last],
    )


def _run(run: "FlowRun", deployment: str) -> Run:
    state = run.state
    return Run(
        deployment=deployment,
        name=run.name,
        state=run.state_name or "",
        when=run.expected_start_time,
        reason="" if state is None or state.message is None else state.message,
    )
