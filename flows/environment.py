"""The environment that Prefect reads once, when it is imported: `prepare` goes before any `import prefect`."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from flows.server import access_of, home_of, new_credential

SERVER = "prefect.server.api.server:create_app"  # in the command line of a temporary server
SERVE = ("prefect", "server", "start")  # in that of the server of `unclip serve`
WORK = (("prefect.engine",), ("-m", "unclip"))  # in those of a run and of its stage
STARTED_BY = "UNCLIP_STARTED_BY"  # the process that a server or a run belongs to; they inherit it
SAVE_SECONDS = 30.0
HEARTBEAT_SECONDS = 30  # the least that Prefect allows

QUIET: Mapping[str, str] = {  # nothing is told to anyone
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
SOUND: Mapping[str, str] = {
    "PREFECT_SERVER_API_HOST": "127.0.0.1",  # whoever reaches the server can run code with it
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default of 20 s is too short for a busy machine
    "PREFECT_TASKS_DEFAULT_NO_CACHE": "true",  # the manifests on disk are the memory
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    # in memory alone, a server that is started again would forget who holds a deployment's only place
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # after 90 days
    # a temporary server is stopped with its queues as they are: short ones lose no task run
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
}


def prepare(root: Path) -> None:
    """Makes ready for a run on this data root: the environment, and a server.

    That is the one of PREFECT_API_URL; or the root's own, where `unclip serve` holds it; or a temporary one for the run, whose
    history stays under the root. What killed runs left there is ended first.
    """
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.update(access_of(home_of(root)))
    set_environment(root)
    if not os.environ.get("PREFECT_API_URL"):
        reap_orphans(Path(os.environ["PREFECT_HOME"]))
        _start_server()


def set_environment(root: Path) -> None:
    """Sets what is not yet set. Prefect's own log stays silent without a real server: the stages speak for themselves."""
    settings = dict(QUIET) | dict(SOUND) | {"PREFECT_HOME": str(root.absolute() / ".prefect")}
    if not os.environ.get("PREFECT_API_URL"):
        settings["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
        settings["PREFECT_CLIENT_MAX_RETRIES"] = "2"  # a temporary server that is gone will not come back
        # one that is left over from a server elsewhere must fit too
        os.environ["PREFECT_SERVER_API_AUTH_STRING"] = os.environ.setdefault("PREFECT_API_AUTH_STRING", new_credential())
        os.environ[STARTED_BY] = str(os.getpid())
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect makes no parents


def _start_server() -> None:
    from prefect.server.api.server import SubprocessASGIServer  # only now: Prefect reads the environment when it is imported

    # Ctrl-C goes to every process of the terminal. A server that died of it would leave the run waiting for an answer for
    # a minute; a blocked signal stays blocked in a child, and Prefect itself stops the server with another one.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        SubprocessASGIServer().start()  # flows find this one
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # after its own clean-up Prefect hands the signal on; dying of it would leave the server behind
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def reap_orphans(home: Path, *, seconds: float = 5.0) -> list[int]:
    """Ends what is left of killed processes on this PREFECT_HOME: their runs, which save, and then their servers, which hold its database.

    Returns the process ids.
    """
    works, servers = _orphans(home, WORK), _orphans(home, ((SERVER,), SERVE))
    _end(works, SAVE_SECONDS)
    _end(servers, seconds)
    return [process.pid for process in (*works, *servers)]


def _end(processes: Sequence[psutil.Process], seconds: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended beside another one
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=seconds)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _orphans(home: Path, commands: Sequence[Sequence[str]]) -> list[psutil.Process]:
    """The processes with all words of one of the commands that began on this PREFECT_HOME, and whose owner is gone."""
    return [process for process in psutil.process_iter() if _is_orphan(process, home, commands)]


def _is_orphan(process: psutil.Process, home: Path, commands: Sequence[Sequence[str]]) -> bool:
    try:
        line = process.cmdline()
        if not any(set(words) <= set(line) for words in commands):
            return False
        environment = process.environ()
        if environment.get("PREFECT_HOME") != str(home) or STARTED_BY not in environment or process.pid == os.getpid():
            return False
        owner = psutil.Process(int(environment[STARTED_BY]))
        # a process number is given again after its owner's end; the owner is older than what it started
        return bool(owner.status() == psutil.STATUS_ZOMBIE or owner.create_time() > process.create_time())
    except psutil.NoSuchProcess as gone:
        return bool(gone.pid != process.pid)  # the owner is gone, not the process
    except psutil.AccessDenied:
        return False  # another user's
