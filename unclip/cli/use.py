"""The commands that use what a root holds: pictures of captions, and a look at any folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unclip.cli.app import USE, app, console
from unclip.cli.options import Root, resolve
from unclip.files import UnclipError

if TYPE_CHECKING:
    from unclip.prior.condition import PriorKind


@app.command(group=USE)
def generate(
    caption: str, /, *, root: Root, num: int = 4, seed: int = 0, out: Path = Path("generated.png"),
    prior: Literal["first", "none", "diffusion", "autoregressive", "regression", "linear"] = "first",
) -> None:  # fmt: skip
    """Make pictures of a caption.

    Writes a contact sheet to OUT, and beside it the settings with the similarity of every candidate (OUT with .json) and
    the candidates themselves (OUT with .parquet).

    Parameters
    ----------
    caption
        What the pictures shall show.
    num
        How many pictures.
    seed
        The same seed gives the same pictures.
    out
        The contact sheet to write.
    prior
        Which of the trained priors: the first of prior.kinds, or one by its kind; or none: the text embedding as if it
        were an image embedding, for comparison.
    """
    import dataclasses

    from unclip import generate as generation
    from unclip.evaluation.pictures import contact_sheet
    from unclip.evaluation.records import write_generation
    from unclip.stages import load_models

    if num < 1:
        raise UnclipError(f"--num must be at least 1, got {num}")
    config = resolve(root=root)
    sampling = dataclasses.replace(config.generate, seed=seed)
    kind: PriorKind | None = config.prior.kinds[0] if prior == "first" else None if prior == "none" else prior
    made = generation.generate(load_models(config, kind), [caption] * num, sampling)
    labels = [f"similarity {values.max():.3f}" for values in made.similarities]
    write_generation(out, contact_sheet(made.pictures, labels, columns=min(num, 8)), made, sampling, kind)
    console.print(f"{num} pictures: [bold]{out}[/]\nsettings and candidates: {out.with_suffix('.json')}, {out.with_suffix('.parquet')}", highlight=False)


@app.command(group=USE)
def inspect(path: Path, /) -> None:
    """Show what a result folder holds: a root, a stage, the embedding store, a checkpoint.

    Parameters
    ----------
    path
        The folder.
    """
    from unclip.evaluation.inspect import inspect as describe

    console.print(describe(path))
