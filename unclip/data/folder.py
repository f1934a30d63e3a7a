"""A folder of captioned images, as rows of links: it is served on the loopback address, so that all data goes one way."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from unclip.data.links import RefusedError
from unclip.data.serve import HOST, file_below
from unclip.data.tables import READERS, Row, count_rows, read_rows
from unclip.files import UnclipError, read_json, write_json

SERVE = "serve.json"  # {"folder": where the images are, as seen from here where it lies under the same root, "port": where `download` serves them}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
FILE_COLUMN, CAPTION_COLUMN, SPLIT_COLUMN = "file", "caption", "split"  # of a folder's captions table
PORTS = range(20_000, 32_000)  # below the ports that systems lend to outgoing connections

BY_HASH = object()  # stands for the split of a row that no column gives one


class ServedLink(str):
    """The link to a file of a folder that we serve ourselves: loopback, and yet allowed."""


def visible_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def folder_rows(out: Path, folder: Path, *, caption_column: str, split_column: str) -> tuple[Iterator[Row], int]:
    tables = [folder / f"captions{suffix}" for suffix in READERS if (folder / f"captions{suffix}").is_file()]
    if len(tables) > 1:
        raise UnclipError(f"expected one table of captions in {folder}, got {', '.join(table.name for table in tables)}; remove all but one")
    images = [file for file in visible_files(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise UnclipError(f"expected images ({', '.join(IMAGE_SUFFIXES)}) in {folder}, but there are none")
    base = _base_url(out, folder)
    if tables:
        return _captioned_by_table(tables[0], folder.resolve(), base, caption_column, split_column), count_rows(tables[0])
    if split_column or caption_column != CAPTION_COLUMN:
        raise UnclipError(f"source.split_column and source.caption_column need a captions table in {folder}, but there is none; leave them out")
    return (Row((_link(base, image.relative_to(folder).as_posix()), _text_beside(image), BY_HASH)) for image in images), len(images)


def _text_beside(image: Path) -> str | None:
    try:
        return image.with_suffix(".txt").read_bytes().decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError:
        return None


def _captioned_by_table(table: Path, root: Path, base: str, caption_column: str, split_column: str) -> Iterator[Row]:
    columns = [FILE_COLUMN, caption_column]
    split = split_column or (SPLIT_COLUMN if _has_column(table, SPLIT_COLUMN) else "")
    for row in read_rows(table, [*columns, split] if split else columns):
        name = row.values[0]
        link: object = name
        if isinstance(name, str) and name:
            relative = PurePosixPath(name).as_posix()
            found = None if PurePosixPath(name).is_absolute() else file_below(root, quote(relative, errors="surrogateescape"))
            link = RefusedError("image missing", f"no file {name!r} in the folder") if found is None else _link(base, relative)
        yield Row((link, *row.values[1:]) if split else (link, *row.values[1:], BY_HASH), row.problem)


def _has_column(table: Path, name: str) -> bool:
    try:
        next(read_rows(table, [name]), None)
    except UnclipError:
        return False
    return True


def _link(base: str, relative: str) -> ServedLink:
    return ServedLink(f"{base}/{quote(relative, errors='surrogateescape')}")


def _base_url(out: Path, folder: Path) -> str:
    """The address at which `download` will serve the folder; its port is chosen once, so that links and ids stay."""
    path = out / SERVE
    port = int(read_json(path)["port"]) if path.exists() else _free_port(folder)
    inside = folder.is_relative_to(out.absolute().parent)  # a root may be moved, and its world with it
    write_json(path, {"folder": os.path.relpath(folder, out.absolute()) if inside else str(folder), "port": port})
    return f"http://{HOST}:{port}"


def served_folder(out: Path) -> tuple[Path, int] | None:
    """The folder that a source was made from, and the port that it is served on; None for a table of links."""
    if not (out / SERVE).exists():
        return None
    record = read_json(out / SERVE)
    return Path(os.path.normpath(out.absolute() / record["folder"])), int(record["port"])


def _free_port(folder: Path) -> int:
    first = int.from_bytes(hashlib.sha256(str(folder).encode()).digest()[:8], "big")
    for step in range(len(PORTS)):
        port = PORTS[(first + step) % len(PORTS)]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise UnclipError(f"found no free port in {PORTS.start} to {PORTS.stop - 1} to serve {folder} on")
