"""A web server on the loopback address that misbehaves in every way that strangers' servers do."""

import io
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
from PIL import Image

SECONDS_TO_DRIP = 60


def image_bytes(width: int, height: int, kind: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in colour, of a few megabytes at the most: its rows are all alike, and not all are there."""
    rows = zlib.compress(bytes(1 + 3 * side) * 100, 9)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)


class FaultServer(ThreadingHTTPServer):
    """Counts the requests for each path in `seen`, and keeps the last headers; `delay` is slept before each answer."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.robots = ""  # what /robots.txt says; "" is 404
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), _Faults)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Readers hang up on purpose here."""


@contextmanager
def fault_server() -> Iterator[FaultServer]:
    server = FaultServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


class _Faults(BaseHTTPRequestHandler):
    server: FaultServer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def answer(self, body: bytes, status: int = 200, *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def drip(self, head: bytes) -> None:
        with suppress(OSError):
            self.wfile.write(head)
            for _ in range(SECONDS_TO_DRIP * 5):
                self.wfile.write(b"x")
                if self.server.closing.wait(0.2):
                    return

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.seen[path] += 1
        self.server.headers = dict(self.headers.items())
        time.sleep(self.server.delay)
        name, _, rest = path.lstrip("/").partition("/")
        if name == "good":
            self.answer(image_bytes(40, 30, seed=int(rest.partition(".")[0])))
        elif name == "large":
            self.answer(image_bytes(300, 200, "JPEG"))
        elif name == "webp":
            self.answer(image_bytes(40, 30, "WEBP"))
        elif name == "status":
            self.answer(b"no", int(rest))
        elif name == "once":
            self.answer(b"wait", 503) if self.server.seen[path] == 1 else self.answer(image_bytes(32, 32))
        elif name == "later":  # 429 once, with a Retry-After of so many seconds
            self.answer(b"", 429, Retry_After=rest) if self.server.seen[path] == 1 else self.answer(image_bytes(32, 32))
        elif name == "robots.txt" and self.server.robots:
            status = self.server.robots.removeprefix("status ")
            self.answer(b"", int(status)) if status.isdigit() else self.answer(self.server.robots.encode())
        elif name == "bomb":
            self.answer(bomb(50_000))
        elif name == "huge":
            self.answer(b"", length=300_000_000)
        elif name == "html":
            self.answer(b"<html>Not an image</html>", Content_Type="text/html")
        elif name == "garbled":
            self.answer(image_bytes(64, 64)[:200])
        elif name == "deep":
            buffer = io.BytesIO()
            Image.fromarray(np.full((32, 32), 9000, np.uint16)).save(buffer, "PNG")
            self.answer(buffer.getvalue())
        elif name == "short":
            self.answer(image_bytes(64, 64)[:200], length=5000)
        elif name == "empty":
            self.answer(b"")
        elif name == "big":
            self.answer(b"\0" * 400_000)
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not self.server.closing.is_set():
                    self.wfile.write(b"\0" * 65536)
        elif name == "drip":
            self.drip(b"HTTP/1.0 200 OK\r\nContent-Length: 10000\r\n\r\n")
        elif name == "driphead":
            self.drip(b"HTTP/1.0 200 OK\r\nX-")
        elif name == "to":
            target = {
                "file": "file:///etc/passwd",
                "ftp": "ftp://127.0.0.1/x",
                "private": "http://127.0.0.2:9/x.png",
                "good": "/good/1.png",
                "loop": "/to/loop",
            }[rest]
            self.answer(b"", 302, Location=target)
        elif name == "optout":
            self.answer(image_bytes(32, 32), X_Robots_Tag=rest)
        elif name == "tdm":
            self.answer(image_bytes(32, 32), TDM_Reservation="1")
        elif name == "tiny":
            self.answer(image_bytes(8, 8))
        elif name == "wide":
            self.answer(image_bytes(400, 20))
        elif name == "vast":
            self.answer(image_bytes(900, 900, "JPEG"))
        else:
            self.answer(b"", 404)
