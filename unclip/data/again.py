"""Links that were given up for a reason which passes: those that a later run tries again.

Such a row gets a further place in the source table, in a new shard, and what was made stays as it is: the shard in which it
failed keeps its bytes, its record and the keys of its other rows, and a picture that comes now reaches store and index as any
new row does, while writing it into the old shard would embed that shard again for its sake. So the rows of the table are
tries, each of which ends as kept or rejected, and a link that came at its second try is one of each.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from unclip.data.contracts import SHARD, SOURCE, iter_batches_of, part_name, read_table
from unclip.data.manifest import read_manifest, read_part
from unclip.data.outcomes import TRANSIENT

NONE: frozenset[str] = frozenset()


def rows_to_try_again(table: Path, shards: Path, later_tries: int) -> frozenset[str]:
    """The ids of rows whose every try so far, at most `later_tries` of them, failed for a reason that passes.

    None while shards of the table are still to be downloaded: a run that was killed goes on first.

    Args:
        table: the source table; shards: what `download` left of it.
        later_tries: in how many later runs a row is tried again.
    """
    manifest = read_manifest(shards)
    if not later_tries or not table.exists() or manifest is None or not manifest.finished or not any(map(manifest.counts["rejected"].get, TRANSIENT)):
        return NONE
    failed: Counter[str] = Counter()
    parts: set[str] = set()
    for path in sorted(shards.glob("[0-9]*.json")):
        if not path.stem.isdigit() or (part := read_part(shards, path.stem)) is None:
            continue
        parts.add(part.name)
        if any(part.rejected.get(reason) for reason in TRANSIENT):
            statuses = read_table(shards / f"{part.name}.parquet", SHARD).select(["id", "status"])
            failed.update(statuses.filter(pc.is_in(statuses["status"], pa.array(TRANSIENT)))["id"].to_pylist())
    if not failed:
        return NONE
    looked_for = pa.array(failed)
    tries: Counter[str] = Counter()
    for batch in iter_batches_of(table, SOURCE, ["id", "url", "shard"]):
        if any(part_name(shard) not in parts for shard in pc.unique(batch["shard"]).to_pylist()):
            return NONE
        linked = pc.and_(pc.is_in(batch["id"], looked_for), pc.not_equal(batch["url"], ""))  # one that was removed has no link
        tries.update(batch["id"].filter(linked).to_pylist())
    return frozenset(name for name, times in tries.items() if times == failed[name] <= later_tries)
