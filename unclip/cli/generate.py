"""`unclip generate`: pictures of captions."""

from pathlib import Path
from typing import Any, Literal

from unclip.cli.app import USE, app
from unclip.cli.made import COLUMNS, Overwrite, Prior, Seed, Upsample, models_of, place, settings_of, sheet_of, write
from unclip.cli.options import Root
from unclip.files import UnclipError


@app.command(group=USE)
def generate(
    *caption: str, root: Root, captions: Path | None = None, caption_column: str = "caption", num: int = 4, seed: Seed = 0, prior: Prior = "first",
    candidates: int | None = None, guidance: float | None = None, text_guidance: float | None = None, steps: int | None = None,
    sampler: Literal["ddim", "ddpm", "dpm++"] | None = None, eta: float | None = None, upsample: Upsample = True, out: Path = Path("generated"),
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Make pictures of captions.

    Writes the folder OUT, whole or not at all: every picture as a PNG that holds its settings, sheet.png, record.json, and
    candidates.parquet with every embedding that the prior drew and its similarity to the caption.

    A picture depends on its caption, the seed and its number among the pictures of that caption, not on what else is
    asked for: more pictures or captions leave those that were there as they are. Pictures of two captions with the same
    number begin with the same noise, so that they can be compared.

    Parameters
    ----------
    caption
        What the pictures shall show; any number of captions.
    captions
        A file with more captions: one a line, or a table (.parquet, .csv, .tsv, .jsonl) with a column of them.
    caption_column
        The column's name in the table.
    num
        How many pictures of each caption.
    candidates
        Embeddings that the prior draws for a picture; the one most similar to the caption is used. Without it,
        generate.num_candidates of the root's config, and likewise below.
    guidance
        How far the decoder is guided; 1 is none (generate.guidance_scale).
    text_guidance
        Guidance by the caption's own words, where it shall differ from that by the embedding.
    steps
        Steps of the decoder (generate.decoder_steps).
    sampler
        Of the decoder (generate.sampler).
    eta
        Noise that the ddim sampler adds, from 0 to 1 (generate.eta).
    out
        The folder to write.
    """
    place(out, overwrite=overwrite)
    asked = _captions(caption, captions, caption_column)
    if num < 1:
        raise UnclipError(f"--num must be at least 1, got {num}")
    models = models_of(root, prior, upsample=upsample)
    named: dict[str, Any] = {"num_candidates": candidates, "decoder_steps": steps, "sampler": sampler, "eta": eta, "guidance_scale": guidance}
    if text_guidance is not None:
        named["guidance_scale"] = (models.config.guidance_scales[0] if guidance is None else guidance, text_guidance)
    models = models.with_settings(**{name: value for name, value in named.items() if value is not None})
    made = models.generate(asked, num=num, seed=seed)

    from unclip.gallery import CANDIDATES, Gallery, candidates_table
    from unclip.generate import numbers_of

    similarities = made.similarities.numpy()
    about = [
        {"caption": one, "number": number, "similarities": [round(float(value), 6) for value in values], "chosen": int(values.argmax())}
        for one, number, values in zip(made.captions, numbers_of(made.captions), similarities, strict=True)
    ]
    labels = [f"{one} ({values.max():.3f})" for one, values in zip(made.captions, similarities, strict=True)]
    gallery = Gallery(
        pictures=made.pictures,
        names=made.captions,
        about=about,
        settings={"command": "generate", "models": models.origins, "generate": settings_of(models.config) | {"seed": seed}},
        sheet=sheet_of(made.pictures, labels, columns=num if num <= COLUMNS and len(asked) > 1 else COLUMNS),
        tables={CANDIDATES: candidates_table(made.captions, made.candidates.numpy(), similarities)},
    )
    write(out, gallery, overwrite=overwrite)


def _captions(given: tuple[str, ...], file: Path | None, column: str) -> list[str]:
    from unclip.data.captions import check_captions, read_captions

    asked = check_captions(given) if given else []
    if file is not None:
        asked += read_captions(file, column=column)
    if not asked:
        raise UnclipError('expected a caption, such as unclip generate "a large red star", or --captions FILE')
    return asked
