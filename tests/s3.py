"""A local S3 for tests: moto's server on the loopback address, as a process of its own, and what a child needs to find it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import s3fs

START_SECONDS = 60.0


@contextmanager
def local_s3() -> Iterator[dict[str, str]]:
    """Yields the environment that leads to the server: its address, and credentials that it takes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], **quiet)  # type: ignore[call-overload]
    try:
        _wait(server, port)
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",  # which is asked for credentials, and is not of this machine
        }
    finally:
        server.kill()
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("moto's server did not start")


def file_system(where: Mapping[str, str]) -> s3fs.S3FileSystem:
    """The server's files, for the test itself."""
    return s3fs.S3FileSystem(
        endpoint_url=where["AWS_ENDPOINT_URL"], key=where["AWS_ACCESS_KEY_ID"], secret=where["AWS_SECRET_ACCESS_KEY"],
        use_listings_cache=False, skip_instance_cache=True,
    )  # fmt: skip
