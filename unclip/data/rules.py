"""What each rule of a curation took: a table of reasons with their counts, limits and a few examples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unclip.files import replacing

RULES = "rules.parquet"
NUM_EXAMPLES = 5

TABLE = pa.schema([
    pa.field("reason", pa.string(), nullable=False),  # "kept" comes first, then whatever took most
    pa.field("rows", pa.int64(), nullable=False),
    pa.field("share", pa.float64(), nullable=False),  # of all rows that came in
    pa.field("least_limit", pa.float64()),  # what the rule allows; null where it has no number
    pa.field("most_limit", pa.float64()),
    pa.field("least_value", pa.float64()),  # of what it measured on the rows that it took
    pa.field("most_value", pa.float64()),
    pa.field("examples", pa.list_(pa.string()), nullable=False),  # keys of the first rows
])  # fmt: skip


@dataclass
class Taken:
    """The rows of one reason, added up."""

    reason: str
    rows: int = 0
    limits: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def add(self, verdicts: pa.Table) -> None:
        """Takes in more rows of this reason, with the columns key, value and limit."""
        self.rows += len(verdicts)
        self.examples += verdicts["key"].slice(0, NUM_EXAMPLES - len(self.examples)).to_pylist()
        for name in ("limit", "value"):
            found = pc.min_max(verdicts[name]).as_py()
            ends = [*getattr(self, f"{name}s"), *(value for value in found.values() if value is not None)]
            setattr(self, f"{name}s", [min(ends), max(ends)] if ends else [])


def write_rules(out: Path, parts: Sequence[Path]) -> None:
    """Adds up the verdicts in some Parquet files (contracts.CURATED or SELECTED), a batch in memory at a time, into `rules.parquet`."""
    taken: dict[str, Taken] = {}
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["key", "status", "value", "limit"]):
                for reason in pc.unique(batch["status"]).to_pylist():
                    taken.setdefault(reason, Taken(reason)).add(pa.Table.from_batches([batch]).filter(pc.equal(batch["status"], reason)))
    total = sum(one.rows for one in taken.values())
    ordered = sorted(taken.values(), key=lambda one: (one.reason != "kept", -one.rows, one.reason))
    with replacing(out / RULES) as aside:
        pq.write_table(pa.Table.from_pylist([_row(one, total) for one in ordered], schema=TABLE), aside, compression="zstd")


def _row(one: Taken, total: int) -> dict[str, object]:
    least_limit, most_limit = one.limits or (None, None)
    least_value, most_value = one.values or (None, None)
    return {
        "reason": one.reason, "rows": one.rows, "share": one.rows / total, "least_limit": least_limit, "most_limit": most_limit,
        "least_value": least_value, "most_value": most_value, "examples": one.examples,
    }  # fmt: skip
