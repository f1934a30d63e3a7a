"""What the commands that make pictures share: their options, and how they write what was made."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from PIL import Image

from unclip.cli.app import console
from unclip.files import UnclipError, sha256_file

if TYPE_CHECKING:
    from unclip.api import Unclip
    from unclip.gallery import Gallery
    from unclip.generate import GenerateConfig

Prior = Annotated[
    Literal["first", "none", "diffusion", "autoregressive", "regression", "linear"],
    Parameter(help="Which of the trained priors: the first of prior.kinds, or one by its kind; or none: the text embedding as if it were an image embedding."),
]
Seed = Annotated[int, Parameter(help="The same seed gives the same pictures.")]
Upsample = Annotated[bool, Parameter(negative="--no-upsample", help="Enlarge the pictures with the root's upsamplers, where it has any.")]
Overwrite = Annotated[bool, Parameter(negative=(), help="Replace OUT where it holds pictures of an earlier command, and nothing else.")]
Steps = Annotated[int, Parameter(help="Steps of the inversion, and as many of the drawing: the more, the closer the picture comes back.")]
Guidance = Annotated[float, Parameter(help="Guidance when the pictures are drawn: more makes them clearer, and farther from the picture; 1 is none.")]
Caption = Annotated[
    str, Parameter(help="Words that the decoder reads beside the embedding, when it seeks the noise and when it draws. Without them it reads none.")
]

COLUMNS = 8
MAX_ON_SHEET = 256
SHEET_SIDE = 256  # pixels of a picture on a sheet, at most


def models_of(root: str, prior: Prior, *, upsample: bool) -> "Unclip":
    """The models of the root that a command names, with the settings of its command line."""
    from unclip.api import opened
    from unclip.cli.options import resolve

    return opened(resolve(root=root), prior=prior, upsample=upsample)


def place(out: Path, *, overwrite: bool) -> None:
    """Refuses a folder to write to, before anything is loaded."""
    from unclip.gallery import check_place

    check_place(out, overwrite=overwrite)


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[Any]:
    """The numbers of an option such as --pca 20,40,80.

    Raises:
        UnclipError: there is something else between the commas.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "20,40,80" if kind is int else "0.25,0.5"
        raise UnclipError(f"expected numbers with commas between them after {option}, such as {example}, got {text!r}") from None


def settings_of(config: "GenerateConfig") -> dict[str, Any]:
    """The settings that decide a picture; how many are made at once does not."""
    settings = dataclasses.asdict(config)
    for section in (settings, settings["upsampler"]):
        del section["batch_size"]
    return settings


def source_of(path: Path) -> dict[str, str]:
    """What a record says of a picture that came in: its name and its bytes' hash, not where it lies."""
    return {"name": path.name, "sha256": sha256_file(path)}


def labelled(about: Mapping[str, Any]) -> str:
    """A picture's label on the sheet: {"theta": 0.25} -> "theta 0.25"."""
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in about.items())


def sheet_of(pictures: np.ndarray, labels: Sequence[str], *, columns: int = COLUMNS) -> Any:
    """The contact sheet of pictures (n, H, W, 3) uint8, large ones made small, or of the first of them where they are very many."""
    from unclip.evaluation.pictures import contact_sheet

    shown = pictures[:MAX_ON_SHEET]
    height, width = shown.shape[1:3]
    if max(height, width) > SHEET_SIDE:
        size = (max(1, round(width * SHEET_SIDE / max(height, width))), max(1, round(height * SHEET_SIDE / max(height, width))))
        shown = np.stack([np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)) for picture in shown])
    return contact_sheet(shown, list(labels)[: len(shown)], columns=max(1, min(columns, len(shown))))


def write(out: Path, gallery: "Gallery", *, overwrite: bool) -> None:
    """Writes the folder and says where everything is."""
    from unclip.gallery import RECORD, SHEET, write_gallery

    files = write_gallery(out, gallery, overwrite=overwrite)
    first = f" ({files[0].name}{' ...' if len(files) > 1 else ''})"
    shown = f", of the first {MAX_ON_SHEET}" if len(files) > MAX_ON_SHEET else ""
    more = "".join(f"\n{name}" for name in (*gallery.frames, *gallery.tables))
    console.print(
        f"{len(files)} pictures in {out}{first}\n{SHEET}: the contact sheet{shown}\n{RECORD}: settings, and how each came about{more}",
        markup=False,
        highlight=False,
    )
