"""Runs img2dataset over a few shards in a process of its own, and believes only what it finds in the files.

img2dataset exits 0 when everything failed, hangs when a worker dies, and takes a broken file for a finished one. So a
shard counts when its statistics, its table and its tar agree with each other and with the rows that were asked for; it
is asked for again, in smaller pieces, when they don't. A process that makes no progress is ended, and a worker that was
killed is not waited for. So one image that kills its reader costs one row.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.contracts import part_name
from unclip.data.fetch import lost_workers
from unclip.data.outcomes import KEPT, outcome
from unclip.files import UnclipError

ATTEMPTS = 4  # in smaller and smaller pieces, the last of one row each; so many that bring nothing at all end the stage
STRIKES = 3  # times that a row must end or stall a process, alone, before it is taken for the culprit
KILLS = 10  # times in a row that the whole process may be killed from outside, which is no row's fault
POLL_SECONDS = 0.1
STATS = "_stats.json"  # what img2dataset writes last of a shard
ROOM = 1 << 20  # bytes; a disk with less is full
LOG_BYTES = 100_000  # of the end of the process's output that are looked at
LOG_LINES = 5  # of the process's output that an error shows
ROWS_AT_ONCE = 4000  # in one of img2dataset's shards, each of which ends with a wait for its slowest link


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
        limits: those of connection.Limits, without `tally`.
        stall_seconds: without any progress for so long, the process is ended.
        on_progress: called now and then with the number of links tried since the last call.

    Returns:
        what came of each row, by id.

    Raises:
        UnclipError: nothing came in ATTEMPTS attempts.
        OSError: the disk is full.
    """
    results: dict[str, Fetched] = {}
    strikes: Counter[str] = Counter()
    pending = [shard for shard in shards if shard]
    longest = max(map(len, pending))
    attempt = fruitless = kills = 0
    for run in itertools.count():
        pending = [piece for shard in pending for piece in _cut(shard, _piece_size(longest, attempt))]
        folder = scratch / str(run)
        _write_input(folder / "in", pending)
        job = dict(arguments) | {
            "url_list": str(folder / "in"), "input_format": "parquet", "url_col": "url", "save_additional_columns": ["id"],
            "output_folder": str(folder / "out"), "output_format": "webdataset", "number_sample_per_shard": max(map(len, pending)),
        }  # fmt: skip
        end = _run(job, limits, folder, num_shards=len(pending), stall_seconds=stall_seconds, on_progress=on_progress)
        came = [_accepted(folder / "out", number, shard, str(arguments["encode_format"])) for number, shard in enumerate(pending)]
        failed = [shard for shard, found in zip(pending, came, strict=True) if found is None]
        for found in filter(None, came):
            results |= found
        if not failed:
            return results
        _refuse_full_disk(folder)
        fruitless = 0 if len(failed) < len(pending) else fruitless + (not end.is_killed)
        kills = kills + 1 if end.is_killed else 0
        attempt += not end.is_killed
        if kills == KILLS or (fruitless == ATTEMPTS and not results):
            how = f"was killed {KILLS} times (is there memory enough?)" if kills == KILLS else f"finished none of {len(shards)} shards in {ATTEMPTS} attempts"
            raise UnclipError(f"img2dataset {how}; it last said: {' | '.join(_log(folder).strip().splitlines()[-LOG_LINES:])}")
        # img2dataset takes its shards in their order, so the first that are not done are those that were begun
        is_at_work = results or any(os.scandir(folder / "tally"))
        struck = [shard for shard in failed if len(shard) == 1][: end.num_stuck if is_at_work else 0]
        strikes.update(name for ((name, _),) in struck)
        results |= {name: Fetched("image broken", f"img2dataset ended on it {STRIKES} times") for name, count in strikes.items() if count >= STRIKES}
        pending = [shard for shard in failed if shard not in struck] + [shard for shard in struck if shard[0][0] not in results]
        if not pending:
            return results
    raise AssertionError("counting does not end")


def _piece_size(longest: int, attempt: int) -> int:
    return max(1, round(longest ** (1 - attempt / (ATTEMPTS - 1)))) if attempt < ATTEMPTS else 1


