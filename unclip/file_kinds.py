"""The files of a root by their names: which are the same here and there, and which of them speak of others (see mirror.py)."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from unclip.storage import Found

MANIFEST, SEAL = "manifest.json", ".files.json"
JOURNALS = (".takedown.json",)  # hidden, and yet part of what must outlive this machine
CACHE = "_cache"
_PART = re.compile(r"(\d{5,})[._].+")  # a file of a part, or its record
_CHECKPOINT = re.compile(r"step-\d{8}")


def is_manifest(name: str) -> bool:
    """Whether a file is the record of a stage."""
    return PurePosixPath(name).name == MANIFEST


def without_torn(there: Mapping[str, Found]) -> tuple[dict[str, Found], list[str]]:
    """What counts of what stands there, and the names of what is left of checkpoints that did not come to their seal."""
    checkpoints = {name: folder for name in there if (folder := checkpoint_of(name))}
    torn = {name for name, folder in checkpoints.items() if seal_of(folder) not in there}
    return {name: found for name, found in there.items() if (is_mirrored(name) or is_seal(name)) and name not in torn}, sorted(torn)


def checkpoint_of(name: str) -> str:
    """The folder of the checkpoint that a file is of, empty where it is of none."""
    parts = name.split("/")
    place = next((number for number, part in enumerate(parts[:-1]) if _CHECKPOINT.fullmatch(part)), None)
    return "" if place is None else "/".join(parts[: place + 1])


def is_mirrored(name: str) -> bool:
    """Whether a file or folder is the same here and there. Names with ".." or nothing between two slashes are nobody's."""
    *folders, last = name.split("/")
    return all(part and part[0] != "." and part != CACHE for part in folders) and (last in JOURNALS or bool(last and last[0] != "." and last != CACHE))


def is_seal(name: str) -> bool:
    """Whether a file names the files of its folder with their hashes; such files are only up there."""
    return PurePosixPath(name).name == SEAL


def is_record(name: str) -> bool:
    """Whether a file is the record of a part, by its name."""
    return record_of(name) == name


def is_plain(name: str) -> bool:
    """Whether a file is one that a seal speaks of."""
    return not record_of(name) and not is_seal(name) and not is_manifest(name)


def record_of(name: str) -> str:
    """The record of the part that a file belongs to by its name, or that it is; empty where it belongs to none."""
    match = _PART.fullmatch(PurePosixPath(name).name)
    folder = folder_of(name)
    return "" if match is None else f"{folder}/{match.group(1)}.json" if folder else ""


def seal_of(folder: str) -> str:
    """The seal of a folder; "" is the root."""
    return f"{folder}/{SEAL}" if folder else SEAL


def folder_of(name: str) -> str:
    """The folder that a file lies in; "" is the root."""
    return name.rpartition("/")[0]


def is_below(name: str, prefix: str) -> bool:
    """Whether a file is the one that a prefix names, or below that folder; "" is above all."""
    return not prefix or name == prefix or name.startswith(f"{prefix}/")
