"""Ways to make a picture: which there are, that they differ by their condition alone, and that none is made twice."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch

from tests.evaluation.conftest import UNET, Root
from unclip.decoder import Decoder, DecoderConfig
from unclip.evaluation import ways
from unclip.evaluation.heldout import NEAREST, TEXT, TRUE, Asked, Predictions, Rows
from unclip.evaluation.ways import CAPTION_ALONE, REAL, TEXT_DECODER, check_decoders, hidden_name, make_pictures, plan_ways
from unclip.files import UnclipError
from unclip.generate import GenerateConfig
from unclip.nn.unet import UNetConfig

BEST, DRAW, AUTO = "diffusion best of 2", "diffusion x1", "autoregressive best of 2"


def predictions(num: int = 3) -> Predictions:
    rng = np.random.default_rng(0)
    rows = {name: rng.standard_normal((num, 16)).astype(np.float32) for name in (TRUE, DRAW, BEST, "autoregressive x1", AUTO, "linear", TEXT, NEAREST)}
    rows[BEST][0] = rows[DRAW][0]
    return Predictions(rows, {}, BEST, "linear")


def test_the_ways_are_those_asked_for_in_the_order_of_the_tables() -> None:
    assert [way.name for way in plan_ways(predictions(), (), sees_text=True, has_text_decoder=False, upsampled_size=0)] == [TRUE, BEST, "linear", TEXT]
    every = [way.name for way in plan_ways(predictions(), ("draw", "priors", "image", "caption"), sees_text=True, has_text_decoder=True, upsampled_size=0)]
    embeddings = [TRUE, BEST, DRAW, AUTO, "linear", TEXT]
    assert every == [*embeddings, TEXT_DECODER, *map(hidden_name, [*embeddings, TEXT_DECODER]), CAPTION_ALONE]
    larger = plan_ways(predictions(), (), sees_text=True, has_text_decoder=False, upsampled_size=64)
    assert [(way.name, way.upsampled) for way in larger][-1] == (f"{BEST}, upsampled to 64 pixels", True)
    blind = [way.name for way in plan_ways(predictions(), ("image", "caption"), sees_text=False, has_text_decoder=False, upsampled_size=0)]
    assert blind == [TRUE, BEST, "linear", TEXT]
    assert predictions().answers == {"diffusion": BEST, "autoregressive": AUTO, "linear": "linear"}


def decoder_of(embedding: Literal["image", "text"], unet: UNetConfig = UNET) -> Decoder:
    torch.manual_seed(7)
    decoder = Decoder(DecoderConfig(unet=unet, context_width=16, embedding=embedding), emb_width=16, text_width=16).eval()
    for module in decoder.modules():  # what begins at zero would hide every condition
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.2)
    return decoder


def test_a_picture_of_the_same_condition_is_made_once_and_each_from_its_own_noise(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Decoder, list[int], bool, bool]] = []

    def decode(decoder: Decoder, emb: torch.Tensor, condition: Any, config: Any, *, rows: Sequence[int], show_image: bool, show_text: bool) -> np.ndarray:
        told.append((decoder, list(rows), show_image, show_text))
        values = (emb.sum(dim=1).numpy() * 100).astype(np.int64) % 200 * show_image + 50 * show_text
        return np.broadcast_to(values[:, None, None, None], (len(rows), 4, 4, 3)).astype(np.uint8)

    monkeypatch.setattr(ways, "decode_embeddings", decode)
    captions = [f"one small red {shape} on white" for shape in ("star", "ring", "circle")]
    asked = Asked("a", Rows(["a", "b", "c"], captions, np.zeros((3, 16)), np.zeros((3, 16))))
    found, text_decoder = predictions(), decoder_of("text")
    planned = plan_ways(found, ("draw", "image", "caption"), sees_text=True, has_text_decoder=True, upsampled_size=0)
    real = np.zeros((3, 4, 4, 3), np.uint8)
    pictures = make_pictures(asked, real, found, planned, root.models, text_decoder, GenerateConfig(), batch_size=2)
    assert list(pictures) == [REAL, *(way.name for way in planned)]
    assert (pictures[BEST][0] == pictures[DRAW][0]).all()
    assert not (pictures[BEST][1] == pictures[DRAW][1]).all()
    made = [rows for _, rows, _, _ in told]
    assert all(len(rows) <= 2 for rows in made)
    num = len(planned)
    assert sum(map(len, made)) == 3 * num - 2  # the first draw of row 0 is its best, with and without the caption
    assert {(image, text) for _, _, image, text in told} == {(True, True), (True, False), (False, True)}
    assert sum(len(rows) for decoder, rows, _, _ in told if decoder is text_decoder) == 6
    assert (pictures[CAPTION_ALONE] == 50).all()


def test_hiding_a_condition_changes_the_picture_and_only_by_that_condition(root: Root) -> None:
    """The caption alone gives one picture whatever the embedding; the embedding alone one picture whatever the caption."""
    from unclip.generate import decode_embeddings, text_condition

    decoder, config = decoder_of("image"), GenerateConfig(decoder_steps=2)
    first, second = (text_condition(root.models.clip, [f"one small red {shape} on white"]) for shape in ("star", "ring"))
    one, other = torch.ones(1, 16), -torch.ones(1, 16)

    def draw(emb: torch.Tensor, condition: Any, **shown: bool) -> np.ndarray:
        return decode_embeddings(decoder, emb, condition, config, rows=[0], **shown)

    assert (draw(one, first, show_image=False) == draw(other, first, show_image=False)).all()
    assert (draw(one, first, show_text=False) == draw(one, second, show_text=False)).all()
    assert not (draw(one, first) == draw(other, first)).all()
    assert not (draw(one, first, show_text=False) == draw(one, first)).all()


def test_decoders_of_the_wrong_embedding_or_size_are_refused() -> None:
    image, text = decoder_of("image"), decoder_of("text")
    check_decoders(image, None)
    check_decoders(image, text)
    with pytest.raises(UnclipError, match=r"trained on text embeddings; choose a run"):
        check_decoders(text, None)
    with pytest.raises(UnclipError, match=r"evaluate.text_decoder must name a run"):
        check_decoders(image, image)
    larger = UNetConfig(image_size=32, channels=16, channel_mult=(1, 2), depth=1, attention_sizes=(16,), head_width=8)
    with pytest.raises(UnclipError, match=r"32 pixels.*16"):
        check_decoders(image, decoder_of("text", larger))