def evenly(rows: Sequence[tuple[str, str]], processes: int) -> list[Sequence[tuple[str, str]]]:
    """Rows as shards for img2dataset: at least one a process, none longer than ROWS_AT_ONCE, all about as long."""
    shards = max(processes, -(-len(rows) // ROWS_AT_ONCE))
    return _cut(rows, max(1, -(-len(rows) // shards)))


def _log(folder: Path) -> str:
    """The end of what img2dataset said."""
    with (folder / "log.txt").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
        return file.read().decode(errors="replace")


def _refuse_full_disk(folder: Path) -> None:
    """Raises OSError where there is no room. img2dataset takes that for a fault of each picture, or hangs; time cures it."""
    if shutil.disk_usage(folder).free < ROOM or os.strerror(errno.ENOSPC) in _log(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _cut(shard: Sequence[tuple[str, str]], size: int) -> list[Sequence[tuple[str, str]]]:
    return [shard[first : first + size] for first in range(0, len(shard), size)]


def _write_input(folder: Path, shards: Sequence[Sequence[tuple[str, str]]]) -> None:
    # one file a shard: img2dataset numbers its shards over the sorted files, and cuts none that is not too long
    folder.mkdir(parents=True)
    for number, shard in enumerate(shards):
        pq.write_table(pa.table({"id": [name for name, _ in shard], "url": [url for _, url in shard]}), folder / f"{part_name(number)}.parquet")


@dataclass(frozen=True)
class End:
    """How a process ended: killed from outside, or with this many shards begun that it could not do."""

    is_killed: bool = False
    num_stuck: int = 0


def _run(job: Mapping[str, Any], limits: Mapping[str, Any], folder: Path, *, num_shards: int, stall_seconds: float, on_progress: Callable[[int], None]) -> End:
    """Runs the process until all statistics are there but those of workers that were killed, or it ends, or stalls.

    What it left is for the caller to judge.
    """
    for name in ("tally", "alive", "out"):
        (folder / name).mkdir()
    content = {"arguments": dict(job), "limits": dict(limits) | {"tally": str(folder / "tally")}, "alive": str(folder / "alive"), "parent": os.getpid()}
    (folder / "job.json").write_text(json.dumps(content))
    environment = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    # the heads of pictures are looked at before (picture_head.py); this is for heads that two readers read differently
    environment["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(int(job["max_image_area"]))
    with (folder / "log.txt").open("wb") as log:
        # -P: what lies in the folder that somebody works in must not take the place of a module
        command = [sys.executable, "-P", "-m", "unclip.data.fetch", str(folder / "job.json")]
        process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        tried, state, changed, lost = 0, -1, time.monotonic(), 0
        counted: set[str] = set()
        while process.poll() is None and len(counted) < num_shards - lost:
            now_tried = _size(folder / "tally")
            if now_tried > tried:
                on_progress(now_tried - tried)
                tried = now_tried
            lost = lost_workers(folder / "alive")
            counted |= {entry.name for entry in os.scandir(folder / "out") if entry.name.endswith(STATS) and entry.name not in counted and _stats(entry.path)}
            now_state = tried + _size(folder / "out")
            if now_state != state:
                state, changed = now_state, time.monotonic()
            elif time.monotonic() - changed > stall_seconds:
                return End(num_stuck=int(job["processes_count"]))
            _refuse_full_disk(folder)
            time.sleep(POLL_SECONDS)
        if (process.poll() or 0) < 0:
            return End(is_killed=True)
        return End(num_stuck=lost or num_shards)  # all that are not done, where it has gone through all of them
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started; they share a group of their own."""
    with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())


def _stats(path: str | Path) -> dict[str, Any] | None:
    try:
        content = json.loads(Path(path).read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):  # not there yet, or not whole
        return None
    return content if isinstance(content, dict) else None


def _accepted(folder: Path, number: int, shard: Sequence[tuple[str, str]], suffix: str) -> dict[str, Fetched] | None:
    """What came of the rows of one shard, None where its files don't agree."""
    stats = _stats(folder / f"{part_name(number)}{STATS}")
    if stats is None or stats.get("count") != len(shard):
        return None
    try:
        table = pq.read_table(folder / f"{part_name(number)}.parquet")
        pictures = picture_places(folder / f"{part_name(number)}.tar", f".{suffix}")
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


def picture_places(tar: Path, suffix: str) -> dict[str, tuple[int, int]]:
    """Where each picture lies in a tar, by key. Raises TarError where the tar does not read to its end."""
    with tarfile.open(tar, "r:") as file:
        places = {member.name.removesuffix(suffix): (member.offset_data, member.size) for member in file if member.name.endswith(suffix)}
        end = file.offset
    if tar.stat().st_size < end or any(offset + size > tar.stat().st_size for offset, size in places.values()):
        raise tarfile.ReadError(f"{tar} ends early")
    return places
