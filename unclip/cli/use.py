"""The commands that look at what a root holds: neighbours of a caption or picture, and any folder."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from unclip.cli.app import USE, app, console
from unclip.cli.options import Root, resolve
from unclip.files import read_json


@app.command(group=USE)
def search(
    text: str = "", /, *, root: Root, image: Path | None = None, k: Annotated[int, Parameter(name=["-k", "--k"])] = 5, out: Path = Path("search.png")
) -> None:
    """Find the nearest pictures to a caption or to a picture.

    Parameters
    ----------
    text
        The caption to search by.
    image
        A picture to search by, instead of a caption.
    k
        How many.
    out
        The contact sheet to write.
    """
    from unclip.clip import load_clip
    from unclip.data.index import open_index
    from unclip.evaluation.pictures import contact_sheet
    from unclip.files import replacing
    from unclip.search import embed_query, pictures_of
    from unclip.search import search as find
    from unclip.stages import paths_of

    config = resolve(root=root)
    paths = paths_of(config)
    index = open_index(paths.index)
    hits = find(index, embed_query(load_clip(paths.clip), text=text, image=image), k)
    table = Table("score", "key", "split", "caption", "link")
    for hit in hits:
        table.add_row(f"{hit.score:.4f}", hit.key, hit.split, hit.caption, hit.url)
    console.print(table)
    pictures = pictures_of(paths.shards, [hit.key for hit in hits], config.decoder.network.unet.image_size)
    sheet = contact_sheet(pictures, [f"{hit.score:.3f} {hit.caption}" for hit in hits], columns=min(len(hits), 5))
    with replacing(out) as aside:
        sheet.save(aside, format="PNG")
    console.print(f"contact sheet: [bold]{out}[/]", highlight=False)


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
