"""Flows for the tests of a real server: one that is over at once, and one that holds a child which saves when it is asked to stop."""

import os
import sys
from pathlib import Path

from prefect import flow

from flows.artifacts import announce
from flows.process import run_child

# says its number, then counts; saves within half a second of the first signal
CHILD = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
folder, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
open(folder + "/child", "w").write(str(os.getpid()))
while time.monotonic() < end and not asked:
    print("tick", flush=True)
    time.sleep(0.2)
time.sleep(0.5)
open(folder + "/saved", "w").write("stopped" if asked else "finished")
sys.exit(143 if asked else 0)
"""


@flow(persist_result=False)
def beat(root: str, fail: bool = False) -> None:
    """Leaves a file for each time it ran.

    Args:
        root: the folder to leave it in.
        fail: whether to announce something and then fail.
    """
    folder = Path(root) / "beats"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(os.getpid())).touch()
    if fail:
        announce("quality-fell", "the cosine fell from 0.7 to 0.6")
        raise ValueError("a night that failed")


@flow(persist_result=False)
def hold(root: str, seconds: float = 300.0) -> None:
    """Has a child that takes its time.

    Args:
        root: the folder that the child leaves its number and its state in.
        seconds: how long it takes.
    """
    run_child([sys.executable, "-c", CHILD, root, str(seconds)], name="hold", say=lambda line: None)
