"""`unclip serve`: the deployments with their schedules, on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table

from unclip.cli.app import STAGES, app, console
from unclip.cli.options import ConfigFile, Preset, Root, resolve
from unclip.files import UnclipError
from unclip.roots import local_root

if TYPE_CHECKING:
    from flows.check import Run, Status

NOT_UP = 1


@app.command(group=STAGES)
def serve(
    *, preset: Preset = "", config: ConfigFile = None, root: Root = "", port: int = 4200, deployments: Path | None = None,
    check: Annotated[bool, Parameter(negative=())] = False,
) -> None:  # fmt: skip
    """Offer the pipeline and its parts as Prefect deployments, and run what is due: every night, and when asked.

    Starts a Prefect server that this machine alone reaches, with a password (ROOT/.prefect/credential) and its history under the
    root. With PREFECT_API_URL set it serves to that server instead. Ctrl-C or SIGTERM lets what runs save its state first.

    Parameters
    ----------
    port
        Where its server listens.
    deployments
        A prefect.yaml of your own, for other hours or other parameters.
    check
        Show what is up instead: server, deployments, the next runs and the last ones. Ends with 1 where nothing is.
    """
    if check:
        _check(resolve(preset, config, root).root)
        return
    from flows.registry import own_file
    from flows.serve import serve as serve_all
    from unclip.night import check as fits
    from unclip.versions import remember

    resolved = resolve(preset, config, root, in_use=False)
    if not resolved.source.path and resolved.world is None:
        raise UnclipError("expected a source: give --preset, --config, or the --root of an earlier run; `unclip source` remembers one")
    fits(resolved)  # a config that does not fit the root is refused before it is remembered
    remember(resolved)
    serve_all(resolved, port=port, deployments=deployments or own_file(), say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def _check(root: str) -> None:
    from flows.check import status_of

    status = status_of(local_root(root))
    if status.api:
        console.print(f"server: {status.api.removesuffix('/api')}", highlight=False)
    if status.problem:
        console.print(status.problem, highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(NOT_UP)
    console.print(_deployments(status))
    if status.last:
        console.print(_last(status.last))


def _deployments(status: "Status") -> Table:
    table = Table("deployment", "waits for runs", "next run", title="Deployments", title_justify="left")
    coming = {run.deployment: run for run in status.coming}
    for name in status.deployments:
        table.add_row(escape(name), "yes" if name in status.polled else "not yet", _time(coming[name]) if name in coming else "when asked")
    return table


def _last(runs: "Sequence[Run]") -> Table:
    table = Table("deployment", "run", "state", "began", "reason", title="Last runs", title_justify="left")
    for run in runs:
        table.add_row(escape(run.deployment), escape(run.name), escape(run.state), _time(run), escape(run.reason))
    return table


def _time(run: "Run") -> str:
    return "" if run.when is None else f"{run.when.astimezone():%Y-%m-%d %H:%M %Z}"
