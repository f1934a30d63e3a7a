"""Runs img2dataset over a few shards in a process of its own, and believes only what it finds in the files.

img2dataset exits 0 when everything failed, hangs when a worker dies, and takes a broken file for a finished one. So a
shard counts when its statistics, its table and its tar agree with each other and with the rows that were asked for; it
is asked for again, in smaller pieces, when they don't, and a process that makes no progress is ended. So one image that
kills its reader costs one row.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.contracts import part_name
from unclip.data.fetch import LIMITS_VARIABLE
from unclip.data.outcomes import KEPT, outcome
from unclip.files import UnclipError

ATTEMPTS = 4  # in smaller and smaller pieces, the last of one row each
POLL_SECONDS = 0.1
LOG_LINES = 5  # of the process's output that an error shows


@dataclass(frozen=True)
class Fetched:
    """What came of one row: "kept" or a Reason, and for a kept one its picture: the bytes at `place` (offset, size) of `tar`."""

    status: str
    detail: str
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    tar: Path | None = None
    place: tuple[int, int] = (0, 0)


def fetch(
    shards: Sequence[Sequence[tuple[str, str]]],
    *,
    scratch: Path,
    arguments: Mapping[str, Any],
    limits: Mapping[str, Any],
    stall_seconds: float,
    on_progress: Callable[[int], None],
) -> dict[str, Fetched]:
    """Downloads shards of (id, url) rows; ids are unique over all of them.

    Args:
        shards: the rows; each shard becomes one of img2dataset's.
        scratch: a folder to work in. The pictures stay there, so it must live as long as what is returned.
        arguments: img2dataset's own, without those about input, output and shards.
        limits: those of fetch.Limits, without `tally`.
        stall_seconds: without any progress for so long, the process is ended.
        on_progress: called now and then with the number of links tried since the last call.

    Returns:
        what came of each row, by id.

    Raises:
        UnclipError: nothing came in ATTEMPTS attempts.
    """
    results: dict[str, Fetched] = {}
    pending = [shard for shard in shards if shard]
    longest = max(map(len, pending))
    for attempt in range(ATTEMPTS):
        pending = [piece for shard in pending for piece in _cut(shard, round(longest ** (1 - attempt / (ATTEMPTS - 1))))]
        folder = scratch / str(attempt)
        _write_input(folder / "in", pending)
        job = dict(arguments) | {
            "url_list": str(folder / "in"), "input_format": "parquet", "url_col": "url", "save_additional_columns": ["id"],
            "output_folder": str(folder / "out"), "output_format": "webdataset", "number_sample_per_shard": max(map(len, pending)),
        }  # fmt: skip
        _run(job, limits, folder, num_shards=len(pending), stall_seconds=stall_seconds, on_progress=on_progress)
        failed = []
        for number, shard in enumerate(pending):
            found = _accepted(folder / "out", number, shard, str(arguments["encode_format"]))
            if found is None:
                failed.append(shard)
            else:
                results |= found
        pending = failed
        if not pending:
            return results
    if results:
        # all the others went through, so it is these images that end the process: no reason to lose the rest
        return results | {name: Fetched("image broken", f"img2dataset ended on it {ATTEMPTS} times") for piece in pending for name, _ in piece}
    log = (scratch / str(ATTEMPTS - 1) / "log.txt").read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
    raise UnclipError(f"img2dataset finished none of {len(shards)} shards in {ATTEMPTS} attempts; it last said: {' | '.join(log)}")


def _cut(shard: Sequence[tuple[str, str]], size: int) -> list[Sequence[tuple[str, str]]]:
    return [shard[first : first + size] for first in range(0, len(shard), size)]


def _write_input(folder: Path, shards: Sequence[Sequence[tuple[str, str]]]) -> None:
    # one file a shard: img2dataset numbers its shards over the sorted files, and cuts none that is not too long
    folder.mkdir(parents=True)
    for number, shard in enumerate(shards):
        pq.write_table(pa.table({"id": [name for name, _ in shard], "url": [url for _, url in shard]}), folder / f"{part_name(number)}.parquet")


def _run(job: Mapping[str, Any], limits: Mapping[str, Any], folder: Path, *, num_shards: int, stall_seconds: float, on_progress: Callable[[int], None]) -> None:
    """Runs the process until all statistics are there, or it ends, or stalls. What it left is for the caller to judge."""
    (folder / "tally").mkdir()
    (folder / "out").mkdir()
    (folder / "job.json").write_text(json.dumps({"arguments": dict(job)}))
    own = json.dumps(dict(limits) | {"tally": str(folder / "tally"), "parent": os.getpid()})
    environment = {LIMITS_VARIABLE: own, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    if job["max_image_area"] != float("inf"):
        environment["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(int(job["max_image_area"]))  # checked before the picture is decoded
    with (folder / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "unclip.data.fetch", str(folder / "job.json")]
        process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        tried, state, changed = 0, -1, time.monotonic()
        while process.poll() is None and not _all_counted(folder / "out", num_shards):
            now_tried = _size(folder / "tally")
            if now_tried > tried:
                on_progress(now_tried - tried)
                tried = now_tried
            now_state = tried + _size(folder / "out")
            if now_state != state:
                state, changed = now_state, time.monotonic()
            elif time.monotonic() - changed > stall_seconds:
                break
            time.sleep(POLL_SECONDS)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started; they share a group of their own."""
    with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())


def _all_counted(folder: Path, num_shards: int) -> bool:
    return all(_stats(folder, number) is not None for number in range(num_shards))


def _stats(folder: Path, number: int) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / f"{part_name(number)}_stats.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _accepted(folder: Path, number: int, shard: Sequence[tuple[str, str]], suffix: str) -> dict[str, Fetched] | None:
    """What came of the rows of one shard, None where its files don't agree."""
    stats = _stats(folder, number)
    if stats is None or stats.get("count") != len(shard):
        return None
    try:
        table = pq.read_table(folder / f"{part_name(number)}.parquet")
        pictures = _members(folder / f"{part_name(number)}.tar", f".{suffix}")
    except (OSError, pa.ArrowException, tarfile.TarError):
        return None
    rows = table.select(["id", "key", "status", "error_message", "sha256", "width", "height"]).to_pylist()
    if sorted(row["id"] for row in rows) != sorted(name for name, _ in shard) or stats.get("successes") != len(pictures):
        return None
    results = {}
    for row in rows:
        status, detail = outcome(row["status"], row["error_message"])
        if (status == KEPT) != (row["key"] in pictures):
            return None
        if status == KEPT:
            results[row["id"]] = Fetched(status, detail, row["sha256"], row["width"], row["height"], folder / f"{part_name(number)}.tar", pictures[row["key"]])
        else:
            results[row["id"]] = Fetched(status, detail)
    return results


def _members(tar: Path, suffix: str) -> dict[str, tuple[int, int]]:
    """Where each picture lies in a tar, by key. Raises TarError where the tar does not read to its end."""
    with tarfile.open(tar, "r:") as file:
        places = {member.name.removesuffix(suffix): (member.offset_data, member.size) for member in file if member.name.endswith(suffix)}
        end = file.offset
    if tar.stat().st_size < end or any(offset + size > tar.stat().st_size for offset, size in places.values()):
        raise tarfile.ReadError(f"{tar} ends early")
    return places


def free(scratch: Path) -> None:
    """Removes the scratch folder of a batch that is done, or of a run that was killed."""
    shutil.rmtree(scratch, ignore_errors=True)
