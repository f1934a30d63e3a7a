"""The opener under which img2dataset's workers follow links, in this process, against a server that misbehaves."""

import http.client
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.data.faults import FaultServer, fault_server, image_bytes
from unclip.data.connection import Limits
from unclip.data.outcomes import outcome, seconds_to_wait
from unclip.data.robots import opt_out
from unclip.data.web import Guarded, Opener, retry_after


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with fault_server() as running:
        yield running


@pytest.fixture
def settings(server: FaultServer, tmp_path: Path) -> dict[str, Any]:
    allowed = [server.base.removeprefix("http://")]
    limits = {"allow_private": False, "allowed": allowed, "robots": False, "max_bytes": 300_000, "max_pixels": 200_000, "max_seconds": 1.5}
    return limits | {"user_agent": "unclip/test", "tally": str(tmp_path)}


@pytest.fixture
def fetched(server: FaultServer, settings: dict[str, Any]) -> Callable[..., bytes]:
    def fetch(url: str, **changes: Any) -> bytes:
        return read(Opener(Limits(**settings | changes)), url if "://" in url else server.base + url)

    return fetch


def read(opener: Opener, url: str) -> bytes:
    with opener.open(url, timeout=1.0) as response:
        return bytes(response.read())


def failure(fetched: Callable[..., bytes], url: str, **changes: object) -> tuple[str, str]:
    with pytest.raises((OSError, http.client.HTTPException)) as caught:
        fetched(url, **changes)
    return outcome("failed_to_download", str(caught.value))


def test_an_image_comes_as_it_is_and_we_say_who_we_are(fetched: Callable[..., bytes], server: FaultServer, tmp_path: Path) -> None:
    assert fetched("/good/3.png") == image_bytes(40, 30, seed=3)
    assert server.headers["User-Agent"] == "unclip/test"
    assert fetched("/to/good") == image_bytes(40, 30, seed=1)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 2  # a redirect is not a link of its own


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("/status/404", "not found"), ("/status/410", "not found"), ("/status/403", "forbidden"), ("/status/429", "too many requests"),
        ("/status/500", "server error"), ("/status/503", "server error"), ("/status/504", "timed out"), ("/status/400", "other"),
        ("/to/file", "url not http(s)"), ("/to/ftp", "url not http(s)"), ("/to/private", "private address"), ("/to/loop", "other"),
        ("/bomb/1", "too large"), ("/huge/1", "too large"), ("/vast/1", "too large"), ("/html/1", "image broken"), ("/empty/1", "image broken"),
        ("/optout/noml", "opted out"),
        ("/big/1", "too large"), ("/endless/1", "too large"), ("/short/1", "connection failed"), ("/tdm/1", "opted out"), ("/deep/1", "image broken"),
        ("file:///etc/passwd", "url not http(s)"), ("ftp://127.0.0.1/x", "url not http(s)"), ("data:text/plain,hello", "url malformed"),
        ("http://127.0.0.1:9/x", "private address"), ("http://localhost:9/x", "private address"), ("http://[::1]:9/x", "private address"),
        ("http://10.1.2.3/x", "private address"), ("http://169.254.169.254/latest/meta-data", "private address"),
        ("http://2130706433/x", "private address"), ("http://0x7f.1/x", "private address"), ("http://[::ffff:127.0.0.1]/x", "private address"),
    ],
)  # fmt: skip
def test_a_bad_link_ends_with_its_reason(fetched: Callable[..., bytes], url: str, reason: str) -> None:
    assert failure(fetched, url)[0] == reason


def test_a_secure_link_shakes_hands_and_fails_where_the_server_does_not(fetched: Callable[..., bytes], server: FaultServer) -> None:
    reason, detail = failure(fetched, server.base.replace("http:", "https:") + "/good/1.png")
    assert reason == "connection failed"
    assert "SSL" in detail


def test_a_private_address_is_followed_where_the_config_allows_it(fetched: Callable[..., bytes], server: FaultServer) -> None:
    assert failure(fetched, "/good/1.png", allowed=[])[0] == "private address"
    assert fetched("/good/1.png", allowed=[], allow_private=True)


@pytest.mark.parametrize("url", ["/drip/1", "/driphead/1"])
def test_a_server_that_drips_costs_no_more_than_max_seconds(fetched: Callable[..., bytes], url: str) -> None:
    started = time.monotonic()
    assert failure(fetched, url) == ("timed out", "took over 1.5 s")
    assert time.monotonic() - started < 3.0


def test_a_name_that_resolves_to_a_private_address_is_refused(fetched: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(2, 1, 6, "", ("93.184.215.14", 80)), (2, 1, 6, "", ("192.168.0.7", 80))]
    monkeypatch.setattr("unclip.data.connection.socket.getaddrinfo", lambda *_, **__: answers)
    assert failure(fetched, "http://rebinding.example/x.png") == ("private address", "rebinding.example is 192.168.0.7")


