"""The commands that look after the data of a root: is it what was made, and making again what is not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from unclip.cli.app import DATA, FAULTY, app, console
from unclip.cli.options import Root, resolve
from unclip.files import UnclipError

if TYPE_CHECKING:
    from unclip.data.verify import Fault


@app.command(group=DATA)
def verify(*, root: Root) -> None:
    """Read every byte of the shards and the embedding store, and say which parts are not what they were made as.

    Ends with exit code 1 where one is at fault.
    """
    from unclip.operations import verify_data

    faults = verify_data(resolve(root=root))
    if faults:
        console.print(_fault_table(faults, "Parts at fault; `unclip repair` makes them again:"))
        raise SystemExit(FAULTY)
    console.print("All shards and parts are what they were made as.")


@app.command(group=DATA)
def repair(*, root: Root) -> None:
    """Make again the shards and parts of the embedding store that `unclip verify` finds at fault, and no others."""
    from unclip.operations import repair_data

    faults = repair_data(resolve(root=root))
    if faults:
        console.print(_fault_table(faults, "These parts were made again:"))
    else:
        console.print("All shards and parts are what they were made as; nothing was to do.")


@app.command(group=DATA)
def remove(
    *,
    root: Root,
    keys: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    urls: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
) -> None:
    """Take links down: pictures, captions, vectors and index entries go, and the links are never fetched again.

    All rows of a link go with it. What is asked for by the key of a row is its link.

    Parameters
    ----------
    keys
        Keys of rows, or files with one a line.
    urls
        Links, or files with one a line.
    """
    from unclip.data.takedown import splits_of
    from unclip.operations import remove_data

    asked_keys, asked_urls = _values(keys or []), _values(urls or [])
    if not asked_keys and not asked_urls:
        raise UnclipError("expected what to remove: give --keys or --urls")
    done, trained = remove_data(resolve(root=root), keys=asked_keys, urls=asked_urls)
    splits = ", ".join(f"{count} {split}" for split, count in splits_of(done.rows).items())
    console.print(
        f"{len(done.rows)} rows{f' ({splits})' if splits else ''} were removed, with {done.pictures} pictures and {done.vectors} vectors; "
        "their links are marked and never fetched again.",
        highlight=False,
    )
    if done.twins:
        console.print(f"{len(done.twins)} rows with other links hold pictures of the same bytes, and stay: {', '.join(done.twins[:10])}", highlight=False)
    if trained:
        console.print(
            "These models were trained while the rows were there, and stay as they are:\n"
            + "\n".join(f"  {folder}" for folder in trained)
            + "\nThe next `unclip run` goes on from their weights without the rows. For models that never saw them remove these folders "
            "and versions.json: it then trains from the start. A CLIP that was trained here stays until its folder is removed.",
            highlight=False,
        )


def _values(given: list[str]) -> list[str]:
    """What was given, and for a file its lines."""
    values: list[str] = []
    for value in given:
        lines = Path(value).read_text().splitlines() if "://" not in value and Path(value).is_file() else [value]
        values += [line.strip() for line in lines if line.strip()]
    return values


def _fault_table(faults: "list[Fault]", title: str) -> Table:
    table = Table("stage", "part", "what was wrong", title=title, title_justify="left")
    for fault in faults:
        table.add_row(fault.stage, fault.part, fault.what)
    return table
