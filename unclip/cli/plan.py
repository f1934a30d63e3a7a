"""The command `unclip plan`: what a data set of some size would take."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from unclip.cli.app import DATA, app, console
from unclip.cli.options import ConfigFile, add_setting, resolve, take_settings
from unclip.files import UnclipError
from unclip.plan.assumed import Assumed

if TYPE_CHECKING:
    from unclip.plan.plan import Plan

UNITS = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
OF_BYTES = ("bytes on disk", "bytes of memory")
DEFAULT = Assumed()


@app.command(group=DATA)
def plan(
    *,
    rows: str,
    clip: str,
    preset: str = "karlo",
    config: ConfigFile = None,
    image_size: int = 0,
    assumed: Annotated[Assumed, Parameter(name="*")] = DEFAULT,
    markdown: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Say what so many pairs would take on disk, in memory, in hours and in money, each with its formula. Nothing is done.

    --rate.STAGE NUMBER takes the place of what was measured here: links, rows or samples a second of one device.

    Parameters
    ----------
    rows
        How many pairs are kept, such as 400e6; several with commas between them.
    clip
        A model of open_clip, such as ViT-L-14.
    preset
        Where the networks and trainings are taken from: karlo and paper have published sizes.
    image_size
        Shorter side of the stored pictures, instead of the preset's.
    markdown
        Print the table as data/README.md has it.
    """
    from unclip.plan.plan import make_plan
    from unclip.plan.published import published_clip
    from unclip.plan.rates import SECTION, read_rates

    rates = read_rates(take_settings(SECTION))
    if image_size:
        add_setting("download.image_size", image_size)
    made = make_plan([_number(text) for text in rows.split(",")], resolve(preset, config), published_clip(clip), assumed, rates)
    if markdown:
        print(as_markdown(made))
        return
    _show(made)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UnclipError(f"--rows must be numbers such as 400e6, with commas between them, got {text!r}") from None


def _show(made: "Plan") -> None:
    table = Table("", *(f"{rows:,.0f}" for rows in made.rows), "formula", title="Pairs that are kept", title_justify="left")
    for section, lines in made.sections.items():
        table.add_section()
        table.add_row(f"[bold]{section}[/]")
        for line in lines:
            table.add_row(f"  {line.what}", *(_cell(section, line.what, value) for value in line.values), line.formula)
    console.print(table)
    for note in made.notes:
        console.print(note, highlight=False, markup=False)


def as_markdown(made: "Plan") -> str:
    """The table in Markdown, without the notes."""
    head = ["pairs that are kept", *(f"{rows:,.0f}" for rows in made.rows), "formula"]
    rows = [head, ["---"] * len(head)]
    for section, lines in made.sections.items():
        rows.append([f"**{section}**", *[""] * (len(head) - 1)])
        rows += [[line.what, *(_cell(section, line.what, value) for value in line.values), line.formula] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(section: str, what: str, value: float) -> str:
    if section in OF_BYTES or what in OF_BYTES:
        unit, size = next(((unit, size) for unit, size in UNITS if value >= size), ("bytes", 1.0))
        return f"{_digits(value / size)} {unit}"
    return _digits(value)


def _digits(value: float) -> str:
    """Three digits that say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
