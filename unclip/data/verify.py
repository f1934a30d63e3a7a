"""Is what lies on disk still what was made? Shards and parts of the store are held against their records and each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.contracts import CURATED as VERDICTS
from unclip.data.contracts import read_table
from unclip.data.manifest import Part, finished_manifest, read_part
from unclip.data.select import RECORDS
from unclip.data.shards import kept_rows
from unclip.files import UnclipError, remove, sha256_file
from unclip.layout import CURATED, SELECTED
from unclip.progress import progress

PARTS = "[0-9]" * 5


@dataclass(frozen=True)
class Fault:
    """A part that is not what it should be.

    Attributes:
        stage: the stage that makes it again: "download", "curate", "embed" or "select".
        part: its name, such as "00003".
        what: what is wrong with it.
    """

    stage: str
    part: str
    what: str


def verify(shards: Path, store: Path, clip: Path) -> list[Fault]:
    """Reads every byte of shards and store: the first fault of each part, in their order; none where all is whole.

    Found are flipped bytes and cut or missing files (by the hashes of the records), parts of another CLIP, parts
    without a shard and shards without a part, and parts whose rows are not those of their shard. What `curate` and
    `select` left is read where they have been.

    Raises:
        UnclipError: a stage has not finished.
    """
    finished_manifest(shards, "download")
    finished_manifest(store, "embed")
    digest = finished_manifest(clip, "clip").digest
    shard_names, part_names = _names(shards), _names(store)
    faults: list[Fault] = []
    curated, selected = shards / CURATED, store / SELECTED
    judged = shard_names | _names(curated) if curated.is_dir() else set()
    with progress("verify", len(shard_names) + len(judged) + len(shard_names | part_names), unit="part") as bar:
        for name in sorted(shard_names):
            faults += [Fault("download", name, what) for what in _first(_recorded(shards, name))]
            bar.advance()
        for name in sorted(judged):
            faults += [Fault("curate", name, what) for what in _first(_verdict_faults(shards, name, is_shard_whole=name not in {f.part for f in faults}))]
            bar.advance()
        broken = {fault.part for fault in faults}
        for name in sorted(shard_names | part_names):
            checks = _part_faults(shards, store, name, digest, is_shard_whole=name in shard_names - broken)
            faults += [Fault("embed", name, what) for what in _first(checks)]
            bar.advance()
    if selected.is_dir():
        faults += [Fault("select", name, what) for name in RECORDS for what in _first(_recorded(selected, name))]
    return faults


def discard(faults: list[Fault], shards: Path, store: Path) -> None:
    """Removes the files and records of the parts that are at fault, so that their stages make them again."""
    for fault in faults:
        folder = {"download": shards, "curate": shards / CURATED, "embed": store, "select": store / SELECTED}[fault.stage]
        remove(folder / f"{fault.part}.json")  # the record first: a part without one is never taken for whole
        for path in folder.glob(f"{fault.part}.*"):
            remove(path)


def _names(folder: Path) -> set[str]:
    return {path.stem for kind in ("tar", "parquet", "json") for path in folder.glob(f"{PARTS}.{kind}")}


def _first(found: Iterator[str]) -> list[str]:
    what = next(found, None)
    return [] if what is None else [what]


def _recorded(folder: Path, name: str) -> Iterator[str]:
    """What the record of a part says that its files are not."""
    try:
        part = read_part(folder, name)
    except (UnclipError, KeyError, TypeError, ValueError) as error:
        yield f"its record does not read ({str(error)[:100]})"
        return
    if part is None:
        yield "it has no record"
        return
    yield from _files_differ(folder, part)


def _files_differ(folder: Path, part: Part) -> Iterator[str]:
    for file, (size, sha256) in part.files.items():
        path = folder / file
        if not path.is_file():
            yield f"{file} is missing"
        elif path.stat().st_size != size:
            yield f"{file} has {path.stat().st_size:,} bytes, its record says {size:,}"
        elif sha256_file(path) != sha256:
            yield f"{file} has its size, but other bytes than its record says"


def _verdict_faults(shards: Path, name: str, *, is_shard_whole: bool) -> Iterator[str]:
    """What is wrong with what `curate` says of a shard."""
    if not (shards / f"{name}.tar").is_file():
        yield "it has no shard"
        return
    yield from _recorded(shards / CURATED, name)
    if is_shard_whole:
        keys = read_table(shards / CURATED / f"{name}.parquet", VERDICTS)["key"]
        if not keys.equals(kept_rows(shards / f"{name}.tar", curated=False)["key"]):
            yield "its rows are not those of its shard"


def _part_faults(shards: Path, store: Path, name: str, clip_digest: str, *, is_shard_whole: bool) -> Iterator[str]:
    path = store / f"{name}.parquet"
    if not (shards / f"{name}.tar").is_file():
        yield "it has no shard"
        return
    yield from _recorded(store, name)
    try:
        held = pq.read_schema(path).metadata.get(b"clip_digest", b"").decode()
        keys = pq.read_table(path, columns=["key"])["key"]
    except (OSError, pa.ArrowInvalid, AttributeError) as error:
        yield f"it does not read as a part of a store ({str(error)[:100]})"
        return
    if held != clip_digest:
        yield f"it was made by the CLIP {held or 'of no name'}, expected {clip_digest}"
    if is_shard_whole and not keys.equals(kept_rows(shards / f"{name}.tar")["key"]):
        yield "its rows are not those of its shard"
