"""Serves a folder of images on the loopback address while a download reads it, so that all data goes one way."""

import contextlib
import http.server
import mimetypes
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

from unclip.files import UnclipError

HOST = "127.0.0.1"
SOCKET_SECONDS = 30  # a reader that takes longer for one piece is let go


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[str]:
    """Serves the files of `folder` on 127.0.0.1:`port` until the block ends; yields the address, "http://127.0.0.1:port".

    GET only; no listing, no hidden files, nothing outside the folder, whatever a path or a symbolic link says.

    Raises:
        UnclipError: no such folder, or the port is taken.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise UnclipError(f"expected the folder {folder}, but there is none; its images are read from there")

    class Files(_Handler):
        served = root

    try:
        server = http.server.ThreadingHTTPServer((HOST, port), Files)
    except (OSError, OverflowError) as error:
        raise UnclipError(f"can't serve {folder} on {HOST}:{port} ({error}); end what uses that port, or another run that reads this folder") from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="folder server", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def file_below(root: Path, url_path: str) -> Path | None:
    """The file that the path of a URL names below `root` (which is resolved), None where there is none to be shown."""
    names = [name for name in unquote(url_path).split("/") if name]
    if not names or any(name.startswith(".") or "\0" in name or "\\" in name for name in names):
        return None
    path = root.joinpath(*names)
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return path if found.is_relative_to(root) and found.is_file() else None


class _Handler(http.server.BaseHTTPRequestHandler):
    served: Path
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_SECONDS
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = file_below(self.served, urlsplit(self.path).path)
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            content = path.read_bytes()
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", mimetypes.guess_type(path.name)[0] or "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the reader went away: its own business
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: thousands of lines would bury the progress."""
