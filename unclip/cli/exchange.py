"""The commands that exchange models with other software."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.markup import escape

from unclip.cli.app import USE, app, console
from unclip.cli.options import ConfigFile, Preset, Root, resolve
from unclip.roots import bring_down, holding


@app.command(group=USE)
def export(
    out: Path, /, *, root: Root = "", format: Literal["diffusers"] = "diffusers",
    model: Literal["all", "prior", "decoder", "upsampler"] = "all",
) -> None:  # fmt: skip
    """Write the trained models as component folders that diffusers loads, and a page that says how to use them.

    Parameters
    ----------
    out
        The folder to make.
    format
        Whose layout.
    model
        One of them, or all that have been trained.
    """
    from unclip.exchange.exported import MODEL_NAMES, PAGE, export_models
    from unclip.models import MODEL_FOLDERS, paths_of

    config = resolve(root=root)
    bring_down(config.root, MODEL_FOLDERS)
    exported = export_models(paths_of(config), out, MODEL_NAMES if model == "all" else (model,))
    for name, reason in exported.left_out.items():
        console.print(f"left out: {name} ({reason})", highlight=False, markup=False)
    console.print(f"written: {', '.join(exported.components)}\nhow to use them: [bold]{escape(str(out / PAGE))}[/]", highlight=False)


@app.command(name="import", group=USE)
def import_(
    folder: Path, /, *, format: Literal["diffusers", "karlo"], root: Root = "", preset: Preset = "", config: ConfigFile = None,
    run: Annotated[str, Parameter(help="The name of the runs that the models become; the root uses them from then on.")] = "imported",
) -> None:  # fmt: skip
    """Take models that were trained elsewhere into a root, whose CLIP must be the one that they belong to.

    Parameters
    ----------
    folder
        Component folders of diffusers, or the files of Karlo's checkpoints.
    format
        Whose layout it is. Karlo's has the sizes of the root's config: give --preset karlo.
    """
    from unclip.exchange.imported import import_models
    from unclip.models import paths_of
    from unclip.versions import adopt, remember

    imported = import_models(resolve(preset, config, root), paths_of, folder, format, run)
    with holding(imported.config.root, ()):  # which puts it up, where the root is behind a URL
        if not adopt(imported.config, run):
            remember(imported.config)
    for name in imported.left_out:
        console.print(f"left out: {name} (an upsampler of unclip is one network for all steps)", highlight=False)
    runs = "\n  ".join(str(run) for run in imported.runs)
    console.print(f"imported:\n  {runs}\n{imported.config.root} uses them from now on", highlight=False, markup=False)
