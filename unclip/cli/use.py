"""The command that looks at what a root holds, and at any other folder or picture that was made."""

from pathlib import Path

from unclip.cli.app import USE, app, console
from unclip.files import read_json
from unclip.roots import bring_down, find_root, local_root
from unclip.storage import is_url


@app.command(group=USE)
def inspect(place: str, /) -> None:
    """Show what a result folder holds (a root, a stage, the embedding store, a checkpoint), or how pictures were made.

    Parameters
    ----------
    place
        The folder, or a picture that a command of unclip made, or a folder of them. Of a root behind a URL (s3://bucket/folder), or a
        folder in one, what is shown is brought down first.
    """
    from unclip.gallery import RECORD, read_png_text

    path = _brought(place)
    if path.is_file():
        console.print_json(data=read_png_text(path))
        return
    if (path / RECORD).is_file():
        console.print_json(data=read_json(path / RECORD))
        return
    from unclip.evaluation.inspect import inspect as describe

    console.print(describe(path))


def _brought(place: str) -> Path:
    if not is_url(place):
        return Path(place)
    root, name = find_root(place)
    bring_down(root, (name,))
    return local_root(root) / name
