"""Fetches shard after shard in rounds: what may succeed on another try rides along with later shards, so nobody waits for it."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unclip.data.batch import Fetched
from unclip.data.outcomes import TRANSIENT, seconds_to_wait

SHARDS_AT_ONCE = 16  # new ones in a round: its start costs seconds, and a kill loses no more than these and what waits for another try
GATHER_SECONDS = 5.0  # that the first of the last tries wait for others, rather than have a round each

Row = Mapping[str, Any]
Links = Sequence[tuple[str, str]]  # of (id, url)


@dataclass(frozen=True)
class Patience:
    """How often, and how late, a link is tried again.

    Attributes:
        retries: tries after the first.
        backoff_seconds: before the first of them; doubled for each further one.
        longest_wait: the most seconds of a site's Retry-After that are waited for; a link of one that asks for more is given up.
    """

    retries: int
    backoff_seconds: float
    longest_wait: float

    def next_try(self, fetched: Fetched, tries: int, now: float) -> float:
        """The time from which a link may be tried again, infinite where it may not."""
        asked = seconds_to_wait(fetched.detail)
        if fetched.status not in TRANSIENT or tries > self.retries or asked > self.longest_wait:
            return math.inf
        return now + max(asked, self.backoff_seconds * 2.0 ** (tries - 1))


@dataclass
class Shard:
    """A shard in work: its rows, and what came of those that are settled."""

    name: str
    rows: Sequence[Row]
    fetched: dict[str, Fetched] = field(default_factory=dict)
    again: dict[str, float] = field(default_factory=dict)  # id -> when it may be tried again
    rounds: set[int] = field(default_factory=set)  # whose pictures it needs


def fetched_shards(
    shards: Iterator[tuple[str, Sequence[Row]]],
    fetch: Callable[[int, Links, Links], Mapping[str, Fetched]],
    free: Callable[[int], None],
    patience: Patience,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Shard]:
    """Yields each shard when all its rows are settled, roughly in their order.

    Args:
        shards: names and rows, read as they are needed. Rows without a link have been removed, and are not fetched.
        fetch: called with the number of the round, the links that are new and those that are tried again, which come last so
            that they have had a rest. What it returns, by id, must stay there until `free` is called with that number.
        free: called when nothing needs the pictures of a round any longer.
    """
    tries: dict[str, int] = {}
    held: dict[str, Shard] = {}
    live: set[int] = set()
    for number in itertools.count():
        new = [Shard(name, rows) for name, rows in itertools.islice(shards, SHARDS_AT_ONCE)]
        for shard in new:
            held[shard.name] = shard
            shard.again = {row["id"]: 0.0 for row in shard.rows if row["url"]}
            shard.fetched = {row["id"]: Fetched("removed", "") for row in shard.rows if not row["url"]}
        if not held:
            return
        waiting = [at for shard in held.values() for at in shard.again.values()]
        if not new and waiting:
            sleep(max(0.0, min(max(waiting), min(waiting) + GATHER_SECONDS) - clock()))
        due = {row["id"]: (row["id"], row["url"]) for shard in held.values() for row in shard.rows if shard.again.get(row["id"], math.inf) <= clock()}
        first = [link for name, link in due.items() if name not in tries]
        came = fetch(number, first, [link for name, link in due.items() if name in tries]) if due else {}
        live.add(number)
        for name in due:
            tries[name] = tries.get(name, 0) + 1
        now = clock()
        for shard in held.values():
            for name in due.keys() & shard.again.keys():
                shard.fetched[name] = came[name]
                if shard.fetched[name].tar is not None:
                    shard.rounds.add(number)
                shard.again[name] = patience.next_try(came[name], tries[name], now)
                if math.isinf(shard.again[name]):
                    del shard.again[name]
        for name in due.keys() - {name for shard in held.values() for name in shard.again}:
            del tries[name]
        for shard in [shard for shard in held.values() if not shard.again]:
            yield shard
            del held[shard.name]
        needed = {needed for shard in held.values() for needed in shard.rounds}
        for done in live - needed:
            free(done)
        live &= needed
