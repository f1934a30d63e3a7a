"""`unclip serve`: one machine's server, schedules and runs in one command that can be stopped, killed and started again."""

import asyncio
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil

from flows.environment import HEARTBEAT_SECONDS, STARTED_BY, reap_orphans, set_environment
from flows.registry import Deployment, read_deployments
from flows.server import CREDENTIAL, LOG, LocalServer, address_of, answers, credential_of, home_of, only_one
from unclip.config import RunConfig, as_dict
from unclip.files import UnclipError
from unclip.roots import local_root

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner

LOOK_SECONDS = 1.0
STOP_SECONDS = 60.0  # Prefect gives each run 30 to end
END_SECONDS = 5.0
MAX_RESTARTS, AN_HOUR = 5, 3600.0  # of a server that ends by itself

Say = Callable[[str], None]


def serve(config: RunConfig, *, port: int, deployments: Path, say: Say) -> None:
    """Offers the deployments of a file, each with this config, and runs what is due until it is asked to stop.

    With PREFECT_API_URL set it serves to that server, and starts none.

    Raises:
        UnclipError: the root is served already, the port is taken, the file is wrong, or there is no server.
    """
    root = local_root(config.root)
    offered, home = read_deployments(deployments), home_of(root)
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)  # whoever reads the history reads what runs said
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was begun is ended
    with only_one(home):
        os.environ["PREFECT_HOME"] = str(home)
        os.environ[STARTED_BY] = str(os.getpid())  # whatever outlives a kill of this process is ended by the next one
        reap_orphans(home)
        if url := os.environ.get("PREFECT_API_URL"):
            set_environment(root)
            if not answers(url):
                raise UnclipError(f"no Prefect server answers at PREFECT_API_URL={url}; unset it, and `unclip serve` starts one of its own")
            asyncio.run(_work(offered, config, None, say, how_to_run(url, offered[0])))
            return
        os.environ.pop("PREFECT_API_KEY", None)  # of a cloud; the client would send it instead of the password
        os.environ |= {"PREFECT_API_URL": address_of(port), "PREFECT_API_AUTH_STRING": credential_of(home)}
        set_environment(root)
        with LocalServer(home, port) as server:
            asyncio.run(_work(offered, config, server, say, how_to_run(server.api, offered[0], home / CREDENTIAL)))


def how_to_run(api: str, deployment: Deployment, credential: Path | None = None) -> str:
    """The lines that run a deployment by hand. They name the file of the credential, not what it holds."""
    password = "" if credential is None else f' PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(credential))})"'
    name = f"{deployment.entrypoint.rpartition('.')[2]}/{deployment.name}"
    return f"    export DO_NOT_TRACK=1 PREFECT_API_URL={api}{password}\n    prefect deployment run {name} --watch"


async def _work(offered: Sequence[Deployment], config: RunConfig, server: LocalServer | None, say: Say, how: str) -> None:
    from prefect.runner import Runner  # only now: Prefect reads the environment when it is imported

    from flows.automations import automate

    # a pause on shutdown would outlive the shutdown: schedules are paused with `prefect deployment schedule pause`
    runner = Runner(name="unclip", pause_on_shutdown=False, limit=None, heartbeat_seconds=HEARTBEAT_SECONDS)
    ids = [await runner.aadd_deployment(await _runnable(deployment, config)) for deployment in offered]
    if server is not None:
        await _forget_others(ids)
    await automate()
    working = asyncio.create_task(runner.start())
    await asyncio.sleep(0)  # by now the runner has taken SIGTERM for itself, and would leave its runs behind as if they ran
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    reasons: set[asyncio.Task[Any]] = {working, asyncio.create_task(asked.wait())}
    if server is not None:
        reasons.add(asyncio.create_task(_keep_up(server, say)))
    while not runner.started and not working.done():
        await asyncio.sleep(0.05)
    say(f"serving {config.root}: {len(offered)} deployments; the page is {os.environ['PREFECT_API_URL'].removesuffix('/api')}\nto run one now:\n{how}")
    ended, _ = await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
    say("stopping: what runs saves its state first")
    await _stop(runner, working, spare=None if server is None else server.pid)
    if working in ended and (error := working.exception()) is not None:
        raise UnclipError(f"the server at {os.environ['PREFECT_API_URL']} was away for too long; what ran was stopped, and the next run goes on") from error
    for reason in ended:
        reason.result()


async def _runnable(deployment: Deployment, config: RunConfig) -> "RunnerDeployment":
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import load_flow_from_entrypoint
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    ours = {"config": as_dict(config), "root": config.root}  # in the place of what the file has
    limit = deployment.concurrency_limit
    made = await load_flow_from_entrypoint(deployment.entrypoint).ato_deployment(
        name=deployment.name,
        schedules=[Cron(one.cron, timezone=one.timezone, active=one.active) for one in deployment.schedules],
        parameters={name: ours.get(name, value) for name, value in deployment.parameters.items()},
        concurrency_limit=ConcurrencyLimitConfig(limit=limit.limit, collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy)),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.work_pool_name = made.work_queue_name = None  # set, so that one of the same name leaves the pool that it was deployed to
    return made


async def _forget_others(ids: Sequence[UUID]) -> None:
    """Takes out what an earlier time offered: nobody would run what its schedules ask for."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        for there in await client.read_deployments():
            if there.id not in ids and there.work_pool_name is None:
                await client.delete_deployment(there.id)


async def _keep_up(server: LocalServer, say: Say) -> None:
    """Starts the server again whenever it ends; the runs don't need it meanwhile."""
    restarts: list[float] = []
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if not server.has_ended():
            continue
        restarts = [*(then for then in restarts if then > time.monotonic() - AN_HOUR), time.monotonic()]
        if len(restarts) > MAX_RESTARTS:
            raise UnclipError(f"the server ended {len(restarts)} times within an hour; its log is {server.home / LOG}")
        say("the server ended; it is started again, and what runs goes on")
        await asyncio.to_thread(server.start)


async def _stop(runner: "Runner", working: "asyncio.Task[None]", *, spare: int | None) -> None:
    """Ends the runs as a cancel does, and then whatever is left of them."""
    started = [process for process in psutil.Process().children(recursive=True) if process.pid != spare]
    if not working.done():
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await runner.astop()
                await working
        except TimeoutError:
            working.cancel()
    for process in started:
        if process.is_running():
            process.kill()
    psutil.wait_procs(started, timeout=END_SECONDS)
