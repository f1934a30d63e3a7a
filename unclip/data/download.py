"""The stage `download`: images and captions in WebDataset shards, one row for every link, and nothing fetched twice."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from unclip.data.batch import Fetched, fetch, free
from unclip.data.contracts import SOURCE, part_name, read_table
from unclip.data.folder import SERVE
from unclip.data.manifest import Manifest, Part, Stage, finished_manifest, identity, is_current, runtime, sum_counts
from unclip.data.outcomes import TRANSIENT
from unclip.data.pack import write_shard
from unclip.data.serve import HOST, serving
from unclip.data.source import STAGE as SOURCE_STAGE
from unclip.data.source import TABLE
from unclip.files import UnclipError, fingerprint, read_json, remove_leftovers
from unclip.progress import Bar, progress

STAGE = "download"
SCRATCH = ".scratch"
SHARDS_AT_ONCE = 16  # one img2dataset call: its start costs seconds, and a kill loses no more than this
USER_AGENT = "unclip/{version} (+image-text research; img2dataset)"
ROBOT_NAME = "unclip"  # the name by which an X-Robots-Tag header may address us
# what a page says when it wants no part in this: img2dataset's list, and noml
OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex", "noml")
QUALITIES = {"jpg": range(1, 101), "webp": range(1, 101), "png": range(10)}


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """How images are fetched and stored.

    A picture whose shorter side is longer than `image_size` pixels is scaled down to it; smaller ones stay as they are.
    """

    image_size: int = 256
    encode_format: Literal["png", "jpg", "webp"] = "jpg"
    encode_quality: int = 95  # jpg, webp: 1 to 100; png, which loses nothing: how hard to compress, 0 to 9
    min_image_size: int = 16  # shorter side, pixels
    max_aspect_ratio: float = 4.0
    max_image_pixels: int = 50_000_000
    max_bytes: int = 20_000_000
    allow_private: bool = False  # follow links to private, loopback and link-local addresses
    timeout_seconds: int = runtime(10)  # for one piece of an answer
    max_seconds: float = runtime(30.0)  # for one image with all its redirects
    retries: int = runtime(2)  # of timeouts, lost connections, 5xx and 429
    backoff_seconds: float = runtime(2.0)  # before the first retry; doubled for each further one
    stall_seconds: float = runtime(180.0)  # without any progress, img2dataset is started anew
    processes: int = runtime(1)
    threads: int = runtime(16)
    user_agent: str = runtime(USER_AGENT)  # {version} stands for ours

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.encode_format not in QUALITIES:
            raise ValueError(f"encode_format must be one of {', '.join(QUALITIES)}, got {self.encode_format!r}")
        allowed = QUALITIES[self.encode_format]
        if self.encode_quality not in allowed:
            raise ValueError(f"encode_quality must be in [{allowed[0]}, {allowed[-1]}] for {self.encode_format}, got {self.encode_quality}")
        for name in ("image_size", "min_image_size", "max_aspect_ratio", "max_image_pixels", "max_bytes", "timeout_seconds", "processes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_seconds", "stall_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.retries < 0 or self.backoff_seconds < 0:
            raise ValueError(f"retries and backoff_seconds must be at least 0, got {self.retries} and {self.backoff_seconds}")
        if self.stall_seconds <= self.max_seconds + self.timeout_seconds:
            raise ValueError(f"stall_seconds must be more than max_seconds + timeout_seconds, got {self.stall_seconds}")
        if not self.user_agent.isascii() or not self.user_agent.isprintable() or not self.user_agent:
            raise ValueError(f"user_agent must be printable ASCII, got {self.user_agent!r}")


def download_inputs(source: Path) -> dict[str, str]:
    """A digest of what the stage reads.

    Raises:
        UnclipError: the source stage has not finished there.
    """
    return {SOURCE_STAGE: finished_manifest(source, SOURCE_STAGE).digest}


def download(source: Path, out: Path, config: DownloadConfig) -> Manifest:
    """Fetches every row of the source; a shard of it leaves `00000.tar`, `.parquet`, `_stats.json` and its record `.json`.

    Shards that are there are not fetched again. A source that is a folder is served on the loopback address meanwhile.

    Raises:
        UnclipError: nothing at all could be kept, or img2dataset could not be brought to work.
    """
    inputs = download_inputs(source)
    shards = _shards(source)
    if is_current(out, STAGE, config, inputs) and all((out / f"{name}.tar").exists() for name in shards):
        return finished_manifest(out, STAGE)
    stage = Stage(out, STAGE, config, inputs)
    remove_leftovers(out)
    free(out / SCRATCH)
    origins = {name: fingerprint({"rows": [[row["id"], row["split"]] for row in rows], "config": identity(config)}) for name, rows in shards.items()}
    parts = {name: part for name in shards if (part := stage.done_part(name, origins[name]))}
    pending = [name for name in shards if name not in parts]
    done = sum(len(shards[name]) for name in parts)
    with ExitStack() as stack:
        bar = stack.enter_context(progress(STAGE, sum(map(len, shards.values())), unit="images", done=done))
        allowed = _serve(source, stack) if pending else []
        for first in range(0, len(pending), SHARDS_AT_ONCE):
            names = pending[first : first + SHARDS_AT_ONCE]
            started = time.monotonic()
            fetched = _fetch({name: shards[name] for name in names}, out / SCRATCH, config, allowed, bar)
            for name in names:
                kept, rejected = write_shard(out, name, shards[name], fetched, config.encode_format)
                files = [f"{name}.tar", f"{name}.parquet", f"{name}_stats.json"]
                seconds = (time.monotonic() - started) / len(names)
                rows_in = len(shards[name])
                parts[name] = stage.record_part(name, made_from=origins[name], rows_in=rows_in, kept=kept, rejected=rejected, files=files, seconds=seconds)
            free(out / SCRATCH)
    ordered = [parts[name] for name in shards]
    _refuse_nothing(source, out, ordered)
    return stage.finish_parts(ordered)


def _shards(source: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of the source table by the name of their shard, both in order."""
    shards: dict[str, list[dict[str, Any]]] = {}
    for batch in read_table(source / TABLE, SOURCE).to_batches():
        for row in batch.to_pylist():
            shards.setdefault(part_name(row["shard"]), []).append(row)
    return shards


