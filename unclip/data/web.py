"""How links from strangers are followed inside img2dataset: where they may lead, what each may cost, and who may refuse us.

img2dataset opens links with `urllib.request.urlopen`, which uses whatever opener is installed. `Guarded` installs ours in
every process that img2dataset sends it to, on this machine or another: no file, ftp or data links, no proxies, no address
that is not public, redirects included, limits on bytes, pixels and seconds. What a site says about robots is heeded.
"""

import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTimeError
from dataclasses import asdict
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unclip.data.connection import NAME_SECONDS, NAMES, Addresses, Connection, LimitError, Limits, SecureConnection, too_late
from unclip.data.remembered import Remembered, settle
from unclip.data.robots import MAX_BYTES, Rules, opt_out

MAX_REDIRECTS = 5
SITES, RULES_SECONDS = 10_000, 3600.0  # sites whose robots.txt, or wish to be left alone, is remembered, and rules for how long
FIRST_ERROR = 400


class _Web(urllib.request.AbstractHTTPHandler):
    """Opens http and https links, and nothing else."""

    def __init__(self, limits: Limits, clock: "_Clock", permit: Callable[[urllib.request.Request], None]) -> None:
        super().__init__()
        self._limits, self._clock, self._permit, self._context = limits, clock, permit, ssl.create_default_context()
        self._addresses = Addresses(NAMES, NAME_SECONDS)

    def _limited(self, kind: type[Connection]) -> Callable[..., Connection]:
        def connection(host: str, **more: Any) -> Connection:
            made = kind(host, **more)
            made.limits, made.deadline, made.addresses = self._limits, self._clock.deadline or 0.0, self._addresses
            return made

        return connection

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._limited(Connection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._limited(SecureConnection), request, context=self._context)

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        self._permit(request)
        request.add_header("User-agent", self._limits.user_agent)  # img2dataset would say that it is Firefox
        return self.do_request_(request)

    def http_response(self, request: urllib.request.Request, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        said = opt_out(response.headers.get_all("X-Robots-Tag", []))
        said = f"X-Robots-Tag: {said}" if said else ""
        if response.headers.get("TDM-Reservation", "").strip() == "1":  # W3C TDM Reservation Protocol
            said = "TDM-Reservation: 1"
        if said and response.status < FIRST_ERROR and not self._clock.reads_rules:
            response.close()
            raise LimitError("opted out", said)
        return response

    https_request = http_request
    https_response = http_response


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS


class _Clock(threading.local):
    """What a thread knows of the link that it follows: when its time is up, and whether it is robots.txt."""

    deadline: float | None = None
    reads_rules = False


class Opener(urllib.request.OpenerDirector):
    """What `urlopen` uses once it is installed."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits, self._clock = limits, _Clock()
        self._rules: Remembered[Rules] = Remembered(SITES, RULES_SECONDS)
        self._resting = _Resting()
        self._tally = os.open(Path(limits.tally) / f"{socket.gethostname()}-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        own: list[urllib.request.BaseHandler] = [_Web(limits, self._clock, self._permit), _Redirects()]
        for handler in (*own, urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler(), urllib.request.UnknownHandler()):
            self.add_handler(handler)

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Any:
        """Opens a link; all its redirects together have max_seconds."""
        if self._clock.deadline is not None:
            return super().open(fullurl, data, timeout)  # a redirect comes back here
        self._clock.deadline = time.monotonic() + self.limits.max_seconds
        try:
            return super().open(fullurl, data, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._told_to_wait(error) or error from None
        finally:
            self._clock.deadline = None
            os.write(self._tally, b".")

    def close(self) -> None:
        """Closes the tally."""
        super().close()
        with contextlib.suppress(OSError):  # closed already
            os.close(self._tally)

    def _told_to_wait(self, error: urllib.error.HTTPError) -> LimitError | None:
        seconds = retry_after(error.headers.get("Retry-After", ""))
        if not seconds or error.code not in (http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE):
            return None
        self._resting.rest(urlsplit(error.url or "").netloc, seconds)
        return LimitError("too many requests" if error.code == http.client.TOO_MANY_REQUESTS else "server error", _wait(f"HTTP Error {error.code}", seconds))

    def _permit(self, request: urllib.request.Request) -> None:
        """Raises LimitError where the site has asked for rest, or its robots.txt keeps us out. Each redirect is asked for too."""
        if left := self._resting.left(request.host):
            raise LimitError("too many requests", _wait("the site has asked for rest", left))
        if self.limits.robots and not self._clock.reads_rules and request.host not in self.limits.allowed:
            rules = self._rules.future(f"{request.type}://{request.host}", lambda future: settle(future, lambda: self._read_rules(request)))
            try:
                allowed = rules.result(max(0.0, (self._clock.deadline or 0.0) - time.monotonic())).allow(request.full_url)
            except NotInTimeError:
                raise too_late(self.limits) from None
            if not allowed:
                raise LimitError("opted out", "robots.txt")

    def _read_rules(self, request: urllib.request.Request) -> Rules:
        """The rules of a site, through the same limits as its pictures. None that can be had is no rule (RFC 9309, 2.3.1.3)."""
        self._clock.reads_rules = True
        try:
            with self.open(f"{request.type}://{request.host}/robots.txt", timeout=request.timeout) as answer:
                return Rules(answer.read(MAX_BYTES).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            error.close()
            if FIRST_ERROR <= error.code < http.client.INTERNAL_SERVER_ERROR and error.code != http.client.TOO_MANY_REQUESTS:
                return Rules("")
            raise
        finally:
            self._clock.reads_rules = False


class _Resting:
    """The sites that have asked us, by Retry-After, to come back later."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def rest(self, host: str, seconds: float) -> None:
        with self._lock:
            self._until[host] = time.monotonic() + seconds
            while len(self._until) > SITES:
                self._until.popitem(last=False)

    def left(self, host: str) -> float:
        with self._lock:
            left = self._until.get(host, 0.0) - time.monotonic()
            if left <= 0:
                self._until.pop(host, None)
        return max(0.0, left)


def _wait(why: str, seconds: float) -> str:
    return f"{why}; retry after {ceil(seconds)} s"  # outcomes.seconds_to_wait reads it


def retry_after(value: str) -> float:
    """The seconds that a Retry-After header asks for, as a number or as a date; 0 where it says nothing that can be read."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), 1e9)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


class Guarded(str):
    """Text for an argument of img2dataset which installs the opener wherever it is unpickled.

    img2dataset pickles its arguments into each of its workers, whichever distributor starts them, and a worker has nothing
    to do before it has unpickled them: so no link is followed without these limits.
    """

    limits: Limits

    def __new__(cls, text: str, limits: Limits) -> "Guarded":
        made = super().__new__(cls, text)
        made.limits = limits
        return made

    def __reduce__(self) -> tuple[Callable[..., "Guarded"], tuple[str, dict[str, Any]]]:
        return _arrived, (str(self), asdict(self.limits))


def _arrived(text: str, limits: dict[str, Any]) -> Guarded:
    made = Guarded(text, Limits(**limits))
    install(made.limits)
    return made


_installed: list[Opener] = []


def install(limits: Limits) -> None:
    """Makes `urlopen` of this process follow links within these limits; a worker that got other ones before gets the new."""
    if not _installed or _installed[-1].limits != limits:
        for earlier in _installed:
            earlier.close()
        _installed[:] = [Opener(limits)]
        urllib.request.install_opener(_installed[-1])
