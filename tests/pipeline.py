"""A whole tiny pipeline for tests: run once, copied wherever a test wants to break something."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

STAGES = ("source", "download", "curate", "clip", "embed", "select", "index", "prior", "decoder", "upsampler", "evaluate")
COMMANDS = {"prior": ["train", "prior"], "decoder": ["train", "decoder"], "upsampler": ["train", "upsampler"], "evaluate prior": ["evaluate", "prior"]}
SECONDS = 280

# what a kill waits for: the stage has begun to leave something, and is not yet done
BEGUN = {
    "source": "manifest.json", "download": "00000.tar", "curate": "00000.parquet", "clip": "training/step-*", "embed": "00000.parquet",
    "select": "rows.parquet", "index": "manifest.json",
    "prior": "diffusion/step-*", "decoder": "step-*", "upsampler": "first/step-*", "evaluate": "manifest.json",
}  # fmt: skip

# Read by every Python process that has the folder on its PYTHONPATH: whoever speaks to anything but this machine is written down.
WATCH_THE_NETWORK = """
import ipaddress, os, socket

def _is_local(address):
    if not isinstance(address, tuple):
        return True  # a socket file
    host = str(address[0])
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False

def _watched(real):
    def connect(self, address):
        if not _is_local(address):
            _write(f"connect {address}")
            raise OSError(f"refused by the test: {address}")
        return real(self, address)
    return connect

def _write(line):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(line + "\\n")

_resolve = socket.getaddrinfo

def getaddrinfo(host, *rest, **more):
    if host is not None and not _is_local((host.decode() if isinstance(host, bytes) else host, 0)):
        _write(f"resolve {host}")
        raise socket.gaierror(f"refused by the test: {host}")
    return _resolve(host, *rest, **more)

socket.getaddrinfo = getaddrinfo
socket.socket.connect = _watched(socket.socket.connect)
socket.socket.connect_ex = _watched(socket.socket.connect_ex)
"""


def command(name: str, root: Path, *more: str) -> list[str]:
    """The command line of a stage, or of another command that takes --root."""
    return [sys.executable, "-m", "unclip", *COMMANDS.get(name, [name]), "--root", str(root), *more]


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: two threads at the most, and nothing of the test runner's own Prefect settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1", "COLUMNS": "200"} | more


def unclip(name: str, root: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end."""
    return subprocess.run(command(name, root, *more), env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False)


def copied(root: Path, to: Path) -> Path:
    """A copy of a data root, its remembered config pointing at itself."""
    shutil.copytree(root, to, ignore=shutil.ignore_patterns(".prefect", "*.lock", ".lock"))
    config = to / "run.json"
    config.write_text(config.read_text().replace(str(root), str(to)))
    return to


def folder_of(root: Path, stage: str) -> Path:
    """Where a stage leaves its result in the tiny preset."""
    return root / {
        "download": "shards",
        "curate": "shards/_curated",
        "clip": "clip/own",
        "embed": "embeddings/own",
        "select": "embeddings/own/_selected",
        "index": "index/own",
        "prior": "prior/main",
        "decoder": "decoder/main",
        "upsampler": "upsampler/main",
        "evaluate": "report/main",
    }.get(stage, stage)


def manifest(root: Path, stage: str) -> dict[str, object]:
    """The manifest that a stage left."""
    content: dict[str, object] = json.loads((folder_of(root, stage) / "manifest.json").read_text())
    return content