def test_the_address_that_was_looked_at_is_the_one_that_is_connected_to(
    fetched: Callable[..., bytes], server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads to us at first, and to somebody else when asked again, is asked once."""
    answers, real = iter([[(2, 1, 6, "", ("127.0.0.1", 0))]]), socket.getaddrinfo
    monkeypatch.setattr(
        "unclip.data.connection.socket.getaddrinfo", lambda host, *more, **named: next(answers) if host.endswith("example") else real(host, *more, **named)
    )
    port = server.server_address[1]
    assert fetched(f"http://rebinding.example:{port}/good/1.png", allowed=[f"rebinding.example:{port}"])


def test_a_resolver_that_never_answers_costs_no_more_than_max_seconds(fetched: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    def tarpit(*_: object, **__: object) -> list[object]:
        forever.wait(20)
        return []

    monkeypatch.setattr("unclip.data.connection.socket.getaddrinfo", tarpit)
    started = time.monotonic()
    assert failure(fetched, "http://tarpit.example/x.png", max_seconds=0.4) == ("timed out", "took over 0.4 s")
    assert time.monotonic() - started < 3.0
    forever.set()


def test_a_site_that_asks_for_rest_is_not_asked_again_meanwhile(server: FaultServer, settings: dict[str, Any]) -> None:
    opener = Opener(Limits(**settings))
    for link, said in (("/later/30", "HTTP Error 429; retry after 30 s"), ("/good/77.png", "the site has asked for rest; retry after 30 s")):
        with pytest.raises(OSError, match=said) as caught:
            read(opener, server.base + link)
        assert outcome("failed_to_download", str(caught.value)) == ("too many requests", said)
    assert seconds_to_wait(said) == 30
    assert server.seen["/good/77.png"] == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("120", 120), (" 5 ", 5), ("", 0), ("soon", 0), ("-5", 0), ("1.5", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("²", 0), ("9" * 400, 1e9)],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(value: str, seconds: float) -> None:
    assert retry_after(value) == seconds


def test_a_date_to_come_is_waited_for() -> None:
    assert 50 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60


@pytest.mark.parametrize(
    ("said", "link", "reason"),
    [
        ("User-agent: *\nDisallow: /good/", "/good/5.png", "opted out"),
        ("User-agent: *\nDisallow: /*5.png$", "/good/5.png", "opted out"),
        ("User-agent: unclip\nDisallow: /\n\nUser-agent: *\nAllow: /", "/good/5.png", "opted out"),
        ("User-agent: *\nDisallow: /good/1.png", "/to/good", "opted out"),  # where the redirect leads
        ("User-agent: otherbot\nDisallow: /", "/good/5.png", ""),
        ("User-agent: *\nDisallow: /\nAllow: /good/", "/good/5.png", ""),
        ("status 404", "/good/5.png", ""),
        ("status 500", "/good/5.png", "server error"),  # a site that can't say may have said no
        ("\0\xff" * 1000, "/good/5.png", ""),
    ],
)
def test_robots_are_kept_out_where_a_site_says_so(said: str, link: str, reason: str, server: FaultServer, settings: dict[str, Any]) -> None:
    server.robots, before = said, server.seen["/robots.txt"]
    opener = Opener(Limits(**settings | {"robots": True, "allow_private": True, "allowed": []}))
    try:
        for _ in range(3):
            if reason:
                with pytest.raises(OSError, match=".") as caught:
                    read(opener, server.base + link)
                assert outcome("failed_to_download", str(caught.value))[0] == reason
            else:
                assert read(opener, server.base + link)
    finally:
        server.robots = ""
    assert server.seen["/robots.txt"] - before == 1, "once a site"


def test_rules_are_asked_for_by_the_same_vetted_way(settings: dict[str, Any]) -> None:
    opener = Opener(Limits(**settings | {"robots": True, "allowed": []}))
    with pytest.raises(OSError, match="private address"):
        read(opener, "http://10.0.0.1/x.png")


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        ("noai", "noai"), ("NoImageAI", "noimageai"), ("all, noindex", "noindex"), ("none", "none"), ("unclip: noml", "noml"), ("*: noai", "noai"),
        ("otherbot: noai", ""), ("otherbot: all, noai", ""), ("otherbot: all, unclip: noai", "noai"), ("max-image-preview: none", ""),
        ("max-image-preview: none, noai", "noai"), ("unavailable_after: 25 Jun 2010 15:00:00 PST, noai", "noai"), ("nofollow", ""), ("", ""), (":,:", ""),
    ],
)  # fmt: skip
def test_opt_outs_are_found_in_a_header_that_holds_more(tag: str, found: str) -> None:
    assert opt_out([tag]) == found
    assert opt_out(["all", tag]) == found


def test_limits_travel_with_an_argument_and_are_installed_where_it_arrives(settings: dict[str, Any]) -> None:
    code = (
        "import pickle, sys, urllib.request\n"
        "text = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "assert text == 'sha256' and str(text) in {'sha256': 1}\n"
        "try: urllib.request.urlopen(sys.argv[2])\n"
        "except OSError as error: print(error)"
    )
    sent = pickle.dumps(Guarded("sha256", Limits(**settings | {"allowed": []}))).hex()
    for url, said in (("file:///etc/passwd", "unknown url type: file"), ("http://127.0.0.1:9/x", "private address")):
        done = subprocess.run([sys.executable, "-c", code, sent, url], capture_output=True, text=True, check=True)
        assert said in done.stdout
