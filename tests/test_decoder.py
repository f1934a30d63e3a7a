"""The decoder: each condition is seen where it is kept and only there; a checkpoint gives back the same network."""

import dataclasses
from pathlib import Path

import pytest
import torch

from unclip import checkpoint
from unclip.decoder import Decoder, DecoderCondition, DecoderConfig, load_decoder
from unclip.files import UnclipError
from unclip.nn.unet import UNetConfig

UNET = UNetConfig(image_size=8, channels=16, channel_mult=(1, 2), depth=1, attention_sizes=(4,), head_width=16)
CONFIG = DecoderConfig(unet=UNET, step_width=16, context_width=32)


def make_decoder() -> Decoder:
    decoder = Decoder(CONFIG, emb_width=6, text_width=5).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return decoder


def make_condition(*, image: bool = True, text: bool = True) -> DecoderCondition:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return DecoderCondition(
        torch.randn(2, 6, generator=generator), torch.randn(2, 3, 5, generator=generator), mask, torch.full((2,), image), torch.full((2,), text)
    )


def run(decoder: Decoder, condition: DecoderCondition) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return decoder(torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([3, 700]), condition)


def changed(condition: DecoderCondition) -> tuple[DecoderCondition, DecoderCondition]:
    """The same with another image embedding, and with other text states."""
    assert condition.text_tokens is not None
    return dataclasses.replace(condition, image_emb=condition.image_emb + 1), dataclasses.replace(condition, text_tokens=condition.text_tokens + 1)


@pytest.mark.parametrize(("image", "text"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_condition_matters_exactly_where_it_is_kept(image: bool, text: bool) -> None:
    decoder, condition = make_decoder(), make_condition(image=image, text=text)
    other_image, other_text = changed(condition)
    out = run(decoder, condition)
    assert torch.equal(out, run(decoder, other_image)) is not image
    assert torch.equal(out, run(decoder, other_text)) is not text


def test_dropped_hides_both() -> None:
    decoder, condition = make_decoder(), make_condition()
    torch.testing.assert_close(run(decoder, condition.dropped()), run(decoder, make_condition(image=False, text=False)))


def test_rows_do_not_mix() -> None:
    decoder, condition = make_decoder(), make_condition()
    other = dataclasses.replace(condition, image_emb=torch.cat([condition.image_emb[:1], condition.image_emb[1:] + 5]))
    torch.testing.assert_close(run(decoder, condition)[0], run(decoder, other)[0])


def test_whitening_is_part_of_the_network() -> None:
    decoder, condition = make_decoder(), make_condition()
    before = run(decoder, condition)
    decoder.emb_mean.fill_(3.0)
    decoder.emb_std.fill_(2.0)
    torch.testing.assert_close(run(decoder, dataclasses.replace(condition, image_emb=condition.image_emb * 2 + 3)), before, atol=1e-5, rtol=1e-5)


def test_missing_text_states_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected text_tokens and text_mask"):
        run(make_decoder(), dataclasses.replace(make_condition(), text_tokens=None))


def saved(folder: Path, decoder: Decoder) -> Path:
    network = checkpoint.as_json(CONFIG) | {"emb_width": 6, "text_width": 5}
    state = decoder.state_dict()
    checkpoint.write_checkpoint(folder, config={"kind": "decoder", "network": network}, model=state, ema=state, optimizer={}, state={"step": 1})
    return folder


def test_a_checkpoint_gives_back_the_network(tmp_path: Path) -> None:
    decoder = make_decoder()
    loaded = load_decoder(saved(tmp_path / "step-00000001", decoder))
    torch.testing.assert_close(run(loaded, make_condition()), run(decoder, make_condition()), atol=1e-5, rtol=1e-5)


def test_a_cut_checkpoint_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "step-00000001", make_decoder())
    weights = folder / checkpoint.EMA
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UnclipError, match="not a whole safetensors file"):
        load_decoder(folder)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "step-00000001", make_decoder())
    with pytest.raises(UnclipError, match="kind 'decoder', expected 'prior'"):
        checkpoint.read_config(folder, "prior")
