"""Connections to public addresses only, and answers that end with an error when they are too long or too late."""

import contextlib
import http.client
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTimeError
from dataclasses import dataclass
from typing import Any

from unclip.data.contracts import Reason
from unclip.data.links import RefusedError, is_public
from unclip.data.picture_head import refuse_picture
from unclip.data.remembered import Remembered, settle

MAX_ADDRESSES = 4  # of one name that are tried
PIECE = 1 << 16  # bytes read at once
NAMES, NAME_SECONDS = 20_000, 60.0  # names whose addresses are remembered, and for how long

Addresses = Remembered[list[str]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a link may cost and where it may lead.

    Attributes:
        allow_private: whether links may lead to addresses that are not public.
        allowed: "host:port" that need not be public even so.
        robots: whether robots.txt is asked before a link is followed.
        max_bytes, max_pixels: of one picture, encoded and decoded.
        max_seconds: for one picture with its redirects, and whatever is asked before it.
        user_agent: what we say we are.
        tally: a folder; each process adds a byte to a file in it for every link that it has tried.
    """

    allow_private: bool
    allowed: list[str]
    robots: bool
    max_bytes: int
    max_pixels: int
    max_seconds: float
    user_agent: str
    tally: str


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
            raise too_late(self._limits)

    def begin(self) -> None:
        """Reads the status line and the headers."""
        try:
            super().begin()
        except (OSError, http.client.HTTPException):
            self._in_time()
            raise

    def read(self, amt: int | None = None) -> bytes:
        """Reads a whole picture, or `amt` bytes of anything."""
        if amt is not None:
            head = super().read(amt)
            self._in_time()
            return head
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
        if self.status == http.client.OK:  # the body of a redirect is read too, and is no picture
            try:
                refuse_picture(body, self._limits.max_pixels)
            except RefusedError as refused:
                raise LimitError(refused.reason, refused.detail) from None
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
    addresses: Addresses

    def connect(self) -> None:
        """Opens the socket."""
        timeout = self.timeout or self.limits.max_seconds
        self.sock = connected(self.host, self.port, limits=self.limits, addresses=self.addresses, deadline=self.deadline, timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def response_class(self, sock: socket.socket, **more: Any) -> Response:  # type: ignore[override]
        """What `getresponse` makes of the socket."""
        return Response(sock, limits=self.limits, deadline=self.deadline, method=more.get("method"))


class SecureConnection(http.client.HTTPSConnection, Connection):
    """The same over TLS: HTTPSConnection.connect calls that of Connection, then shakes hands."""


def connected(host: str, port: int, *, limits: Limits, addresses: Addresses, deadline: float, timeout: float) -> socket.socket:
    """A socket connected to the host: to an address that was looked at, never to a name that could mean another one by now.

    Raises:
        LimitError: one of its addresses is not public, and neither that nor this host is allowed; or time is up.
        OSError: none of its addresses answers, or it has none.
    """
    found = _resolved(host, addresses, deadline, limits)
    if not limits.allow_private and f"{host}:{port}" not in limits.allowed:
        for address in found:
            if not is_public(address):
                raise LimitError("private address", f"{host} is {address}")
    failure = OSError(f"{host} has no address")
    for address in found:
        left = min(timeout, deadline - time.monotonic())
        if left <= 0:
            raise too_late(limits)
        try:
            return socket.create_connection((address, port), left)
        except OSError as error:
            failure = error
    raise failure


def _resolved(host: str, addresses: Addresses, deadline: float, limits: Limits) -> list[str]:
    def look_up() -> list[str]:
        return [str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[:MAX_ADDRESSES]]

    def begin(future: "Future[list[str]]") -> None:
        # a resolver has timeouts of its own, which are longer than ours; a thread can be left to them
        threading.Thread(target=settle, args=(future, look_up), name="resolver", daemon=True).start()

    try:
        return addresses.future(host, begin).result(max(0.0, deadline - time.monotonic()))
    except NotInTimeError:
        raise too_late(limits) from None


def too_late(limits: Limits) -> LimitError:
    """The error of a link that took its time."""
    return LimitError("timed out", f"took over {limits.max_seconds:g} s")
