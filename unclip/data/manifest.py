"""The record that every stage keeps of its own work: what it made, from what, and how many rows went where.

A stage folder holds `manifest.json` and, for work that is cut into parts, one record a part (`00000.json`). A part's
record is written after its files and names their hashes, so its presence means that the part is whole; a part whose
record matches what it would be made from today is never made again.
"""

import dataclasses
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from unclip.files import UnclipError, fingerprint, read_json, sha256_file, write_json

MANIFEST = "manifest.json"
COMMANDS = {"prior": "train prior", "decoder": "train decoder", "upsampler": "train upsampler"}  # where the command is not the stage's name
PACKAGES = ("unclip", "torch", "open_clip_torch", "img2dataset", "webdataset", "pyarrow", "faiss-cpu", "prefect", "numpy")


def runtime(default: Any) -> Any:
    """A config field that changes how fast or where the work is done, not what comes out: it may differ between runs."""
    return field(default=default, metadata={"runtime": True})


def identity(config: Any) -> dict[str, Any]:
    """The settings of a config dataclass that decide what a stage makes: all but the `runtime` ones."""
    chosen = (f for f in dataclasses.fields(config) if not f.metadata.get("runtime"))
    return {f.name: _plain(getattr(config, f.name)) for f in chosen}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return identity(value) if dataclasses.is_dataclass(value) else value


@dataclass(frozen=True)
class Part:
    """One finished part. `files` maps each file's name to its [size in bytes, sha256]; `made_from` is a fingerprint."""

    name: str
    made_from: str
    rows_in: int
    kept: int
    rejected: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]
    seconds: float

    @property
    def digest(self) -> str:
        """Changes when any byte of the part's files does."""
        return fingerprint([self.made_from, {name: list(entry) for name, entry in self.files.items()}])


@dataclass(frozen=True)
class Manifest:
    """The record of a stage. `counts` has rows_in, kept and rejected (a number a reason), and what else the stage counts.

    `inputs` names what the stage read with a digest each; `digest` stands for what it left. `seconds` and
    `peak_memory_bytes` are those of the run that finished it.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    finished: bool = False
    digest: str = ""
    counts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage folder, None where the stage has not begun there.

    Raises:
        UnclipError: it does not read as a manifest.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    content = read_json(path)
    try:
        return Manifest(**content)
    except TypeError as error:
        raise UnclipError(f"{path} is not a manifest of this version ({error}); remove {folder} and run its stage again") from None


def finished_manifest(folder: Path, stage: str) -> Manifest:
    """The manifest of a stage that must have finished.

    Raises:
        UnclipError: it has not; the message names the command to run.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest.finished:
        state = "there is none" if manifest is None else "that stage was stopped before its end"
        raise UnclipError(f"expected the finished result of `unclip {COMMANDS.get(stage, stage)}` in {folder}, but {state}; run it first")
    return manifest


def is_current(folder: Path, stage: str, config: Any, inputs: Mapping[str, str]) -> bool:
    """Whether a stage has finished with this config on these inputs, so that running it would change nothing.

    Raises:
        UnclipError: the folder was made with another config.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    _refuse_other(folder, manifest, stage, config)
    return manifest.finished and dict(manifest.inputs) == dict(inputs)


def _refuse_other(folder: Path, manifest: Manifest, stage: str, config: Any) -> None:
    """A setting that is younger than the folder is no difference while it has its default, which leaves things as they were."""
    if manifest.stage != stage:
        raise UnclipError(f"{folder} holds the stage {manifest.stage!r}, expected {stage!r}; choose another folder")
    before, now, default = _flat(manifest.config), _flat(identity(config)), _flat(_defaults(config))
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name, default.get(name)) != now.get(name))
    if differing:
        shown = "; ".join(f"{name} was {before.get(name, default.get(name))!r}, is now {now.get(name)!r}" for name in differing)
        raise UnclipError(f"{folder} was made with another {stage} config: {shown}. Use the old setting, another root, or remove the folder")


def _defaults(config: Any) -> dict[str, Any]:
    """The default of each setting that has one, laid out like `identity`."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            found[f.name] = _defaults(value)
        elif f.default is not dataclasses.MISSING:
            found[f.name] = list(f.default) if isinstance(f.default, tuple) else f.default
    return found


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


