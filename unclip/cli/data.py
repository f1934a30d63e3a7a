"""The commands that look after the data of a root: is it what was made, and making again what is not."""

from typing import TYPE_CHECKING

from rich.table import Table

from unclip.cli.app import DATA, FAULTY, app, console
from unclip.cli.options import Root, resolve

if TYPE_CHECKING:
    from unclip.data.verify import Fault


@app.command(group=DATA)
def verify(*, root: Root) -> None:
    """Read every byte of the shards and the embedding store, and say which parts are not what they were made as.

    Ends with exit code 1 where one is at fault.
    """
    from unclip.stages import verify_data

    faults = verify_data(resolve(root=root))
    if faults:
        console.print(_fault_table(faults, "Parts at fault; `unclip repair` makes them again:"))
        raise SystemExit(FAULTY)
    console.print("All shards and parts are what they were made as.")


@app.command(group=DATA)
def repair(*, root: Root) -> None:
    """Make again the shards and parts of the embedding store that `unclip verify` finds at fault, and no others."""
    from unclip.stages import repair_data

    faults = repair_data(resolve(root=root))
    if faults:
        console.print(_fault_table(faults, "These parts were made again:"))
    else:
        console.print("All shards and parts are what they were made as; nothing was to do.")


def _fault_table(faults: "list[Fault]", title: str) -> Table:
    table = Table("stage", "part", "what was wrong", title=title, title_justify="left")
    for fault in faults:
        table.add_row(fault.stage, fault.part, fault.what)
    return table
