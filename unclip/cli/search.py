"""The command `unclip search`: neighbours of captions, pictures, keys and vectors, as a table, a file or a contact sheet."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from unclip.cli.app import USE, app, console
from unclip.cli.options import Root, resolve
from unclip.files import UnclipError
from unclip.printable import printable
from unclip.roots import bring_down

if TYPE_CHECKING:
    import pyarrow as pa

    from unclip.config import RunConfig
    from unclip.search import Batch

SHOWN = 50  # rows of the table on the terminal
ON_SHEET = 20  # queries on a contact sheet


@app.command(group=USE)
def search(
    text: str = "", /, *, root: Root, image: Path | None = None, key: str = "", file: Path | None = None, column: Literal["caption", "key"] = "caption",
    where: Annotated[tuple[str, ...], Parameter(negative=())] = (), k: Annotated[int, Parameter(name=["-k", "--k"])] = 5, out: Path = Path("search.png"),
) -> None:  # fmt: skip
    """Find the nearest pictures to a caption, a picture, a row of the store, or to each query of a file.

    Parameters
    ----------
    text
        The caption to search by.
    image
        A picture to search by.
    key
        The key of a row of the store to search by.
    file
        Many queries: captions (.txt, one a line), a table (.parquet, .csv, .tsv, .jsonl) of captions or keys, or vectors (.npy).
    column
        What the table of --file is read for.
    where
        A condition that what is found must fulfil, such as split=train, width>=256 or caption~red; give it several times for several.
    k
        How many.
    out
        What to write: a contact sheet (.png), or a table of all hits: .parquet as they are, .csv for a spreadsheet, with an apostrophe
        before captions that it would compute.
    """
    from unclip.data.index import open_index
    from unclip.models import paths_of
    from unclip.search import hit_table
    from unclip.search import search as find

    if out.suffix not in (".png", ".parquet", ".csv"):
        raise UnclipError(f"--out must end in .png, .parquet or .csv, got {out.name}")
    config = resolve(root=root)
    bring_down(config.root, ("index", "clip", "embeddings", "shards"))
    index = open_index(paths_of(config).index)
    batch = _queries(config, text, image, key, file, column)
    hits = find(index, batch.queries, k, where=where)
    found = hit_table(batch.names, hits)
    console.print(_shown(found, several=len(batch.names) > 1))
    _write(out, found, config)
    console.print(f"written: [bold]{escape(str(out))}[/]", highlight=False)


def _queries(config: "RunConfig", text: str, image: Path | None, key: str, file: Path | None, column: str) -> "Batch":
    from unclip.clip import load_clip
    from unclip.models import paths_of
    from unclip.search import Batch, embed_captions, embed_picture, read_batch, stored_embeddings

    if sum([bool(text), image is not None, bool(key), file is not None]) != 1:
        raise UnclipError("search takes a caption, --image PICTURE, --key KEY or --file FILE, one of the four")
    paths = paths_of(config)
    if key:
        return Batch([key], stored_embeddings(paths.embeddings, [key]))
    clip = load_clip(paths.clip)
    if file is not None:
        return read_batch(file, clip, paths.embeddings, column=column)
    if image is not None:
        return Batch([image.name], embed_picture(clip, image))
    return Batch([text], embed_captions(clip, [text]))


def _shown(found: "pa.Table", *, several: bool) -> Table:
    columns = ["query", "score", "key", "split", "caption", "url"][0 if several else 1 :]
    table = Table(*columns, title=f"The first {SHOWN} of {len(found)} hits:" if len(found) > SHOWN else None, title_justify="left")
    for row in found.slice(0, SHOWN).to_pylist():
        table.add_row(*(Text(f"{row[name]:.4f}" if name == "score" else printable(row[name])) for name in columns))
    return table


def _write(out: Path, found: "pa.Table", config: "RunConfig") -> None:
    import pyarrow.csv
    import pyarrow.parquet

    from unclip.evaluation.pictures import contact_sheet, save_png
    from unclip.files import replacing
    from unclip.models import paths_of
    from unclip.search import as_cells, pictures_of

    if out.suffix == ".png":
        names = list(dict.fromkeys(found["query"].to_pylist()))[:ON_SHEET]
        rows = [row for row in found.to_pylist() if row["query"] in names]
        if not rows:
            raise UnclipError("no row fulfils the conditions, so there is no picture to write; see --where")
        pictures = pictures_of(paths_of(config).shards, [row["key"] for row in rows], config.decoder.network.unet.image_size)
        columns = min(max(row["rank"] for row in rows), 8)
        save_png(out, contact_sheet(pictures, [f"{row['score']:.3f} {row['caption']}" for row in rows], columns=columns))
        return
    with replacing(out) as aside:
        if out.suffix == ".parquet":
            pyarrow.parquet.write_table(found, aside, compression="zstd")
        else:
            pyarrow.csv.write_csv(as_cells(found), aside)
