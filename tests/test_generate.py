"""Generation: a picture depends on its seed and row alone, and every prior answers to the same call."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.small_models import ALL_OF_IT, PLAIN, small_clip, small_models
from unclip.clip import Clip
from unclip.decoder import DecoderCondition
from unclip.diffusion.sampling import make_denoiser
from unclip.diffusion.schedule import make_schedule, respace
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models, RowNoise, decoder_denoiser, generate, noise_condition, numbers_of, text_condition
from unclip.prior.condition import PriorSampling
from unclip.upsampler import UpsamplerSampling

CAPTIONS = ["a dog", "a large red star above a small ring", "a cat", "nothing", "a dog"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return small_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive", "regression", "linear", "none"])
def test_neither_the_batch_size_nor_what_else_is_asked_for_changes_a_bit(clip: Clip, kind: str) -> None:
    models = small_models(clip, kind, upsampled=kind == "diffusion")
    few = UpsamplerSampling(first_steps=(2,))
    config = GenerateConfig(prior=PriorSampling(num_steps=3, guidance_scale=1.5), decoder_steps=3, guidance_scale=1.5, seed=4, upsampler=few)
    whole = generate(models, CAPTIONS, config)
    assert whole.candidates.shape == (5, 1 if kind == "none" else 2, 16)
    assert whole.decoded.shape == (5, 8, 8, 3)
    assert whole.pictures.shape == (5, 16, 16, 3) if models.upsamplers else (5, 8, 8, 3)
    again = generate(models, CAPTIONS, dataclasses.replace(config, batch_size=2))
    alone = generate(models, CAPTIONS[2:3], config)
    reversed_ = generate(models, CAPTIONS[1::-1], config)
    for other, row, place in ((again, 4, 4), (alone, 2, 0), (reversed_, 0, 1), (reversed_, 1, 0)):
        assert np.array_equal(other.pictures[place], whole.pictures[row])
        assert torch.equal(other.candidates[place], whole.candidates[row])


def test_a_caption_asked_for_again_gets_another_picture_and_the_first_ones_stay(clip: Clip) -> None:
    assert numbers_of(CAPTIONS) == [0, 0, 0, 0, 1]
    models, config = small_models(clip, "linear"), GenerateConfig(decoder_steps=2)
    two, five = (generate(models, ["a dog"] * num, config) for num in (2, 5))
    assert np.array_equal(five.pictures[:2], two.pictures)
    assert len(np.unique(five.pictures.reshape(5, -1), axis=0)) == 5


@pytest.mark.parametrize("show_text", [True, False])
def test_guidance_one_is_no_guidance(clip: Clip, show_text: bool) -> None:
    models = small_models(clip)
    condition = text_condition(clip, CAPTIONS[:2])
    visible = torch.ones(2, dtype=torch.bool)
    told = DecoderCondition(condition.text_emb, condition.text_tokens, condition.text_mask, visible, visible & show_text, condition.text_emb)
    schedule = respace(make_schedule("cosine", 1000), 5)
    plain = make_denoiser(lambda x, t: models.decoder(x, t, told), schedule, "v", clamp=1.0)
    x, i = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1])
    for scale in (1.0, (1.0, 1.0)):
        denoiser, _ = decoder_denoiser(
            models.decoder, condition.text_emb, condition, GenerateConfig(decoder_steps=5, guidance_scale=scale), show_text=show_text
        )
        assert torch.equal(denoiser(x, i).x0, plain(x, i).x0)
    guided, _ = decoder_denoiser(models.decoder, condition.text_emb, condition, GenerateConfig(decoder_steps=5, guidance_scale=2.0), show_text=show_text)
    assert not torch.equal(guided(x, i).x0, plain(x, i).x0)


def test_a_hidden_caption_says_nothing(clip: Clip) -> None:
    models, config = small_models(clip), GenerateConfig(decoder_steps=5, guidance_scale=(2.0, 3.0))
    embs = text_condition(clip, CAPTIONS[:2]).text_emb
    x, i = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1])
    said = [
        decoder_denoiser(models.decoder, embs, text_condition(clip, captions), config, show_text=False)[0](x, i).x0
        for captions in (["a dog"] * 2, ["a cat"] * 2)
    ]
    assert torch.equal(*said)


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_another_seed_is_another_picture(clip: Clip, kind: str) -> None:
    models = small_models(clip, kind)
    first, second = (generate(models, CAPTIONS[:1], GenerateConfig(prior=PriorSampling(num_steps=3), decoder_steps=3, seed=seed)) for seed in (1, 2))
    assert not np.array_equal(first.pictures, second.pictures)
    assert not torch.equal(first.candidates, second.candidates)


def test_the_best_candidate_is_the_one_that_is_drawn(clip: Clip) -> None:
    made = generate(small_models(clip, "diffusion"), CAPTIONS, GenerateConfig(prior=PriorSampling(num_steps=3), decoder_steps=2, num_candidates=4))
    best = made.similarities.argmax(1)
    assert torch.equal(made.image_emb, made.candidates[torch.arange(5), best])


def test_text_embeddings_stand_in_where_there_is_no_prior(clip: Clip) -> None:
    made = generate(small_models(clip, "none"), CAPTIONS, GenerateConfig(decoder_steps=2))
    torch.testing.assert_close(made.image_emb, clip.encode_texts(CAPTIONS).text_emb)


def test_rows_have_streams_of_their_own() -> None:
    def noise(rows: list[int], stream: int = 1) -> torch.Tensor:
        return RowNoise(7, rows, stream, (3,), torch.device("cpu"))()

    together = noise([0, 1, 2])
    assert torch.equal(together[1:2], noise([1]))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(noise([0], 1), noise([0], 2))


def test_the_batch_size_does_not_change_a_bit_with_everything_on(clip: Clip) -> None:
    models = small_models(clip, "none", ALL_OF_IT)
    config = GenerateConfig(decoder_steps=3, guidance_scale=(2.0, 1.5), condition_noise=200, sampler="ddpm", seed=4)
    runs = [generate(models, CAPTIONS, dataclasses.replace(config, batch_size=size)).pictures for size in (1, 5)]
    assert np.array_equal(*runs)


def denoised(models: Models, config: GenerateConfig) -> tuple[torch.Tensor, int]:
    """What the guided decoder says of some noise, and how often the U-Net was called for it."""
    condition = text_condition(models.clip, CAPTIONS)
    denoiser, schedule = decoder_denoiser(models.decoder, condition.text_emb, condition, config)
    calls: list[int] = []
    hook = models.decoder.unet.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        said = denoiser(torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((5,), len(schedule) - 1))
    hook.remove()
    return said.x0, len(calls)


def test_guidance_of_one_is_none_and_costs_one_call(clip: Clip) -> None:
    models = small_models(clip, "none")
    plain, calls = denoised(models, GenerateConfig())
    by_two, calls_by_two = denoised(models, GenerateConfig(guidance_scale=(1.0, 1.0)))
    assert torch.equal(plain, by_two)
    assert (calls, calls_by_two) == (1, 1)


@pytest.mark.parametrize(("scale", "calls"), [(2.0, 2), ((2.0, 2.0), 2), ((1.0, 2.0), 2), ((2.0, 1.0), 3)])
def test_guidance_calls_what_it_needs(clip: Clip, scale: float | tuple[float, float], calls: int) -> None:
    assert denoised(small_models(clip, "none"), GenerateConfig(guidance_scale=scale))[1] == calls


def test_equal_scales_are_the_usual_guidance(clip: Clip) -> None:
    models = small_models(clip, "none")
    assert torch.equal(denoised(models, GenerateConfig(guidance_scale=2.0))[0], denoised(models, GenerateConfig(guidance_scale=(2.0, 2.0)))[0])


def test_condition_noise_is_drawn_a_row_and_changes_the_picture(clip: Clip) -> None:
    models = small_models(clip, "none", ALL_OF_IT)
    image_emb = models.clip.encode_texts(CAPTIONS).text_emb
    config = GenerateConfig(condition_noise=300, seed=4)
    assert noise_condition(models.decoder, image_emb, GenerateConfig(), rows=range(5)) is image_emb
    noised = noise_condition(models.decoder, image_emb, config, rows=range(5))
    torch.testing.assert_close(noise_condition(models.decoder, image_emb[3:], config, rows=[3, 4]), noised[3:])
    assert not torch.allclose(noised[0], noised[4])  # the same caption in another row


def test_what_does_not_fit_the_decoder_is_refused(clip: Clip) -> None:
    with pytest.raises(UnclipError, match="condition_noise up to 0; expected no more, got 100"):
        generate(small_models(clip, "none"), CAPTIONS, GenerateConfig(condition_noise=100))
    blind = small_models(clip, "none", dataclasses.replace(PLAIN, text_states=False))
    with pytest.raises(UnclipError, match=r"sees no caption; expected one generate.guidance_scale, got \(2.0, 1.0\)"):
        generate(blind, CAPTIONS, GenerateConfig(guidance_scale=(2.0, 1.0)))
    with pytest.raises(UnclipError, match="give --prior none"):
        generate(small_models(clip, "linear", dataclasses.replace(PLAIN, embedding="text")), CAPTIONS, GenerateConfig())
    with pytest.raises(ValueError, match="guidance_scale must be finite, got nan"):
        GenerateConfig(guidance_scale=float("nan"))
    with pytest.raises(ValueError, match=r"condition_noise must be in \[0, 1000\]"):
        GenerateConfig(condition_noise=1001)


def test_the_decoder_has_no_analytic_sampler() -> None:
    with pytest.raises(ValueError, match="sampler of the decoder must be ddpm, ddim or dpm"):
        GenerateConfig(sampler="analytic")