def _serve(source: Path, stack: ExitStack) -> list[str]:
    """Serves the folder that the source was made from, if it was one; the "host:port" that may be followed for it."""
    if not (source / SERVE).exists():
        return []
    record = read_json(source / SERVE)
    stack.enter_context(serving(Path(record["folder"]), int(record["port"])))
    return [f"{HOST}:{record['port']}"]


def _fetch(shards: Mapping[str, list[dict[str, Any]]], scratch: Path, config: DownloadConfig, allowed: list[str], bar: Bar) -> dict[str, Fetched]:
    """What came of each row of a few shards, by id, after the retries."""
    total = sum(map(len, shards.values()))
    shown = 0

    def show(tried: int) -> None:
        nonlocal shown
        step = min(tried, total - shown)  # retries are no rows of their own
        shown += step
        bar.advance(step)

    fetched: dict[str, Fetched] = {}
    pending = [[(row["id"], row["url"]) for row in rows] for rows in shards.values()]
    for attempt in range(config.retries + 1):
        fetched |= fetch(
            pending, scratch=scratch / f"try{attempt}", arguments=_arguments(config), limits=_limits(config, allowed),
            stall_seconds=config.stall_seconds, on_progress=show,
        )  # fmt: skip
        again = [(name, url) for shard in pending for name, url in shard if fetched[name].status in TRANSIENT]
        # together, not shard by shard: img2dataset starts a worker anew every five shards
        pending = [share for first in range(config.processes) if (share := again[first :: config.processes])]
        if not pending:
            break
        if attempt < config.retries:
            time.sleep(config.backoff_seconds * 2**attempt)
    bar.advance(total - shown)
    return fetched


def _arguments(config: DownloadConfig) -> dict[str, Any]:
    """img2dataset's own arguments."""
    return {
        "image_size": config.image_size, "resize_mode": "keep_ratio", "resize_only_if_bigger": True,
        "encode_format": config.encode_format, "encode_quality": config.encode_quality,
        "min_image_size": config.min_image_size, "max_aspect_ratio": config.max_aspect_ratio, "max_image_area": config.max_image_pixels,
        "processes_count": config.processes, "thread_count": config.threads, "timeout": config.timeout_seconds,
        "retries": 0,  # its own would come at once, and for opted-out images too
        "extract_exif": False, "compute_hash": "sha256", "enable_wandb": False,
        "user_agent_token": ROBOT_NAME, "disallowed_header_directives": list(OPT_OUTS),
    }  # fmt: skip


def _limits(config: DownloadConfig, allowed: list[str]) -> dict[str, Any]:
    user_agent = config.user_agent.replace("{version}", metadata.version("unclip"))
    return {
        "allow_private": config.allow_private, "allowed": allowed, "max_bytes": config.max_bytes, "max_seconds": config.max_seconds,
        "user_agent": user_agent,
    }  # fmt: skip


def _refuse_nothing(source: Path, out: Path, parts: list[Part]) -> None:
    counts = sum_counts(parts)
    if not counts["kept"]:
        reason, number = max(counts["rejected"].items(), key=lambda pair: pair[1])
        raise UnclipError(
            f"not one of the {counts['rows_in']} images of {source} could be kept; the commonest reason is {reason!r} ({number} rows). "
            f"The .parquet files in {out} say why, row by row; remove that folder before another try"
        )
