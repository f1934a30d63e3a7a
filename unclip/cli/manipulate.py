"""The commands that begin with a picture: variations, interpolate, edit, inpaint, reconstruct."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from rich.table import Table

from unclip.cli.app import USE, app, console
from unclip.cli.made import (
    Caption,
    Guidance,
    Overwrite,
    Prior,
    Seed,
    Steps,
    Upsample,
    labelled,
    models_of,
    numbers,
    place,
    settings_of,
    sheet_of,
    source_of,
    write,
)
from unclip.cli.options import Root

if TYPE_CHECKING:
    from unclip.api import Unclip
    from unclip.manipulate.latent import Drawn
    from unclip.manipulate.roundtrip import RoundTrip

ANIMATION = "animation"


@app.command(group=USE)
def variations(
    picture: Path, /, *, root: Root, num: int = 4, eta: float = 0.5, caption: Caption = "", steps: Steps = 100, guidance: Guidance = 1.0, seed: Seed = 0,
    measure: bool = True, upsample: Upsample = True, out: Path = Path("variations"), overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Make pictures like one picture.

    The picture becomes its CLIP embedding and the noise that the decoder would draw it from (DDIM inversion); drawn with
    new noise on the way, what the embedding holds stays and the rest changes. Pictures are cut to their middle square and
    scaled to the decoder's size.

    Parameters
    ----------
    picture
        The picture to start from.
    num
        How many variations.
    eta
        How much changes: 0 gives the picture back (with --num 1), 1 keeps only what its embedding says.
    measure
        Also say how well the picture comes back with eta 0, for a quarter, half and all of the steps.
    out
        The folder to write.
    """
    place(out, overwrite=overwrite)
    models, source = _begin(root, picture, upsample=upsample)
    made = models.variations(source, num=num, eta=eta, caption=caption, steps=steps, guidance=guidance, seed=seed)
    settings: dict[str, Any] = {"eta": eta, "caption": caption, "steps": steps, "guidance": guidance, "seed": seed}
    if measure:
        found = models.round_trip([source], num_steps=sorted({max(1, steps // 4), max(1, steps // 2), steps}), caption=caption, guidance=guidance)
        settings["round_trip"] = [{"steps": one.num_steps, "psnr": round(one.psnr, 2), "max_error": round(one.max_error, 4)} for one in found]
        console.print(_psnr_table(found))
    _write(out, "variations", models, made, ["original"], settings | {"picture": source_of(picture)}, picture.stem, overwrite=overwrite)


@app.command(group=USE)
def interpolate(
    first: Path, second: Path, /, *, root: Root, num: int = 9, noise: Literal["slerp", "fixed"] = "slerp", caption: Caption = "", steps: Steps = 100,
    guidance: Guidance = 1.0, seed: Seed = 0, animation: Literal["gif", "png", "webp"] = "gif", upsample: Upsample = True,
    out: Path = Path("interpolation"), overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Make the pictures between two pictures, and an animation of them.

    Parameters
    ----------
    first
        The picture to start from.
    second
        The picture to end with.
    num
        How many pictures, both ends among them.
    noise
        The noise between: "slerp" goes from that of the one to that of the other, so that the ends are the two pictures;
        "fixed" draws all from one noise of the seed, so that the embeddings alone change.
    animation
        The kind of animation that is written beside the pictures; png (APNG) and webp lose nothing.
    out
        The folder to write.
    """
    place(out, overwrite=overwrite)
    models, start = _begin(root, first, upsample=upsample)
    made = models.interpolate(start, second, num=num, noise=noise, caption=caption, steps=steps, guidance=guidance, seed=seed)
    settings = {"noise": noise, "caption": caption, "steps": steps, "guidance": guidance, "seed": seed, "first": source_of(first), "second": source_of(second)}
    frames = {f"{ANIMATION}.{animation}": made.pictures}
    _write(out, "interpolate", models, made, ["first", "second"], settings, f"{first.stem} {second.stem}", frames=frames, overwrite=overwrite)


@app.command(group=USE)
def edit(
    picture: Path, /, *, root: Root, before: Annotated[str, Parameter(name="--from")], after: Annotated[str, Parameter(name="--to")],
    theta: str = "0.25,0.3125,0.375,0.4375,0.5", steps: Steps = 100, guidance: Guidance = 1.0, upsample: Upsample = True, out: Path = Path("edited"),
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Change a picture by words: from what it shows to what it shall show.

    The picture's embedding is turned towards the difference of the two captions' embeddings, and drawn from the picture's
    own noise. The decoder itself reads neither caption.

    Parameters
    ----------
    picture
        The picture to change.
    before
        What it shows.
    after
        What it shall show.
    theta
        How far to turn, from 0 to 1: a picture for each of these numbers.
    out
        The folder to write.
    """
    place(out, overwrite=overwrite)
    models, source = _begin(root, picture, upsample=upsample)
    made = models.edit(source, before, after, thetas=numbers(theta, "--theta", float), steps=steps, guidance=guidance)
    settings = {"from": before, "to": after, "steps": steps, "guidance": guidance, "picture": source_of(picture)}
    _write(out, "edit", models, made, ["original"], settings, after, overwrite=overwrite)


@app.command(group=USE)
def inpaint(
    picture: Path, caption: str, /, *, mask: Path, root: Root, num: int = 4, prior: Prior = "first", steps: int = 100, eta: float = 1.0, resamples: int = 1,
    seed: Seed = 0, upsample: Upsample = True, out: Path = Path("inpainted"), overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Draw a part of a picture anew, from a caption; every other pixel stays exactly as it was.

    The pictures that are written are as large as the one that came in. What lies outside of its middle square can't be
    drawn. What is drawn has the decoder's resolution, and is scaled to the picture.

    Parameters
    ----------
    picture
        The picture to change.
    caption
        What the whole picture shall show.
    mask
        A picture of the same size: white is drawn anew, black stays.
    num
        How many pictures.
    steps
        Steps of the decoder.
    eta
        Noise that the sampler adds, from 0 to 1.
    resamples
        How often each step is taken (RePaint); more let old and new agree better, and take as many times as long.
    out
        The folder to write.
    """
    place(out, overwrite=overwrite)
    from unclip.data.picture import open_mask, open_picture

    original, painted = open_picture(picture), open_mask(mask)
    models = models_of(root, prior, upsample=upsample)
    made = models.inpaint(original, painted, caption, num=num, steps=steps, eta=eta, resamples=resamples, seed=seed)

    from unclip.gallery import CANDIDATES, Gallery, candidates_table

    similarities = made.similarities.numpy()
    about = [{"caption": caption, "number": number, "similarities": [round(float(value), 6) for value in row]} for number, row in enumerate(similarities)]
    holed = np.where(made.hole[..., None], np.uint8(127), made.original)
    shown = np.concatenate([made.original[None], holed[None], made.pictures])
    sampling = settings_of(models.config) | {"sampler": "ddim", "eta": eta, "decoder_steps": steps, "seed": seed}
    asked = {"resamples": resamples, "picture": source_of(picture), "mask": source_of(mask)}
    gallery = Gallery(
        pictures=made.pictures,
        names=[caption] * len(made.pictures),
        about=about,
        settings={"command": "inpaint", "models": models.origins, "generate": sampling, **asked},
        sheet=sheet_of(shown, ["original", "what is drawn anew", *[caption] * len(made.pictures)]),
        tables={CANDIDATES: candidates_table([caption] * len(made.pictures), made.candidates.numpy(), similarities)},
        more={"original.png": made.original},
    )
    write(out, gallery, overwrite=overwrite)


@app.command(group=USE)
def reconstruct(
    picture: Path, /, *, root: Root, pca: str, caption: Caption = "", steps: Steps = 100, guidance: Guidance = 1.0, seed: Seed = 0, upsample: Upsample = True,
    out: Path = Path("reconstructed"), overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Draw a picture from the first principal components of its embedding, to see what each of them carries.

    The components are those of the store's training pictures. All pictures are drawn from the same noise of the seed.

    Parameters
    ----------
    picture
        The picture to take the embedding of.
    pca
        Numbers of components, such as 20,40,80: a picture for each. None may be larger than the embedding is wide.
    out
        The folder to write.
    """
    place(out, overwrite=overwrite)
    models, source = _begin(root, picture, upsample=upsample)
    made = models.reconstruct(source, numbers(pca, "--pca", int), caption=caption, steps=steps, guidance=guidance, seed=seed)
    settings = {"caption": caption, "steps": steps, "guidance": guidance, "seed": seed, "picture": source_of(picture)}
    _write(out, "reconstruct", models, made, ["original"], settings, picture.stem, overwrite=overwrite)


def _begin(root: str, picture: Path, *, upsample: bool) -> "tuple[Unclip, Any]":
    """The models, and the first picture: a file that can't be used is refused before they are loaded."""
    from unclip.data.picture import open_picture

    source = open_picture(picture)
    return models_of(root, "none", upsample=upsample), source


def _psnr_table(found: "Sequence[RoundTrip]") -> Table:
    table = Table("steps", "PSNR", "largest error", title="The picture inverted and drawn again with eta 0:", title_justify="left")
    for one in found:
        table.add_row(str(one.num_steps), f"{one.psnr:.1f} dB", f"{one.max_error:.1%}")
    return table


def _write(
    out: Path, command: str, models: "Unclip", made: "Drawn", originals: Sequence[str], settings: Mapping[str, Any], name: str, *, overwrite: bool,
    frames: Mapping[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    from unclip.gallery import Gallery

    gallery = Gallery(
        pictures=made.pictures,
        names=[f"{name} {labelled(one)}" for one in made.about],
        about=made.about,
        settings={"command": command, "models": models.origins, **settings},
        sheet=sheet_of(np.concatenate([made.originals, made.pictures]), [*originals, *map(labelled, made.about)]),
        frames=frames or {},
        more={f"{label}.png": original for label, original in zip(originals, made.originals, strict=True)},
    )
    write(out, gallery, overwrite=overwrite)
