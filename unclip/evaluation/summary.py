"""What came out, on a terminal: the targets, and the ladder of pictures."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from unclip.evaluation.page import MISSING
from unclip.evaluation.picture_ladder_plot import SEES, SHORT
from unclip.printable import printable, printable_lines


def targets_table(report: Mapping[str, Any]) -> Table | None:
    """Each target with what was reached; None where the data has none."""
    if not report["targets"]:
        return None
    table = _table(f"from captions, {report['chosen']}", "reached", "95 %", "aim", "pictures")
    for target in report["targets"]:
        ends = f"{100 * target['low']:.0f} to {100 * target['high']:.0f}" if target["number"] else MISSING
        values = [_percent(target["value"]), ends, _percent(target["target"]), str(target["number"])]
        table.add_row(Text(printable(f"{target['split']}: {target['label']}")), *values, style="green" if target["reached"] else "red")
    return table


def ladder_table(report: Mapping[str, Any]) -> Table:
    """Every way to make a picture: the share that is right in each split, the way that a prior closes, and binding where a judge tells it."""
    ladder = report["ladder"]
    binds = ladder["rows"][0]["binding"] is not None
    title = f"{ladder['metric'].replace('_', ' ')}, by {ladder['judge']}"
    table = _table(title, *map(_heading, ladder["splits"]), "way\nclosed", *(["binding"] if binds else []))
    sees = None
    for row in ladder["rows"]:
        if row["sees"] != sees:
            sees = row["sees"]
            table.add_row(Text(f"{SEES[sees]}:"), style="dim italic")
        closed = row["splits"][ladder["main"]]
        values = [_percent(row["splits"][split]["mean"]) for split in ladder["splits"]] + [_percent(closed["closed"])]
        if binds:
            values.append(_percent(row["binding"] and row["binding"]["mean"]))
        table.add_row(Text(_short(row["name"])), *values, style="bold" if row["name"] == report["chosen"] else "")
    return table


def _heading(split: str) -> str:
    """A split as the head of a narrow column: a held-out one by what is held out, all of them in two lines."""
    return split.removeprefix("heldout-").replace("all held out", "all\nheld out")


def _short(name: str) -> str:
    """The name of a way, less what the heading above it says; what is upsampled are the pictures of the row in bold."""
    name = name.removesuffix(", caption hidden")
    _, _, upsampled = name.partition(", upsampled to ")
    return f"upsampled to {upsampled}" if upsampled else SHORT.get(name, name)


def _table(title: str, *columns: str) -> Table:
    """Numbers keep their line; where a terminal is narrow the names before them wrap."""
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in columns:
        table.add_column(Text(printable_lines(name)), justify="right", no_wrap=True)
    return table


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.0f}%"  # without a space, where a narrow terminal would break it
