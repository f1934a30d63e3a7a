"""The decoder: each condition is seen where it is kept and only there; a checkpoint gives back the same network."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from unclip import checkpoint
from unclip.config import load_config
from unclip.decoder import MAX_CONDITION_NOISE, Decoder, DecoderCondition, DecoderConfig, load_decoder
from unclip.diffusion.schedule import make_schedule
from unclip.files import UnclipError
from unclip.nn.unet import UNetConfig

UNET = UNetConfig(image_size=8, channels=16, channel_mult=(1, 2), depth=1, attention_sizes=(4,), head_width=16)
CONFIG = DecoderConfig(unet=UNET, step_width=16, context_width=32)
ALL_OF_IT = dataclasses.replace(CONFIG, text_to_step=True, num_null_text=2, condition_noise=MAX_CONDITION_NOISE, learned_variance=True, sinusoids="channels")


def make_decoder(config: DecoderConfig = CONFIG) -> Decoder:
    decoder = Decoder(config, emb_width=6, text_width=5).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return decoder


def make_condition(*, image: bool = True, text: bool = True) -> DecoderCondition:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    image_emb, text_tokens, text_emb = (torch.randn(shape, generator=generator) for shape in ((2, 6), (2, 3, 5), (2, 6)))
    return DecoderCondition(image_emb, text_tokens, mask, torch.full((2,), image), torch.full((2,), text), text_emb)


def run(decoder: Decoder, condition: DecoderCondition) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return decoder(torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([3, 700]), condition)


def with_other_image(condition: DecoderCondition) -> DecoderCondition:
    return dataclasses.replace(condition, image_emb=condition.image_emb + 1)


def with_other_text(condition: DecoderCondition) -> DecoderCondition:
    assert condition.text_tokens is not None
    return dataclasses.replace(condition, text_tokens=condition.text_tokens + 1)


@pytest.mark.parametrize("config", [CONFIG, ALL_OF_IT], ids=["plain", "all"])
@pytest.mark.parametrize(("image", "text"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_condition_matters_exactly_where_it_is_kept(config: DecoderConfig, image: bool, text: bool) -> None:
    decoder, condition = make_decoder(config), make_condition(image=image, text=text)
    out = run(decoder, condition)
    assert torch.equal(out, run(decoder, with_other_image(condition))) is not image
    assert torch.equal(out, run(decoder, with_other_text(condition))) is not text
    assert condition.text_emb is not None
    other = dataclasses.replace(condition, text_emb=condition.text_emb + 1)
    assert torch.equal(out, run(decoder, other)) is not (text and config.text_to_step)
    noisier = dataclasses.replace(condition, noise_level=torch.full((2,), 300))
    if config.condition_noise:
        assert torch.equal(out, run(decoder, noisier)) is not image


@pytest.mark.parametrize("config", [CONFIG, ALL_OF_IT], ids=["plain", "all"])
def test_dropped_hides_each_or_both(config: DecoderConfig) -> None:
    decoder, condition = make_decoder(config), make_condition()
    torch.testing.assert_close(run(decoder, condition.dropped()), run(decoder, make_condition(image=False, text=False)))
    torch.testing.assert_close(run(decoder, condition.dropped(image=False)), run(decoder, make_condition(text=False)))
    torch.testing.assert_close(run(decoder, condition.dropped(text=False)), run(decoder, make_condition(image=False)))


@pytest.mark.parametrize("config", [CONFIG, ALL_OF_IT], ids=["plain", "all"])
def test_a_condition_that_was_read_serves_every_step(config: DecoderConfig) -> None:
    decoder, condition = make_decoder(config), make_condition()
    read = decoder.read(condition)
    for t in (3, 700):
        x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(t))
        assert torch.equal(decoder.predict(x_t, torch.full((2,), t), read), decoder(x_t, torch.full((2,), t), condition))


def test_a_dropped_caption_does_not_tell_its_length_where_its_stand_ins_are_counted() -> None:
    decoder = make_decoder(ALL_OF_IT)
    condition = make_condition(text=False)
    longer = dataclasses.replace(condition, text_tokens=torch.zeros(2, 9, 5), text_mask=torch.ones(2, 9, dtype=torch.bool))
    shorter = dataclasses.replace(condition, text_tokens=torch.zeros(2, 1, 5), text_mask=torch.ones(2, 1, dtype=torch.bool))
    torch.testing.assert_close(run(decoder, longer), run(decoder, condition), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run(decoder, shorter), run(decoder, condition), atol=1e-5, rtol=1e-5)


def test_a_learned_variance_doubles_the_channels() -> None:
    assert run(make_decoder(ALL_OF_IT), make_condition()).shape == (2, 6, 8, 8)


def test_a_level_begins_by_telling_nothing() -> None:
    """So that level 0 and no noise are one network, and training decides what a level means."""
    decoder, condition = make_decoder(ALL_OF_IT), make_condition()
    assert decoder.level_to_step is not None
    fresh = Decoder(ALL_OF_IT, emb_width=6, text_width=5)
    assert fresh.level_to_step is not None
    decoder.level_to_step.load_state_dict(fresh.level_to_step.state_dict())
    out = run(decoder, condition)
    assert torch.equal(out, run(decoder, dataclasses.replace(condition, noise_level=torch.zeros(2, dtype=torch.long))))
    assert torch.equal(out, run(decoder, dataclasses.replace(condition, noise_level=torch.full((2,), 500))))


def test_condition_noise_is_the_forward_process_in_whitened_space() -> None:
    decoder = make_decoder(ALL_OF_IT)
    decoder.emb_mean.fill_(3.0)
    decoder.emb_std.fill_(2.0)
    generator = torch.Generator().manual_seed(0)
    image_emb, eps = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    schedule = make_schedule("cosine", 1000)
    noised = decoder.noised(image_emb, torch.tensor([0, 1, 400, 1000]), eps)
    assert torch.equal(noised[0], image_emb[0])
    for row, step in ((1, 0), (2, 399), (3, 999)):
        expected = schedule.alpha[step] * (image_emb[row] - 3) / 2 + schedule.sigma[step] * eps[row]
        torch.testing.assert_close((noised[row] - 3) / 2, expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((noised[3] - 3) / 2, eps[3], atol=1e-3, rtol=1e-3)


def test_levels_for_a_decoder_that_knows_none_are_an_error() -> None:
    with pytest.raises(ValueError, match="trained without condition_noise"):
        run(make_decoder(), dataclasses.replace(make_condition(), noise_level=torch.zeros(2, dtype=torch.long)))


def test_a_missing_text_embedding_is_an_error() -> None:
    with pytest.raises(ValueError, match="text_to_step; expected text_emb, got None"):
        run(make_decoder(ALL_OF_IT), dataclasses.replace(make_condition(), text_emb=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_null_text": -1}, "num_null_text must be at least 0"),
        ({"num_null_text": 2, "text_states": False}, "num_null_text has no effect without text_states"),
        ({"condition_noise": 1001}, r"condition_noise must be in \[0, 1000\]"),
        ({"embedding": "text", "text_to_step": True}, "tell the text embedding twice"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]


def num_parameters(*parts: torch.nn.Module | torch.nn.Parameter | None) -> int:
    tensors = [tensor for part in parts if part is not None for tensor in (part.parameters() if isinstance(part, torch.nn.Module) else [part])]
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize(
    ("preset", "clip_width", "unet", "projections", "stand_ins"),
    [("karlo", 768, 885_439_686, 7_878_400, 2 * 1536 + 768), ("paper", 1024, 2_238_164_486, 14_699_520, 2048 + 1024)],
)
def test_presets_have_the_published_sizes(preset: str, clip_width: int, unet: int, projections: int, stand_ins: int) -> None:
    """Karlo's `decoder` and `text_proj` to the parameter, and the visual part of the paper's 3.5 B."""
    with torch.device("meta"):
        decoder = Decoder(load_config(preset=preset).decoder.network, emb_width=clip_width, text_width=clip_width)
    assert num_parameters(decoder.unet, decoder.step) == unet
    assert num_parameters(decoder.emb_to_step, decoder.emb_to_tokens, decoder.null_emb, decoder.text, decoder.text_emb_to_step) == projections
    assert num_parameters(decoder.null_text, decoder.null_text_emb) == stand_ins
    assert num_parameters(decoder) == unet + projections + stand_ins
    assert {module.num_groups for module in decoder.modules() if isinstance(module, torch.nn.GroupNorm)} == {32}


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
    network = checkpoint.as_json(decoder.config) | {"emb_width": 6, "text_width": 5}
    state = decoder.state_dict()
    checkpoint.write_checkpoint(folder, config={"kind": "decoder", "network": network}, model=state, ema=state, optimizer={}, state={"step": 1})
    return folder


@pytest.mark.parametrize("config", [CONFIG, ALL_OF_IT], ids=["plain", "all"])
def test_a_checkpoint_gives_back_the_network(tmp_path: Path, config: DecoderConfig) -> None:
    decoder = make_decoder(config)
    loaded = load_decoder(saved(tmp_path / "step-00000001", decoder))
    torch.testing.assert_close(run(loaded, make_condition()), run(decoder, make_condition()), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_from_before_the_options_still_opens(tmp_path: Path) -> None:
    """Its config lacks them, and its weights have the names that they had."""
    folder = saved(tmp_path / "step-00000001", make_decoder())
    content = json.loads((folder / checkpoint.CONFIG).read_text())
    for name in ("embedding", "sinusoids", "num_null_text", "text_to_step", "condition_noise", "learned_variance"):
        del content["network"][name]
    for name in ("patch_size", "attend_middle", "modulation", "min_group_width"):
        del content["network"]["unet"][name]
    (folder / checkpoint.CONFIG).write_text(json.dumps(content))
    loaded = load_decoder(folder)
    assert torch.equal(run(loaded, make_condition()), run(load_decoder(saved(tmp_path / "step-00000002", make_decoder())), make_condition()))
    names = {name.split(".")[0] for name in loaded.state_dict()}
    assert names == {"step", "emb_to_step", "emb_to_tokens", "null_emb", "text", "null_text", "unet", "emb_mean", "emb_std"}
    assert {"unet.middle.0.1.context_kv.weight", "unet.up.0.0.skip.weight", "unet.down.0.0.emb.bias"} <= loaded.state_dict().keys()


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
