"""A map from 64-bit fingerprints to whole numbers in 16 bytes an entry, for what must be remembered of every row."""

import hashlib

import numpy as np

MAX_RECENT = 1_000_000  # entries in a Python dictionary, at some 100 bytes each, before they are put in order


def fingerprint64(text: str) -> int:
    """64 bits of the SHA-256 of a text. Among a hundred million rows, two share one with a chance of 3 in 10,000."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Numbers:
    """Fingerprints in [0, 2^64) -> numbers in int64; what was never set is `missing`."""

    def __init__(self, missing: int, *, max_recent: int = MAX_RECENT) -> None:
        self._missing, self._max_recent = missing, max_recent
        self._recent: dict[int, int] = {}
        self._names = np.zeros(0, np.uint64)  # sorted
        self._values = np.zeros(0, np.int64)

    def __getitem__(self, name: int) -> int:
        found = self._recent.get(name)
        if found is not None:
            return found
        wanted = np.uint64(name)
        place = int(np.searchsorted(self._names, wanted))
        return int(self._values[place]) if place < len(self._names) and self._names[place] == wanted else self._missing

    def __setitem__(self, name: int, value: int) -> None:
        self._recent[name] = value
        if len(self._recent) >= self._max_recent:
            self._settle()

    def _settle(self) -> None:
        names = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
        values = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        self._recent = {}
        # of an entry that was set before, the later value comes first and is the one that `unique` takes
        all_names, all_values = np.concatenate([names, self._names]), np.concatenate([values, self._values])
        self._names, first = np.unique(all_names, return_index=True)
        self._values = all_values[first]
