"""What came out, on a terminal: the targets, and the ladder of pictures."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from unclip.evaluation.page import MISSING, share


def targets_table(report: Mapping[str, Any]) -> Table | None:
    """Each target with what was reached; None where the data has none."""
    if not report["targets"]:
        return None
    table = _table(f"from captions, {report['chosen']}", "reached", "95 %", "aim", "pictures")
    for target in report["targets"]:
        reached = target["value"] >= target["target"]
        values = [share(target["value"]), _ends(target), share(target["target"]), str(target["number"])]
        table.add_row(Text(f"{target['split']}: {target['label']}"), *values, style="green" if reached else "red")
    return table


def ladder_table(report: Mapping[str, Any]) -> Table:
    """Every way to make a picture: the share that is right in each split, the way that a prior closes, and binding where a judge tells it."""
    ladder = report["ladder"]
    binds = ladder["rows"][0]["binding"] is not None
    title = f"{ladder['metric'].replace('_', ' ')}, by {ladder['judge']}"
    table = _table(title, *ladder["splits"], "way closed", *(["binding"] if binds else []))
    sees = None
    for row in ladder["rows"]:
        if row["sees"] != sees:
            sees = row["sees"]
            table.add_row(Text(f"the decoder sees {sees}"), style="dim italic")
        closed = row["splits"][ladder["main"]]
        values = [share(row["splits"][split]["mean"]) for split in ladder["splits"]]
        values.append(
            MISSING if closed["closed"] is None else f"{share(closed['closed'])} ({100 * closed['closed_low']:.0f} to {100 * closed['closed_high']:.0f})"
        )
        if binds:
            values.append(MISSING if row["binding"] is None else share(row["binding"]["mean"]))
        table.add_row(Text(row["name"].removesuffix(", caption hidden")), *values, style="bold" if row["name"] == report["chosen"] else "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _ends(found: Mapping[str, float]) -> str:
    return f"{100 * found['low']:.0f} to {100 * found['high']:.0f}"
