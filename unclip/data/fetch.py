"""The process that runs img2dataset (`python -m unclip.data.fetch job.json`), and how its workers follow links.

img2dataset opens links with `urllib.request.urlopen`, which uses whatever opener is installed. Every process that starts
here (this one, and the workers, which import it again) installs one of ours: no file, ftp or data links, no proxies, no
address that is not public, redirects included, and a limit on bytes and seconds.
"""

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip.data.contracts import Reason
from unclip.data.links import is_public

LIMITS_VARIABLE = "UNCLIP_FETCH"  # environment: the limits as JSON, for workers get no arguments
MAX_REDIRECTS = 5
MAX_ADDRESSES = 4  # of one name that are tried
PIECE = 1 << 16  # bytes read at once
WATCH_SECONDS = 0.5
PNG_SIGNATURE, PNG_DEPTH_AT = b"\x89PNG\r\n\x1a\n", 24  # after the signature, and the length, name, width and height of IHDR
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a link may cost and where it may lead. `allowed` are "host:port" that need not be public."""

    allow_private: bool
    allowed: list[str]
    max_bytes: int
    max_seconds: float
    user_agent: str
    tally: str  # a folder; each worker adds a byte to a file in it for every link that it has tried


class LimitError(OSError):
    """A link that was given up on; its text holds the reason, for img2dataset passes on nothing but text."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"unclip: {reason}: {detail}")


class Response(http.client.HTTPResponse):
    """A response that ends with an error when it is too long, or not there in time, however slowly it drips."""

    def __init__(self, sock: socket.socket, *, limits: Limits, deadline: float, method: str | None = None) -> None:
        super().__init__(sock, method=method)
        self._limits, self._expired = limits, False
        # a socket's own timeout starts anew with every byte; this one doesn't
        self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._cut, [sock])
        self._timer.daemon = True
        self._timer.start()

    def _cut(self, sock: socket.socket) -> None:
        self._expired = True
        with contextlib.suppress(OSError):  # closed already
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which changes the object under its reader

    def _in_time(self) -> None:
        if self._expired:
            raise LimitError("timed out", f"took over {self._limits.max_seconds:g} s")

    def begin(self) -> None:
        """Reads the status line and the headers."""
        try:
            super().begin()
        except (OSError, http.client.HTTPException):
            self._in_time()
            raise

    def read(self, amt: int | None = None) -> bytes:
        """Reads the whole body (or `amt` bytes of it)."""
        if amt is not None:
            return super().read(amt)
        if (self.length or 0) > self._limits.max_bytes:
            raise LimitError("too large", f"{self.length} bytes, the limit is {self._limits.max_bytes}")
        pieces, size = [], 0
        while piece := self._piece():
            pieces.append(piece)
            size += len(piece)
            if size > self._limits.max_bytes:
                raise LimitError("too large", f"over {self._limits.max_bytes} bytes")
        self._in_time()
        if self.length:
            raise LimitError("connection failed", f"the body ended {self.length} bytes early")
        body = b"".join(pieces)
        if body.startswith(PNG_SIGNATURE) and body[PNG_DEPTH_AT : PNG_DEPTH_AT + 1] == b"\x10":
            raise LimitError("image broken", "16 bits a channel, which img2dataset would store as white")
        return body

    def _piece(self) -> bytes:
        try:
            return self.read1(PIECE)
        except (OSError, http.client.HTTPException):
            self._in_time()
            raise

    def close(self) -> None:
        """Closes the response."""
        self._timer.cancel()
        super().close()


class Connection(http.client.HTTPConnection):
    """A connection to public addresses only: they are checked after the name was resolved, so no name can lead inside."""

    limits: Limits
    deadline: float

    def connect(self) -> None:
        """Opens the socket."""
        self.sock = connected(self.host, self.port, limits=self.limits, deadline=self.deadline, timeout=self.timeout or self.limits.max_seconds)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def response_class(self, sock: socket.socket, **more: Any) -> Response:  # type: ignore[override]
        """What `getresponse` makes of the socket."""
        return Response(sock, limits=self.limits, deadline=self.deadline, method=more.get("method"))


class SecureConnection(http.client.HTTPSConnection, Connection):
    """The same over TLS: HTTPSConnection.connect calls that of Connection, then shakes hands."""


def connected(host: str, port: int, *, limits: Limits, deadline: float, timeout: float) -> socket.socket:
    """A socket connected to the host.

    Raises:
        LimitError: one of its addresses is not public, and neither that nor this host is allowed; or time is up.
        OSError: none of its addresses answers.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:MAX_ADDRESSES]
    if not limits.allow_private and f"{host}:{port}" not in limits.allowed:
        for *_, address in addresses:
            if not is_public(str(address[0])):
                raise LimitError("private address", f"{host} is {address[0]}")
    failure = OSError(f"{host} has no address")
    for *_, address in addresses:
        left = min(timeout, deadline - time.monotonic())
        if left <= 0:
            raise LimitError("timed out", f"took over {limits.max_seconds:g} s")
        try:
            return socket.create_connection((str(address[0]), port), left)
        except OSError as error:
            failure = error
    raise failure


class _Web(urllib.request.AbstractHTTPHandler):
    """Opens http and https links, and nothing else."""

    def __init__(self, limits: Limits, clock: "threading.local") -> None:
        super().__init__()
        self._limits, self._clock, self._context = limits, clock, ssl.create_default_context()

    def _limited(self, kind: type[Connection]) -> Callable[..., Connection]:
        def connection(host: str, **more: Any) -> Connection:
            made = kind(host, **more)
            made.limits, made.deadline = self._limits, self._clock.deadline
            return made

        return connection

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._limited(Connection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._limited(SecureConnection), request, context=self._context)

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        request.add_header("User-agent", self._limits.user_agent)  # img2dataset would say that it is Firefox
        return self.do_request_(request)

    def http_response(self, request: urllib.request.Request, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        if response.headers.get("TDM-Reservation", "").strip() == "1":  # W3C TDM Reservation Protocol
            response.close()
            raise LimitError("opted out", "TDM-Reservation: 1")
        return response

    https_request = http_request
    https_response = http_response


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS


class Opener(urllib.request.OpenerDirector):
    """What `urlopen` uses once it is installed."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits, self._clock = limits, threading.local()
        self._tally = os.open(Path(limits.tally) / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        own: list[urllib.request.BaseHandler] = [_Web(limits, self._clock), _Redirects()]
        for handler in (*own, urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler(), urllib.request.UnknownHandler()):
            self.add_handler(handler)

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Any:
        """Opens a link; all its redirects together have max_seconds."""
        if getattr(self._clock, "deadline", None) is not None:
            return super().open(fullurl, data, timeout)  # a redirect comes back here
        self._clock.deadline = time.monotonic() + self._limits.max_seconds
        try:
            return super().open(fullurl, data, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            raise
        finally:
            self._clock.deadline = None
            os.write(self._tally, b".")


def die_with(parent: int) -> None:
    """Ends this process, hard, as soon as `parent` is no longer its parent: no orphan writes where a new run writes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def main() -> None:
    """Runs img2dataset with the arguments in the JSON file that the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    from img2dataset import download  # 3 s, and only this process and its workers need it

    download(**job["arguments"])


if __name__ in ("__main__", "__mp_main__"):  # "__mp_main__" is what multiprocessing calls it in a worker
    _content = json.loads(os.environ[LIMITS_VARIABLE])
    die_with(_content.pop("parent") if __name__ == "__main__" else os.getppid())
    _content.pop("parent", None)
    urllib.request.install_opener(Opener(Limits(**_content)))

if __name__ == "__main__":
    main()
