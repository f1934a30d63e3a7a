"""The environment that Prefect reads once, when it is imported: `prepare` goes before any `import prefect`."""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

SERVER = "prefect.server.api.server:create_app"  # in the command line of a temporary server
STARTED_BY = "UNCLIP_STARTED_BY"  # the process that a temporary server belongs to; servers inherit it

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
    # a temporary server is stopped with its queues as they are: short ones lose no task run
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
}


def prepare(root: Path) -> None:
    """Makes ready for a run on this data root: the environment, and without PREFECT_API_URL a temporary server for the run.

    Its history stays under the root. What servers killed runs left there are ended first.
    """
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
    """Ends the temporary servers on this PREFECT_HOME whose run is gone; they hold its database. Returns their process ids."""
    orphans = [server for server in psutil.process_iter() if _is_orphan(server, home)]
    for server in orphans:
        server.terminate()
    _, stubborn = psutil.wait_procs(orphans, timeout=seconds)
    for server in stubborn:
        server.kill()
    return [server.pid for server in orphans]


def _is_orphan(server: psutil.Process, home: Path) -> bool:
    try:
        if SERVER not in server.cmdline():
            return False
        environment = server.environ()
        if environment.get("PREFECT_HOME") != str(home):
            return False
        owner = psutil.Process(int(environment.get(STARTED_BY, "0") or 0))
        # a process number is given again after its owner's end; the owner of a server is older than the server
        return bool(owner.status() == psutil.STATUS_ZOMBIE or owner.create_time() > server.create_time())
    except psutil.NoSuchProcess as gone:
        return bool(gone.pid != server.pid)  # the owner is gone, not the server
    except psutil.AccessDenied:
        return False  # another user's
