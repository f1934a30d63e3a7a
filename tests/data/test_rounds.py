"""Rounds of fetching: what is tried again, when, and what is kept on disk meanwhile. No process is started here."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unclip.data.batch import ROWS_AT_ONCE, Fetched, evenly
from unclip.data.marks import RECENT, Ids
from unclip.data.picture_head import refuse_picture
from unclip.data.remembered import Remembered, settle
from unclip.data.rounds import SHARDS_AT_ONCE, Links, Patience, fetched_shards

PATIENCE = Patience(retries=2, backoff_seconds=3.0, longest_wait=60.0)
BUSY = "HTTP Error 503: Busy"


class World:
    """Links whose outcomes are known, a clock, and what was asked for when."""

    def __init__(self, outcomes: Mapping[str, list[tuple[str, str]]]) -> None:
        self.outcomes, self.now, self.tries, self.asked = outcomes, 0.0, Counter[str](), list[tuple[float, list[str], list[str]]]()
        self.freed: set[int] = set()

    def fetch(self, number: int, new: Links, again: Links) -> dict[str, Fetched]:
        self.asked.append((self.now, [name for name, _ in new], [name for name, _ in again]))
        self.now += 10.0
        came = {}
        for name, _ in [*new, *again]:
            outcomes = self.outcomes.get(name, [("kept", "")])
            status, detail = outcomes[min(self.tries[name], len(outcomes) - 1)]
            self.tries[name] += 1
            came[name] = Fetched(status, detail, tar=Path(str(number)) if status == "kept" else None)
        return came

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, shards: int, rows: int = 2) -> dict[str, dict[str, Fetched]]:
        given = ((str(shard), [{"id": f"{shard}.{row}", "url": f"http://a.example/{shard}/{row}"} for row in range(rows)]) for shard in range(shards))
        return {shard.name: self._whole(shard.fetched) for shard in self._shards(given)}

    def _shards(self, given: Iterator[tuple[str, list[dict[str, Any]]]]) -> Iterator[Any]:
        return fetched_shards(given, self.fetch, self.freed.add, PATIENCE, sleep=self.sleep, clock=lambda: self.now)

    def _whole(self, fetched: dict[str, Fetched]) -> dict[str, Fetched]:
        assert not {int(str(came.tar)) for came in fetched.values() if came.tar is not None} & self.freed, "the pictures are still there"
        return fetched


def test_a_second_try_rides_along_with_later_shards_and_holds_nobody_up() -> None:
    world = World({"0.1": [("server error", BUSY), ("kept", "")]})
    done = world.run(2 * SHARDS_AT_ONCE + 1)
    assert [(len(new), again) for _, new, again in world.asked] == [(2 * SHARDS_AT_ONCE, []), (2 * SHARDS_AT_ONCE, []), (2, ["0.1"])]
    assert list(done) == [*(str(shard) for shard in range(1, 2 * SHARDS_AT_ONCE)), "0", str(2 * SHARDS_AT_ONCE)]
    assert done["0"]["0.1"].status == "kept"
    assert world.freed == {0, 1, 2}


def test_tries_wait_longer_each_time_and_end() -> None:
    world = World({"0.0": [("timed out", "timed out")]})
    assert world.run(1)["0"]["0.0"].status == "timed out"
    assert [at for at, *_ in world.asked] == [0.0, 13.0, 29.0]  # 10 s a round, then 3 s, then 6 s
    assert world.tries == {"0.0": 3, "0.1": 1}


@pytest.mark.parametrize(("asked", "times"), [("20", [0.0, 30.0]), ("1", [0.0, 13.0]), ("61", [0.0])])
def test_a_site_is_given_the_rest_that_it_asks_for_or_given_up(asked: str, times: list[float]) -> None:
    world = World({"0.0": [("too many requests", f"HTTP Error 429; retry after {asked} s"), ("kept", "")]})
    assert world.run(1)["0"]["0.0"].status == ("kept" if len(times) == 2 else "too many requests")
    assert [at for at, *_ in world.asked] == times


@pytest.mark.parametrize("status", ["not found", "forbidden", "opted out", "image broken", "too large", "private address", "other"])
def test_what_is_final_is_never_tried_again(status: str) -> None:
    world = World({"0.0": [(status, "")]})
    world.run(1)
    assert world.tries["0.0"] == 1


def test_a_row_without_a_link_is_not_fetched() -> None:
    world = World({})
    (shard,) = world._shards(iter([("0", [{"id": "a", "url": ""}, {"id": "b", "url": ""}])]))
    assert {name: came.status for name, came in shard.fetched.items()} == {"a": "removed", "b": "removed"}
    assert world.asked == []


@given(st.integers(1, 50_000), st.integers(1, 8))
def test_rows_are_shared_evenly_and_in_order(rows: int, processes: int) -> None:
    links = [(str(number), "") for number in range(rows)]
    shards = evenly(links, processes)
    assert [link for shard in shards for link in shard] == links
    assert all(0 < len(shard) <= ROWS_AT_ONCE for shard in shards)
    assert len(shards) >= min(processes, rows) - 1 or rows < processes


def test_ids_are_known_after_they_went_to_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.data.marks.RECENT", 10)
    assert RECENT > 10
    ids, numbers = Ids(), np.random.default_rng(0).integers(0, 2**63, 35)
    names = [f"{number:016x}" for number in numbers] + ["f" * 16, "0" * 16]
    assert all(ids.add(name) for name in names)
    assert not any(ids.add(name) for name in names)
    assert all(name in ids for name in names)
    assert "1" * 16 not in ids


def test_an_answer_is_found_out_once_kept_for_a_while_and_the_oldest_is_forgotten() -> None:
    found: list[str] = []
    memory: Remembered[str] = Remembered(2, 60.0)

    def ask(key: str) -> str:
        return memory.future(key, lambda future: settle(future, lambda: found.append(key) or key)).result(1)

    for key in ("a", "b", "a", "c", "a", "b"):
        assert ask(key) == key
    assert found == ["a", "b", "c", "b"]
    assert len(memory) == 2
    forgetful: Remembered[str] = Remembered(2, -1.0)
    for _ in range(2):
        forgetful.future("a", lambda future: settle(future, lambda: found.append("again") or "a"))
    assert found[-2:] == ["again", "again"]


def test_a_failure_is_an_answer_too() -> None:
    memory: Remembered[str] = Remembered(2, 60.0)

    def fail() -> str:
        raise OSError("no such name")

    for _ in range(2):
        with pytest.raises(OSError, match="no such name"):
            memory.future("a", lambda future: settle(future, fail)).result(1)


def test_a_transparent_picture_may_have_a_quarter_of_the_pixels() -> None:
    import io

    from PIL import Image

    from unclip.data.links import RefusedError

    for mode, limit, refused in (("RGB", 100, False), ("RGBA", 400, False), ("RGBA", 399, True), ("LA", 399, True), ("RGB", 99, True)):
        buffer = io.BytesIO()
        Image.new(mode, (10, 10)).save(buffer, "PNG")
        if refused:
            with pytest.raises(RefusedError, match="too large"):
                refuse_picture(buffer.getvalue(), limit)
        else:
            refuse_picture(buffer.getvalue(), limit)
