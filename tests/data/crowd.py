"""A quick web server on the loopback address, in a process of its own: `python -m tests.data.crowd`, which prints its port.

What comes of a link is in its path, /KIND/NUMBER.png; a good part of them is bad, as in any list of links from strangers.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.data.faults import image_bytes

KINDS = {
    "good": "kept", "missing": "not found", "gone": "not found", "closed": "forbidden", "busy": "kept", "limited": "kept", "down": "server error",
    "page": "image broken", "cut": "image broken", "small": "image too small", "mine": "opted out", "hangup": "connection failed",
}  # fmt: skip
NUM_PICTURES = 64  # different ones; the number of a link says which


def answer(status: str, body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n".encode() + body


class Server:
    """Answers at once; "busy" and "limited" links answer at their second try."""

    def __init__(self) -> None:
        self._pictures = [answer("200 OK", image_bytes(20, 20, seed=seed)) for seed in range(NUM_PICTURES)]
        self._seen: set[str] = set()
        self._answers = {
            "missing": answer("404 Not Found", b""), "gone": answer("410 Gone", b"<html>gone</html>"), "closed": answer("403 Forbidden", b""),
            "busy": answer("503 Service Unavailable", b""), "limited": answer("429 Too Many Requests", b""), "down": answer("500 Oh", b""),
            "page": answer("200 OK", b"<html>a page</html>"), "cut": answer("200 OK", image_bytes(20, 20)[:300]), "small": answer("200 OK", image_bytes(8, 8)),
            "mine": answer("200 OK", image_bytes(20, 20), "X-Robots-Tag: noai\r\n"), "hangup": b"",
        }  # fmt: skip

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ", 2)[1].decode()
            _, kind, name = path.split("/")
            if kind == "good" or path in self._seen:
                writer.write(self._pictures[int(name.partition(".")[0]) % NUM_PICTURES])
            else:
                if kind in ("busy", "limited"):
                    self._seen.add(path)
                writer.write(self._answers[kind])
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # readers are killed on purpose here
        finally:
            writer.close()


async def main() -> None:
    server = await asyncio.start_server(Server().serve, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def crowd() -> Iterator[str]:
    """Runs the server; yields its address, such as "http://127.0.0.1:1234"."""
    process = subprocess.Popen([sys.executable, "-m", "tests.data.crowd"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(main())
