"""The lease on a root behind a URL: a small object that says which machine writes there, and until when.

Object stores have no locks. What is guaranteed:

- On S3 (and stores that keep to its conditional puts, as MinIO, R2 and moto do) the lease is created only where there is none
  and exchanged only for the one that was read, so of several machines at once exactly one gets it. Elsewhere it is written,
  and read again a moment later: of two machines that begin in the same instant the last one to write gets it. Where its put
  took longer than that moment both believe that they have it, until the first one renews it and finds the other's.
- It ends by itself after a while that its owner does not renew it. The clocks of the machines must agree to within
  `SKEW_SECONDS`, which a taker waits on top.
- An owner that could not renew it in time puts up nothing more until it has it again. One put that was on its way at that
  moment may still arrive; no store offers to refuse it. Parts and checkpoints come out the same wherever they are made, so
  such a put changes nothing that a record speaks of.
"""

import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from unclip.files import UnclipError, write_json
from unclip.storage import CONDITIONAL, Found, Storage, StorageError

LEASE = ".lease.json"
OWNER = "owner.json"  # in the working copy: who this machine is to the lease
SECONDS = 60.0  # a lease lasts so long without being renewed
SECONDS_VARIABLE = "UNCLIP_LEASE_SECONDS"
SKEW_SECONDS = 2.0
SETTLE_SECONDS = 2.0  # between writing and reading again, where puts can't be made conditional


class LostLeaseError(StorageError):
    """Another machine has taken the place over."""


def lease_seconds() -> float:
    """How long a lease lasts without being renewed, as the environment says.

    Raises:
        UnclipError: it says something else than a number of seconds.
    """
    text = os.environ.get(SECONDS_VARIABLE, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds < float("inf"):
        raise UnclipError(f"{SECONDS_VARIABLE} must be a number of seconds of at least 1, got {text!r}")
    return seconds


def owner_of(folder: Path) -> str:
    """The name under which the working copy with this folder holds leases; made at the first call."""
    path = folder / OWNER
    if not path.exists():
        write_json(path, {"owner": secrets.token_hex(8)})
    return str(json.loads(path.read_text())["owner"])


class Lease:
    """The right to write to a place, taken when it is made and renewed until `give_back`.

    Args:
        owner: who takes it; processes with the same owner hold it together.
        seconds: how long it lasts without being renewed.

    Raises:
        UnclipError: another owner holds it.
    """

    def __init__(self, storage: Storage, owner: str, seconds: float) -> None:
        self._storage, self._owner, self._seconds = storage, owner, seconds
        self._valid_until, self._was_held = 0.0, False  # until when by the monotonic clock
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Goes on only while the lease is held; one that ran out is taken again where nobody else has it.

        Raises:
            LostLeaseError: another machine has it.
        """
        if time.monotonic() >= self._valid_until:
            self._take()

    def give_back(self, *, last: bool) -> None:
        """Stops renewing it; `last` ends it for all processes of this owner, so that another machine need not wait."""
        self._ended.set()
        self._thread.join()
        if last and (held := self._read()) is not None and held[0]["owner"] == self._owner:
            self._storage.remove(LEASE)

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            try:
                self._take()
            except LostLeaseError:
                self._valid_until = 0.0  # `check` says so, where the work can be stopped
                return
            except StorageError:
                continue  # the store may be back before the lease runs out

    def _take(self) -> None:
        with self._writing:
            begun = time.monotonic()
            for _ in range(3):  # another process of this machine may renew it at the same time
                if self._try():
                    self._valid_until, self._was_held = begun + self._seconds, True
                    return
            raise LostLeaseError(f"{self._storage.url} is in great demand: other machines took it three times in a row; try again")

    def _try(self) -> bool:
        held = self._read()
        content = json.dumps(
            {"owner": self._owner, "host": socket.gethostname(), "process": os.getpid(), "expires": time.time() + self._seconds}, sort_keys=True
        ).encode()
        if held is None:
            return self._storage.create(LEASE, content) and self._has_stayed()
        theirs, found = held
        left = float(theirs["expires"]) + SKEW_SECONDS - time.time()
        if theirs["owner"] == self._owner:
            return self._storage.exchange(LEASE, content, found)
        if left > 0:
            state = "was taken over by another machine" if self._was_held else "is written to by another machine"
            raise LostLeaseError(
                f"{self._storage.url} {state} ({theirs['host']}, process {theirs['process']}); "
                f"wait for it to end, or stop it: {left:.0f} s after its last sign of life it can be taken over"
            )
        return self._storage.exchange(LEASE, content, found) and self._has_stayed()

    def _has_stayed(self) -> bool:
        """Whether what was written is what stands there, for stores that take any put."""
        if self._storage.scheme in CONDITIONAL:
            return True
        time.sleep(min(SETTLE_SECONDS, self._seconds / 3))
        held = self._read()
        return held is not None and held[0]["owner"] == self._owner

    def _read(self) -> tuple[dict[str, Any], Found] | None:
        found = self._storage.info(LEASE)  # before the content, so that an exchange is for nothing younger than what was read
        content = self._storage.read(LEASE)
        if found is None or content is None:
            return None
        try:
            held = json.loads(content)
            return {name: held[name] for name in ("owner", "host", "process", "expires")}, found
        except (ValueError, KeyError, TypeError):
            raise StorageError(f"{self._storage.url}/{LEASE} is not a lease of unclip; remove that object where no machine works there") from None
