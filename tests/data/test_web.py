"""The opener under which img2dataset's workers follow links, in this process, against a server that misbehaves."""

import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.faults import FaultServer, fault_server, image_bytes
from unclip.data.connection import Limits
from unclip.data.outcomes import outcome
from unclip.data.web import Opener


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with fault_server() as running:
        yield running


@pytest.fixture
def fetched(server: FaultServer, tmp_path: Path) -> Callable[..., bytes]:
    def fetch(url: str, **changes: Any) -> bytes:
        allowed = [server.base.removeprefix("http://")]
        settings: dict[str, Any] = {
            "allow_private": False,
            "allowed": allowed,
            "robots": False,
            "max_bytes": 300_000,
            "max_pixels": 200_000,
            "max_seconds": 1.5,
            "user_agent": "unclip/test",
            "tally": str(tmp_path),
        }
        with Opener(Limits(**settings | changes)).open(url if "://" in url else server.base + url, timeout=1.0) as response:
            return bytes(response.read())

    return fetch


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
