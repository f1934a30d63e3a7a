"""The command that looks at what a root holds, and at any other folder or picture that was made."""

from pathlib import Path

from unclip.cli.app import USE, app, console
from unclip.files import read_json


@app.command(group=USE)
def inspect(path: Path, /) -> None:
    """Show what a result folder holds (a root, a stage, the embedding store, a checkpoint), or how pictures were made.

    Parameters
    ----------
    path
        The folder, or a picture that a command of unclip made, or a folder of them.
    """
    from unclip.gallery import RECORD, read_png_text

    if path.is_file():
        console.print_json(data=read_png_text(path))
        return
    if (path / RECORD).is_file():
        console.print_json(data=read_json(path / RECORD))
        return
    from unclip.evaluation.inspect import inspect as describe

    console.print(describe(path))
