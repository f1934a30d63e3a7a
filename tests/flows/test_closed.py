"""What keeps others out of the server of `unclip serve`, as far as it shows without one: its credential, its lock, its settings."""

import os
import socket
import stat
from pathlib import Path

import pytest

from flows.check import status_of
from flows.registry import own_file, read_deployments
from flows.serve import how_to_run
from flows.server import CREDENTIAL, HOST, LOCK, LocalServer, access_of, closed, credential_of, is_served, only_one
from unclip.files import UnclipError, exclusive


def test_the_credential_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    made = credential_of(tmp_path)
    assert stat.S_IMODE((tmp_path / CREDENTIAL).stat().st_mode) == 0o600
    user, _, password = made.partition(":")
    assert user == "unclip"
    assert len(password) >= 40
    assert credential_of(tmp_path) == made
    (tmp_path / "other").mkdir()
    assert credential_of(tmp_path / "other") != made


def test_a_credential_that_others_can_read_is_refused(tmp_path: Path) -> None:
    credential_of(tmp_path)
    (tmp_path / CREDENTIAL).chmod(0o644)
    with pytest.raises(UnclipError, match=r"can be read by others \(mode 644\)"):
        credential_of(tmp_path)


def test_a_credential_that_a_kill_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / CREDENTIAL).touch(mode=0o600)
    with pytest.raises(UnclipError, match="remove it"):
        credential_of(tmp_path)


def test_the_settings_close_the_server() -> None:
    assert closed(4200, "unclip:x") == {
        "PREFECT_SERVER_API_AUTH_STRING": "unclip:x",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:4200",
    }


def test_the_lines_that_run_a_deployment_do_not_tell_the_credential(tmp_path: Path) -> None:
    password = credential_of(tmp_path)
    lines = how_to_run("http://127.0.0.1:4200/api", read_deployments(own_file())[0], tmp_path / CREDENTIAL)
    assert password not in lines
    assert str(tmp_path / CREDENTIAL) in lines
    assert "prefect deployment run everything/nightly" in lines


def test_a_root_is_served_by_one(tmp_path: Path) -> None:
    home = tmp_path / ".prefect"
    assert not is_served(home)
    with only_one(home):
        assert is_served(home)
        with pytest.raises(UnclipError, match=f"{tmp_path} is served already"), only_one(home):
            pass
    assert not is_served(home)
    assert access_of(home) == {}


def test_a_root_that_nobody_serves_is_not_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    assert status_of(tmp_path).problem.startswith(f"nobody serves {tmp_path}")
    assert list(tmp_path.iterdir()) == [], "asking leaves nothing behind"


def test_a_dead_server_elsewhere_is_not_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert status_of(tmp_path).problem == "the server does not answer at http://127.0.0.1:9/api"


def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnclipError, match=rf"port {port} of 127\.0\.0\.1 .*--port"), LocalServer(tmp_path, port):
            pass
    assert os.listdir(tmp_path) == []


def test_the_lock_of_serving_is_not_that_of_working(tmp_path: Path) -> None:
    with only_one(tmp_path / ".prefect"), exclusive(tmp_path):
        assert (tmp_path / ".prefect" / LOCK).is_file()
