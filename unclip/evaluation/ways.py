"""The ways to make a picture of a caption: by which embedding, with what of the condition hidden, through which decoder.

They mirror the paper's ablations (figure 8 and section 5.1): from the oracle that knows the true picture's embedding down
to a decoder that is given the caption alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unclip.decoder import Decoder
from unclip.evaluation.config import RungName
from unclip.evaluation.heldout import TEXT, TRUE, Asked, Predictions
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models, decode_embeddings, text_condition, upsample_pictures
from unclip.progress import progress

REAL, SHUFFLED = "real pictures", "shuffled captions"  # the rows beside the ways: ceiling and floor of every judge
Hidden = Literal["nothing", "image", "text"]  # what of the condition the decoder does not get to see

CAPTION_ALONE, TEXT_DECODER = "caption alone", "decoder trained on text embeddings"
GROUPS: Mapping[Hidden, str] = {
    "nothing": "embedding and caption",
    "text": "embedding alone, the caption hidden",
    "image": "caption alone, the embedding hidden",
}


@dataclass(frozen=True)
class Way:
    """One way to make pictures.

    Attributes:
        name: its row in every table.
        embedding: the row of `Predictions` that the decoder is given.
        hidden: what the decoder does not get to see.
        decoder: the root's own, or the one that was trained on text embeddings.
        upsampled: whether the pictures go through the root's upsamplers, too.
    """

    name: str
    embedding: str
    hidden: Hidden = "nothing"
    decoder: Literal["own", "text"] = "own"
    upsampled: bool = False


def plan_ways(predicted: Predictions, rungs: Sequence[RungName], *, sees_text: bool, has_text_decoder: bool, upsampled_size: int) -> list[Way]:
    """The ways that are asked for, in the order of the tables.

    Always: the true embedding, the prior that pictures are made with, the baseline, and the text embedding in the place
    of the image's. Where there are upsamplers, the prior's pictures once more at their size, else `upsampled_size` is 0.
    Where the decoder sees no caption there is none to hide, nor one that could stand alone.
    """
    embeddings = [TRUE, predicted.chosen]
    if "draw" in rungs and predicted.first_draw != predicted.chosen:
        embeddings.append(predicted.first_draw)
    if "priors" in rungs:
        embeddings += [name for name in predicted.answers.values() if name not in (predicted.chosen, predicted.baseline)]
    embeddings += [predicted.baseline, TEXT]
    ways = [Way(name, name) for name in embeddings]
    if upsampled_size:
        ways.append(Way(f"{predicted.chosen}, upsampled to {upsampled_size} pixels", predicted.chosen, upsampled=True))
    if has_text_decoder:
        ways.append(Way(TEXT_DECODER, TEXT, decoder="text"))
    if "image" in rungs and sees_text:
        ways += [Way(hidden_name(name), name, hidden="text") for name in embeddings]
        if has_text_decoder:
            ways.append(Way(hidden_name(TEXT_DECODER), TEXT, hidden="text", decoder="text"))
    if "caption" in rungs and sees_text:
        ways.append(Way(CAPTION_ALONE, TEXT, hidden="image"))
    return ways


def hidden_name(name: str) -> str:
    """The row of a way whose caption is hidden."""
    return f"{name}, caption hidden"


def check_decoders(own: Decoder, text: Decoder | None) -> None:
    """Refuses decoders that were trained on the wrong embedding.

    Raises:
        UnclipError: the root's decoder was trained on text embeddings, or the one named beside it was not, or draws another size.
    """
    if own.config.embedding != "image":
        raise UnclipError(
            "the decoder that is evaluated was trained on text embeddings; choose a run of image embeddings with --decoder.run, "
            "and name this one in --evaluate.text-decoder"
        )
    if text is not None and text.config.embedding != "text":
        raise UnclipError("evaluate.text_decoder must name a run that was trained with decoder.embedding = 'text'; it was trained on image embeddings")
    if text is not None and text.config.unet.image_size != own.config.unet.image_size:
        sizes = (text.config.unet.image_size, own.config.unet.image_size)
        raise UnclipError(f"evaluate.text_decoder draws pictures of {sizes[0]} pixels, the decoder beside it of {sizes[1]}; train it at the same size")


def make_pictures(
    asked: Asked, real: np.ndarray, predicted: Predictions, ways: Sequence[Way], models: Models, text_decoder: Decoder | None,
    generate: GenerateConfig, *, batch_size: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The captions of one split as pictures (p, H, H, 3) uint8: real ones, and one for each way.

    A row is decoded from the same noise in every way, so that two ways differ by their condition alone; where they do not
    differ (the best of two draws is the first for half of the captions) the picture is made once.
    """
    captions = asked.rows.captions
    pictures = {REAL: real}
    known: dict[tuple[Any, ...], np.ndarray] = {}
    with progress(f"decode {asked.split}", len(captions) * len(ways), unit="picture") as bar:
        for way in ways:
            if way.upsampled:
                pictures[way.name] = upsample_pictures(models.upsamplers, pictures[way.embedding], generate, rows=range(len(captions)))
                bar.advance(len(captions))
                continue
            emb = predicted.rows[way.embedding]
            names = [(way.decoder, way.hidden, row, b"" if way.hidden == "image" else emb[row].tobytes()) for row in range(len(captions))]
            new = [row for row, name in enumerate(names) if name not in known]
            bar.advance(len(captions) - len(new))
            decoder = text_decoder if way.decoder == "text" and text_decoder is not None else models.decoder
            for start in range(0, len(new), batch_size):
                rows = new[start : start + batch_size]
                condition = text_condition(models.clip, [captions[row] for row in rows])
                told = condition.text_emb.new_tensor(emb[rows])
                made = decode_embeddings(decoder, told, condition, generate, rows=rows, show_image=way.hidden != "image", show_text=way.hidden != "text")
                known |= {names[row]: picture for row, picture in zip(rows, made, strict=True)}
                bar.advance(len(rows))
            pictures[way.name] = np.stack([known[name] for name in names])
    return pictures
