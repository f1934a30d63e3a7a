"""The folder server gives the files of its folder to readers on this machine, and nothing else."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from unclip.data.serve import serving
from unclip.files import UnclipError


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "folder-too").mkdir()
    (tmp_path / "folder-too/near.txt").write_text("secret")
    for name in ("a.png", "sub/b c ü.png", ".env", ".hidden/x.png"):
        (folder / name).write_bytes(b"content of " + name.encode())
    (folder / "out.png").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "again.png").symlink_to(folder / "a.png")
    with serving(folder, 0) as base:
        yield base.removeprefix("http://")


def ask(address: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=5)
    connection.putrequest(method, path, skip_host=False)  # as it is, not made tidy
    connection.endheaders()
    answer = connection.getresponse()
    result = answer.status, answer.read()
    connection.close()
    return result


def test_files_come_with_their_bytes(address: str) -> None:
    assert ask(address, "/a.png") == (200, b"content of a.png")
    assert ask(address, "/sub/b%20c%20%C3%BC.png") == (200, "content of sub/b c ü.png".encode())
    assert ask(address, "/a.png?size=1")[0] == ask(address, "/again.png")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/sub", "/sub/", "/none.png", "/.env", "/.hidden/x.png", "/../secret.txt", "/%2e%2e/secret.txt", "/sub/../../secret.txt", "/..%2fsecret.txt",
     "/..%5csecret.txt", "/out.png", "/up/secret.txt", "/up/folder/a.png/", "/../folder-too/near.txt", "//etc/passwd", "/%00", "/a.png%00.txt"],
)  # fmt: skip
def test_nothing_else_comes(address: str, path: str) -> None:
    status, body = ask(address, path)
    assert status == 404 or body == b"content of a.png"  # a link that leads back inside is inside
    assert b"secret" not in body
    assert b"passwd" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_only_reading_is_answered(address: str, method: str) -> None:
    assert ask(address, "/a.png", method)[0] == 501


def test_a_port_that_is_taken_is_said_and_free_again_afterwards(tmp_path: Path) -> None:
    with serving(tmp_path, 0) as base:
        port = int(base.rpartition(":")[2])
        with pytest.raises(UnclipError, match=f"can't serve .* on 127.0.0.1:{port}"), serving(tmp_path, port):
            pass
    with serving(tmp_path, port):
        pass
    with pytest.raises(UnclipError, match="expected the folder"), serving(tmp_path / "none", 0):
        pass
