"""The stage `download`: images and captions in WebDataset shards, one row for every link, and nothing fetched twice."""

import itertools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from unclip.data.batch import Fetched, evenly, fetch
from unclip.data.contracts import SOURCE, iter_rows, part_name
from unclip.data.folder import served_folder
from unclip.data.manifest import Manifest, Part, Stage, finished_manifest, identity, is_current, runtime, sum_counts
from unclip.data.pack import write_shard
from unclip.data.rounds import Links, Patience, fetched_shards
from unclip.data.serve import HOST, serving
from unclip.data.source import STAGE as SOURCE_STAGE
from unclip.data.source import TABLE
from unclip.files import UnclipError, fingerprint, remove_leftovers
from unclip.progress import Bar, progress

STAGE = "download"
SCRATCH = ".scratch"
USER_AGENT = "unclip/{version} (+image-text research; img2dataset)"
DISTRIBUTORS = ("ray", "pyspark")  # packages that are not installed with ours
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
    longest_wait_seconds: float = runtime(120.0)  # of a site's Retry-After; a link of one that asks for more is given up
    later_tries: int = runtime(3)  # later runs in which a link that was given up for one of these reasons is tried again, in a new shard
    robots: Literal["ignore", "obey"] = runtime("ignore")  # robots.txt; for what is fetched from now on
    stall_seconds: float = runtime(180.0)  # without any progress, img2dataset is started anew
    processes: int = runtime(1)
    threads: int = runtime(16)
    distributor: Literal["multiprocessing", "ray", "pyspark"] = runtime("multiprocessing")  # several machines share the root's storage
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
        for name in ("retries", "backoff_seconds", "longest_wait_seconds", "later_tries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name, allowed_names in (("robots", ("ignore", "obey")), ("distributor", ("multiprocessing", *DISTRIBUTORS))):
            if getattr(self, name) not in allowed_names:
                raise ValueError(f"{name} must be one of {', '.join(allowed_names)}, got {getattr(self, name)!r}")
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
        OSError: the disk is full; what was done is kept.
    """
    _refuse_missing_distributor(config.distributor)
    inputs = download_inputs(source)
    origins = {name: (shard_origin(rows, identity(config)), len(rows)) for name, rows in source_shards(source)}
    if is_current(out, STAGE, config, inputs) and all((out / f"{name}.tar").exists() for name in origins):
        return finished_manifest(out, STAGE)
    stage = Stage(out, STAGE, config, inputs)
    remove_leftovers(out)
    _discard(out / SCRATCH)
    parts = {name: part for name, (origin, _) in origins.items() if (part := stage.done_part(name, origin))}
    pending = [name for name in origins if name not in parts]
    with ExitStack() as stack:
        stack.callback(_discard, out / SCRATCH)  # also where the disk is full
        bar = stack.enter_context(progress(STAGE, sum(num for _, num in origins.values()), unit="images", done=sum(origins[name][1] for name in parts)))
        allowed = _serve(source, stack) if pending else []
        rounds = _Rounds(out / SCRATCH, config, allowed, bar)
        wanted = ((name, rows) for name, rows in source_shards(source) if name not in parts)
        patience = Patience(config.retries, config.backoff_seconds, config.longest_wait_seconds)
        begun = time.monotonic()
        for shard in fetched_shards(wanted, rounds.fetch, rounds.free, patience) if pending else ():
            kept, rejected = write_shard(out, shard.name, shard.rows, shard.fetched, config.encode_format)
            seconds, begun = time.monotonic() - begun, time.monotonic()
            parts[shard.name] = stage.record_part(
                shard.name, made_from=origins[shard.name][0], rows_in=len(shard.rows), kept=kept, rejected=rejected,
                files=shard_files(shard.name), seconds=seconds,
            )  # fmt: skip
    ordered = [parts[name] for name in origins]
    _refuse_nothing(source, out, ordered)
    return stage.finish_parts(ordered)


def shard_files(name: str) -> list[str]:
    """The names of the files of a shard, but for its record."""
    return [f"{name}.tar", f"{name}.parquet", f"{name}_stats.json"]


def source_shards(source: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The shards of the source table: their names and rows, both in order, one shard in memory."""
    for number, rows in itertools.groupby(iter_rows(source / TABLE, SOURCE), key=lambda row: row["shard"]):
        yield part_name(number), list(rows)


def shard_origin(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """What a shard is made from, as a fingerprint: the rows that it should hold, those that were removed, and the config."""
    content: dict[str, Any] = {"rows": [[row["id"], row["split"]] for row in rows], "config": dict(config)}
    removed = [row["id"] for row in rows if not row["url"]]
    return fingerprint(content | ({"removed": removed} if removed else {}))


def _refuse_missing_distributor(name: str) -> None:
    """img2dataset itself would do nothing without Ray, and say nothing."""
    if name in DISTRIBUTORS and find_spec(name) is None:
        raise UnclipError(f"download.distributor is {name!r}, but the package {name} is not installed; pip install 'unclip[{name}]', on every machine")


def _serve(source: Path, stack: ExitStack) -> list[str]:
    """Serves the folder that the source was made from, if it was one; the "host:port" that may be followed for it."""
    if (served := served_folder(source)) is None:
        return []
    stack.enter_context(serving(*served))
    return [f"{HOST}:{served[1]}"]


class _Rounds:
    """The rounds of img2dataset of one run of the stage: each works in a folder of its own, and moves the bar."""

    def __init__(self, scratch: Path, config: DownloadConfig, allowed: list[str], bar: Bar) -> None:
        self._scratch, self._config, self._allowed, self._bar = scratch, config, allowed, bar

    def fetch(self, number: int, new: Links, again: Links) -> dict[str, Fetched]:
        """What came of each link, by id. Only new ones move the bar."""
        shown = 0

        def show(tried: int) -> None:
            nonlocal shown
            step = min(tried, len(new) - shown)
            shown += step
            self._bar.advance(step)

        came = fetch(
            evenly([*new, *again], self._config.processes), scratch=self._scratch / f"round{number}", arguments=_arguments(self._config),
            limits=_limits(self._config, self._allowed), stall_seconds=self._config.stall_seconds, on_progress=show,
        )  # fmt: skip
        self._bar.advance(len(new) - shown)
        return came

    def free(self, number: int) -> None:
        """Removes what a round left, which nothing needs any longer."""
        _discard(self._scratch / f"round{number}")


def _discard(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)  # a worker that is being killed may still write there; the next run removes it then


def _arguments(config: DownloadConfig) -> dict[str, Any]:
    """img2dataset's own arguments."""
    return {
        "image_size": config.image_size, "resize_mode": "keep_ratio", "resize_only_if_bigger": True,
        "encode_format": config.encode_format, "encode_quality": config.encode_quality,
        "min_image_size": config.min_image_size, "max_aspect_ratio": config.max_aspect_ratio, "max_image_area": config.max_image_pixels,
        "processes_count": config.processes, "thread_count": config.threads, "timeout": config.timeout_seconds,
        "retries": 0,  # its own would come at once, and for opted-out images too
        "extract_exif": False, "enable_wandb": False, "distributor": config.distributor,
        "disallowed_header_directives": [],  # web.py knows more of them, and reads headers that hold several
    }  # fmt: skip


def _limits(config: DownloadConfig, allowed: list[str]) -> dict[str, Any]:
    user_agent = config.user_agent.replace("{version}", metadata.version("unclip"))
    return {
        "allow_private": config.allow_private, "allowed": allowed, "robots": config.robots == "obey", "user_agent": user_agent,
        "max_bytes": config.max_bytes, "max_pixels": config.max_image_pixels, "max_seconds": config.max_seconds,
    }  # fmt: skip


def _refuse_nothing(source: Path, out: Path, parts: list[Part]) -> None:
    counts = sum_counts(parts)
    if not counts["kept"]:
        reason, number = max(counts["rejected"].items(), key=lambda pair: pair[1])
        raise UnclipError(
            f"not one of the {counts['rows_in']} images of {source} could be kept; the commonest reason is {reason!r} ({number} rows). "
            f"The .parquet files in {out} say why, row by row; remove that folder before another try"
        )
