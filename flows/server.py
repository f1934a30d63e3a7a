"""The server of `unclip serve`: Prefect's own, as a child on loopback, closed to everyone who does not hold the root's credential."""

import contextlib
import fcntl
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from unclip.files import UnclipError, exclusive, read_json, write_json

HOST = "127.0.0.1"  # whoever reaches the server can run code with it
CREDENTIAL, ADDRESS, LOCK, LOG = "credential", "serve.json", "serve.lock", "server.log"  # under PREFECT_HOME
USER = "unclip"
START_SECONDS, END_SECONDS, ANSWER_SECONDS = 120.0, 10.0, 5.0


def home_of(root: Path) -> Path:
    """The folder under a root that holds everything of its server: history, credential, log."""
    return root.absolute() / ".prefect"


def new_credential() -> str:
    """A user and a password that nobody guesses."""
    return f"{USER}:{secrets.token_urlsafe(32)}"


def credential_of(home: Path) -> str:
    """The user and password of a root's server, made where there is none. No one else can read the file."""
    file = home / CREDENTIAL
    with contextlib.suppress(FileExistsError):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as written:
            written.write(new_credential())
    if file.stat().st_mode & 0o077:
        raise UnclipError(f"{file} can be read by others (mode {file.stat().st_mode & 0o777:o}); remove it, and a new one is made")
    credential = file.read_text()
    if not credential.partition(":")[2]:
        raise UnclipError(f"expected user:password in {file}, but it was cut short; remove it, and a new one is made")
    return credential


def closed(port: int, credential: str) -> Mapping[str, str]:
    """The settings that close a server: a password, and no page of another origin may speak to it."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": credential,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port}",
    }


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Holds the only `unclip serve` of a root; the lock ends with the process, however it ends.

    Raises:
        UnclipError: another process serves it.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(exclusive(home, LOCK))
        except UnclipError:
            raise UnclipError(f"{home.parent} is served already; `unclip serve --check --root {home.parent}` shows how it does") from None
        yield


def is_served(home: Path) -> bool:
    """Whether a living `unclip serve` holds the root."""
    if not (home / LOCK).is_file():
        return False
    with (home / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def access_of(home: Path) -> Mapping[str, str]:
    """How a client reaches the server of a root that is served, as Prefect's settings; nothing where there is none."""
    if not (is_served(home) and (home / ADDRESS).is_file()):
        return {}
    return {"PREFECT_API_URL": read_json(home / ADDRESS)["api"], "PREFECT_API_AUTH_STRING": credential_of(home)}


def address_of(port: int) -> str:
    """Where the API of a server on this machine is."""
    return f"http://{HOST}:{port}/api"


def answers(api: str) -> bool:
    """Whether a server is there and well."""
    try:
        return httpx.get(f"{api}/health", timeout=ANSWER_SECONDS).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


class LocalServer:
    """A server on loopback that belongs to this process; it is stopped when the block ends.

    Args:
        home: the PREFECT_HOME that holds its history.
        port: where it listens.

    Raises:
        UnclipError: the port is taken, or it does not come up.
    """

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self.api = address_of(port)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "LocalServer":
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((HOST, self.port))
            except OSError as error:
                raise UnclipError(f"port {self.port} of {HOST} can't be listened on ({error.strerror}); give another with --port") from None
        if (self.home / LOG).exists():
            (self.home / LOG).replace(self.home / f"{LOG}.1")
        try:
            self.start()
            write_json(self.home / ADDRESS, {"api": self.api})
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        (self.home / ADDRESS).unlink(missing_ok=True)
        self.stop()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        environment = os.environ | closed(self.port, credential_of(self.home))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "server", "start", "--host", HOST, "--port", str(self.port), "--log-level", "WARNING"]
        with (self.home / LOG).open("ab") as log:
            # a session of its own: the terminal's Ctrl-C is for us alone, and runs still report their end
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.home, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while not answers(self.api):
            if self.has_ended():
                raise UnclipError(f"the server ended as soon as it was started (exit code {self._process.returncode}); its last words are in {self.home / LOG}")
            if time.monotonic() > end:
                raise UnclipError(f"the server did not answer at {self.api} within {START_SECONDS:.0f} s; its log is {self.home / LOG}")
            time.sleep(0.2)

    @property
    def pid(self) -> int | None:
        """Its process."""
        return None if self._process is None else self._process.pid

    def has_ended(self) -> bool:
        """Whether it is gone, though nobody stopped it."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Ends it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
