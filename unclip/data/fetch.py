"""The process that runs img2dataset (`python -m unclip.data.fetch job.json`), and how its workers are kept in sight.

img2dataset's own workers import this file again, and so does every one say here that it lives, and that it will not
outlive the process that started it.
"""

import ctypes
import fcntl
import json
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

WORKERS_VARIABLE = "UNCLIP_FETCH"  # environment: what workers are told, as JSON, for they get no arguments of ours
WATCH_SECONDS = 0.5
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Ends this process, hard, as soon as `parent` is no longer its parent: no orphan writes where a new run writes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def sign_in(folder: Path) -> None:
    """Holds a locked file in a folder until this worker ends; one that ends well removes it (see `lost_workers`)."""
    path = folder / str(os.getpid())
    aside = folder / f".{os.getpid()}"
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT)  # never closed: the lock goes with the process, however it goes
    fcntl.flock(handle, fcntl.LOCK_EX)
    aside.rename(path)
    multiprocessing.util.Finalize(None, path.unlink, kwargs={"missing_ok": True}, exitpriority=100)


def lost_workers(folder: Path) -> int:
    """How many workers were killed: their files are there, and nobody holds them. img2dataset would wait for them for ever."""
    return sum(_is_lost(Path(entry.path)) for entry in os.scandir(folder) if not entry.name.startswith("."))


def _is_lost(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY)
    except FileNotFoundError:  # it has just ended well
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return path.exists()


def main(job: dict[str, Any]) -> None:
    """Runs img2dataset with the arguments of the job."""
    os.environ[WORKERS_VARIABLE] = json.dumps({"parent": os.getpid(), "alive": job["alive"]})
    if job["arguments"]["distributor"] == "pyspark":
        from pyspark.sql import SparkSession

        SparkSession.builder.appName("unclip").getOrCreate()  # as spark-defaults.conf has it; img2dataset alone would stay on this machine
    from img2dataset import download  # 3 s, and only this process and its workers need it

    from unclip.data.connection import Limits
    from unclip.data.web import Guarded

    download(**job["arguments"], compute_hash=Guarded("sha256", Limits(**job["limits"])))


if __name__ == "__mp_main__":  # what multiprocessing calls it in a worker
    _told = json.loads(os.environ[WORKERS_VARIABLE])
    die_with(_told["parent"])
    sign_in(Path(_told["alive"]))

if __name__ == "__main__":
    _job = json.loads(Path(sys.argv[1]).read_text())
    die_with(_job["parent"])
    main(_job)
