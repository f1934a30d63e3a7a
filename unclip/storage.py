"""Places that are named by a URL, such as s3://bucket/folder: which may be, and their files through fsspec, each failure in one line.

Credentials come from the environment or from the provider's own files (for S3: AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws, and
AWS_ENDPOINT_URL for a store that is not Amazon's), never from a URL or a config.
"""

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip.files import UnclipError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)(::|://)")
EXTRAS = {"s3": "s3", "s3a": "s3"}  # of unclip, by scheme
CONDITIONAL = ("s3", "s3a")  # stores whose puts can be made to depend on what is there
TAGS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")  # what stores say of a file that changes with it


class StorageError(UnclipError):
    """The place does not answer, refuses, or holds something else than was put there."""


@dataclass(frozen=True)
class Found:
    """A file in a place: its size in bytes, and a tag that changes with its content."""

    size: int
    tag: str


def is_url(text: str) -> bool:
    """Whether a text names a place by URL; everything else is a path of this machine."""
    return _SCHEME.match(text) is not None


def check_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        UnclipError: it holds credentials, chains several file systems, or names no place that other processes can reach.
    """
    match = _SCHEME.match(url)
    if match is None:
        raise UnclipError(f"expected a URL such as s3://bucket/folder, got {url}")
    scheme, rest = match.group(1), url[match.end() :]
    if "@" in rest.partition("/")[0]:
        hidden = rest.partition("/")[0].rpartition("@")[2]
        raise UnclipError(
            f"{scheme}://…@{hidden} holds credentials, which a root would remember and logs would show; "
            "leave them out, and give them by the environment or by the provider's own files (for S3: AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws)"
        )
    if match.group(2) == "::" or "::" in rest:
        raise UnclipError(f"expected one place such as s3://bucket/folder, got the chain {url}")
    if scheme == "file":
        raise UnclipError(f"{url} is on this machine: give the path, {rest}")
    if scheme == "memory":
        raise UnclipError(f"{url} can't be used: stages run in processes of their own, which share no memory; give a folder or s3://bucket/folder")
    if not rest.strip("/"):
        raise UnclipError(f"expected a bucket after {scheme}://, such as s3://bucket/folder, got {url}")
    return url.rstrip("/")


def check_root(url: str) -> str:
    """The same for a root, which is written to.

    Raises:
        UnclipError: see `check_url`; or the place can only be read.
    """
    if url.startswith(("http://", "https://")):
        raise UnclipError(f"{url} can only be read, but a root is written to; give a folder or s3://bucket/folder")
    return check_url(url)


class Storage:
    """The files below a URL, by their names relative to it.

    Args:
        url: as `check_url` gives it.
        file_system: fsspec's, made for the URL where none is given.

    Raises:
        UnclipError: no such scheme, or the package for it is not installed.
    """

    def __init__(self, url: str, file_system: "AbstractFileSystem | None" = None) -> None:
        self.url = url
        self.scheme = url.partition("://")[0]
        self._fs = _file_system(url, self.scheme) if file_system is None else file_system
        self._base = self._fs._strip_protocol(url).rstrip("/")
        self._errors: tuple[type[Exception], ...] = (OSError, *_errors_of(self.scheme))

    def find(self, prefix: str = "") -> dict[str, Found]:
        """All files below a name, by their own names."""
        with self._speaking(prefix, "read"):
            found = self._fs.find(self._path(prefix), detail=True)
        return self._named(found)

    def here(self) -> dict[str, Found]:
        """The files that lie right under the URL."""
        with self._speaking("", "read"):
            try:
                found = self._fs.ls(self._base, detail=True)
            except FileNotFoundError:
                return {}
        return self._named({entry["name"]: entry for entry in found})

    def glob(self, pattern: str) -> dict[str, Found]:
        """The files whose names fit a pattern."""
        with self._speaking(pattern, "read"):
            return self._named(self._fs.glob(self._path(pattern), detail=True))

    def info(self, name: str) -> Found | None:
        """What is known of one file, None where there is none (a folder is none)."""
        with self._speaking(name, "read"):
            try:
                entry = self._fs.info(self._path(name), **({"refresh": True} if self.scheme in CONDITIONAL else {}))
            except FileNotFoundError:
                return None
        return _found(entry) if entry["type"] == "file" else None

    def read(self, name: str) -> bytes | None:
        """The bytes of one small file, None where there is none."""
        with self._speaking(name, "read"):
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def fetch(self, name: str, to: Path) -> None:
        """Writes a file of the place to a path."""
        with self._speaking(name, "read"):
            self._fs.get_file(self._path(name), str(to))

    def put(self, path: Path, name: str) -> None:
        """Puts a file up, whole or not at all."""
        with self._speaking(name, "write"):
            self._fs.put_file(str(path), self._path(name))

    def write(self, name: str, content: bytes) -> None:
        """The same for bytes."""
        with self._speaking(name, "write"):
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes a small file where there is none; False where there is one. On S3 only one of several at once succeeds."""
        with self._speaking(name, "write"):
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
        return True

    def exchange(self, name: str, content: bytes, before: Found) -> bool:
        """Writes a small file in the place of one that was seen; False where it is another by now, which only S3 can tell."""
        condition = {"IfMatch": before.tag} if self.scheme in CONDITIONAL else {}
        with self._speaking(name, "write"):
            try:
                self._fs.pipe_file(self._path(name), content, **condition)
            except FileNotFoundError:
                if not condition:
                    raise
                return False
            except OSError as error:
                if not condition or error.errno != errno.EINVAL:  # as s3fs says that a condition is not met
                    raise
                return False
        return True

    def remove(self, name: str) -> None:
        """Removes a file; nothing happens where there is none."""
        with self._speaking(name, "remove"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def _named(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Found]:
        start = len(self._base) + 1
        return {path[start:]: _found(entry) for path, entry in found.items() if entry["type"] == "file" and len(path) > start}

    @contextlib.contextmanager
    def _speaking(self, name: str, verb: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            said = " ".join(str(error).split()) or type(error).__name__
            place = f"{self.url}/{name}" if name else self.url
            raise StorageError(f"can't {verb} {place}: {said}. {_advice(error, self.scheme)}") from None


def _found(entry: Mapping[str, Any]) -> Found:
    tag = next((str(entry[key]) for key in TAGS if entry.get(key)), "")
    return Found(int(entry["size"] or 0), tag)


def _file_system(url: str, scheme: str) -> "AbstractFileSystem":
    import fsspec  # only where a URL is named: commands on folders start without it

    try:
        # a listing that is remembered would hide what other machines do
        return fsspec.url_to_fs(url, use_listings_cache=False)[0]
    except ImportError as error:
        how = f"pip install 'unclip[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "install the package of fsspec for it"
        raise UnclipError(f"{scheme}:// needs a package that is not installed ({error}); {how}") from None
    except ValueError as error:
        raise UnclipError(f"there is no storage of the kind {scheme}:// ({error}); give a folder or s3://bucket/folder") from None


def _errors_of(scheme: str) -> tuple[type[Exception], ...]:
    """What a store's own library raises beside OSError."""
    if scheme not in CONDITIONAL:
        return ()
    from botocore.exceptions import BotoCoreError, ClientError  # comes with s3fs

    return (BotoCoreError, ClientError)


def _advice(error: Exception, scheme: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "Is the bucket there, and its name right?"
    if isinstance(error, PermissionError) or "redential" in type(error).__name__:
        names = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or ~/.aws" if scheme in CONDITIONAL else "the provider's environment or files"
        return f"Check the credentials ({names}) and what they may do"
    return "What was done is kept, and the same command goes on"
