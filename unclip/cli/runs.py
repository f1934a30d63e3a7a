"""The commands that look at the versions of a root's models, and choose among them by hand."""

from datetime import UTC, datetime

from cyclopts import Group
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from unclip.cli.app import app, console
from unclip.cli.options import Root
from unclip.roots import bring_config, local_root

VERSIONS = Group("Versions of the models", sort_key=4)
COLUMNS = {"pictures": "pictures", "binding": "binding", "prior_recall_at_10": "recall@10"}
SHOWN = 5  # of the latest versions, what decided
STYLES = {"used": "", "refused": "dim", "open": "yellow", "abandoned": "dim"}


@app.command(group=VERSIONS)
def runs(*, root: Root) -> None:
    """Show the versions of the models: what each went on from, its numbers, whether it is in use, and why."""
    from unclip.versions import read_ledger

    bring_config(root)
    ledger = read_ledger(local_root(root))
    if not ledger.versions:
        console.print(f"{root} has no version yet; `unclip run` makes the first", highlight=False)
        return
    table = Table(title=Text(f"models of {root}; times are UTC"), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("version", "from", "state", "began", "rows", *COLUMNS.values()):
        table.add_column(name, no_wrap=True, justify="left" if name in ("version", "from", "state", "began") else "right")
    for version in ledger.versions:
        current = ledger.current is not None and version.name == ledger.current.name
        state = "in use" if current else "was in use" if version.state == "used" else version.state
        began = datetime.fromtimestamp(version.began, UTC).strftime("%m-%d %H:%M")
        numbers = ["" if (value := version.numbers.get(name)) is None else f"{100 * value:.1f}%" for name in COLUMNS]
        row = [version.name, version.parent, "removed" if version.removed else state, began, f"{version.rows:,}", *numbers]
        table.add_row(*map(Text, row), style="bold" if current else STYLES[version.state])
    console.print(table)
    for version in ledger.versions[-SHOWN:]:
        console.print(Text(f"{version.name}: {version.why or 'in work'}"), soft_wrap=True)


@app.command(group=VERSIONS)
def promote(name: str, /, *, root: Root) -> None:
    """Put a version of the models to use that is not, whatever was said of it; commands use it from then on.

    Parameters
    ----------
    name
        As `unclip runs` shows it.
    """
    from unclip.versions import put_to_use

    before = put_to_use(root, name)
    console.print(f"{name} is in use{f', in the place of {before}' if before else ''}", highlight=False)


@app.command(group=VERSIONS)
def rollback(*, root: Root) -> None:
    """Go back to the models that were in use before those of today."""
    from unclip.versions import roll_back

    left, used = roll_back(root)
    console.print(f"{used} is in use again, in the place of {left}; `unclip promote {left}` would bring that back", highlight=False)