class Stage:
    """The stage that is being worked on in a folder: opened before the first part, finished after the last.

    Opening refuses a folder made with another config and writes an unfinished manifest; `finish` writes the final one.
    """

    def __init__(self, folder: Path, stage: str, config: Any, inputs: Mapping[str, str]) -> None:
        self.folder, self.stage, self.config, self.inputs = folder, stage, identity(config), dict(inputs)
        earlier = read_manifest(folder)
        if earlier is not None:
            _refuse_other(folder, earlier, stage, config)
        self._started = time.monotonic()
        write_json(folder / MANIFEST, dataclasses.asdict(Manifest(stage, self.config, self.inputs)))

    def done_part(self, name: str, made_from: str) -> Part | None:
        """The record of a part that stands there whole and was made from just this; None where it must be made."""
        part = read_part(self.folder, name)
        if part is None or part.made_from != made_from:
            return None
        sizes = {file: (self.folder / file).stat().st_size if (self.folder / file).exists() else -1 for file in part.files}
        return part if all(sizes[file] == entry[0] for file, entry in part.files.items()) else None

    def record_part(self, name: str, *, made_from: str, rows_in: int, kept: int, rejected: Mapping[str, int], files: list[str], seconds: float) -> Part:
        """Writes the record of a part whose files already stand under their final names."""
        return write_part_record(self.folder, Part(name, made_from, rows_in, kept, dict(rejected), dict.fromkeys(files, (0, "")), round(seconds, 3)))

    def finish(self, *, counts: Mapping[str, Any], digest: str) -> Manifest:
        """Writes the final manifest."""
        used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB elsewhere
        manifest = Manifest(
            self.stage, self.config, self.inputs, finished=True, digest=digest, counts=dict(counts),
            seconds=round(time.monotonic() - self._started, 3), peak_memory_bytes=max(used) * unit, versions=versions(),
        )  # fmt: skip
        write_json(self.folder / MANIFEST, dataclasses.asdict(manifest))
        return manifest

    def finish_parts(self, parts: list[Part], **more: Any) -> Manifest:
        """Writes the final manifest with counts and digest added up over all parts."""
        return self.finish(counts=sum_counts(parts) | more, digest=parts_digest(parts))


def write_part_record(folder: Path, part: Part) -> Part:
    """Writes the record of a part whose files stand under their final names, with their sizes and hashes as they are now."""
    if part.rows_in != part.kept + sum(part.rejected.values()):
        raise AssertionError(f"part {part.name}: {part.rows_in} rows in, {part.kept} kept, {dict(part.rejected)} rejected do not add up")
    entries = {file: ((folder / file).stat().st_size, sha256_file(folder / file)) for file in part.files}
    written = dataclasses.replace(part, files=entries)
    write_json(folder / f"{part.name}.json", dataclasses.asdict(written))
    return written


def restate(folder: Path, **changes: Any) -> Manifest:
    """Writes the manifest of a stage again with other inputs, counts or digest, where its result was changed after its end."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise AssertionError(f"{folder} has no manifest to change")
    changed = dataclasses.replace(manifest, **changes)
    write_json(folder / MANIFEST, dataclasses.asdict(changed))
    return changed


def parts_digest(parts: Sequence[Part]) -> str:
    """The digest of a stage that is made of parts."""
    return fingerprint([part.digest for part in parts])


def read_part(folder: Path, name: str) -> Part | None:
    """The record of one part, None where there is none."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    content = read_json(path)
    return Part(**content | {"files": {file: (int(size), str(sha)) for file, (size, sha) in content["files"].items()}})


def sum_counts(parts: Sequence[Part]) -> dict[str, Any]:
    """rows_in, kept and rejected (a number a reason) over parts."""
    rejected: dict[str, int] = {}
    for part in parts:
        for reason, count in part.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
    return {"parts": len(parts), "rows_in": sum(p.rows_in for p in parts), "kept": sum(p.kept for p in parts), "rejected": rejected}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide what stages make."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = metadata.version(package)
    return found
