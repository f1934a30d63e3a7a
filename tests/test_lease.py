"""The lease: one owner at a time, renewed while it works, free again when its owner is gone."""

import json
import time
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from unclip import lease as leases
from unclip.files import UnclipError
from unclip.lease import LEASE, Lease, LostLeaseError, lease_seconds, owner_of
from unclip.storage import Storage, StorageError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(leases, "SKEW_SECONDS", 0.0)
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.0)
    (tmp_path / "place").mkdir()
    return Storage(str(tmp_path / "place"), LocalFileSystem())


def test_a_second_owner_is_refused_and_told_who_holds_it(place: Storage) -> None:
    first = Lease(place, "first", 60.0)
    with pytest.raises(LostLeaseError, match="is written to by another machine .*process .* can be taken over"):
        Lease(place, "second", 60.0)
    first.check()
    first.give_back(last=True)
    Lease(place, "second", 60.0).give_back(last=True)
    assert place.find() == {}


def test_processes_of_one_owner_hold_it_together(place: Storage) -> None:
    first, other = Lease(place, "same", 60.0), Lease(place, "same", 60.0)
    first.give_back(last=False)
    with pytest.raises(LostLeaseError):
        Lease(place, "second", 60.0)
    other.check()
    other.give_back(last=True)
    assert place.find() == {}


def test_it_is_renewed_while_its_owner_works(place: Storage) -> None:
    first = Lease(place, "first", 0.6)
    time.sleep(1.5)
    with pytest.raises(LostLeaseError):
        Lease(place, "second", 0.6)
    first.give_back(last=True)


def test_it_can_be_taken_over_when_it_has_run_out_and_the_old_owner_stops(place: Storage) -> None:
    first = Lease(place, "first", 60.0)
    held = json.loads(place.read(LEASE) or b"")
    place.write(LEASE, json.dumps(held | {"expires": time.time() - 1}).encode())  # as if it had not been renewed
    second = Lease(place, "second", 60.0)
    first._valid_until = 0.0
    with pytest.raises(LostLeaseError, match="was taken over"):
        first.check()
    first.give_back(last=True)
    second.check()
    assert json.loads(place.read(LEASE) or b"")["owner"] == "second"
    second.give_back(last=True)


def test_an_owner_that_was_cut_off_goes_on_where_nobody_took_it(place: Storage) -> None:
    first = Lease(place, "first", 60.0)
    first._valid_until = 0.0
    first.check()
    place.remove(LEASE)
    first._valid_until = 0.0
    first.check()
    first.give_back(last=True)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff"])
def test_something_else_in_its_place_is_one_line(content: bytes, place: Storage) -> None:
    place.write(LEASE, content)
    with pytest.raises(StorageError, match="is not a lease of unclip; remove that object"):
        Lease(place, "first", 60.0)


def test_an_owner_keeps_its_name(tmp_path: Path) -> None:
    assert owner_of(tmp_path / "a") == owner_of(tmp_path / "a") != owner_of(tmp_path / "b")


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "inf", "nan"])
def test_a_time_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCLIP_LEASE_SECONDS", text)
    with pytest.raises(UnclipError, match="UNCLIP_LEASE_SECONDS must be a number"):
        lease_seconds()
