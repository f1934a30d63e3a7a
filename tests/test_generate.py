"""Generation: a picture depends on its seed and row alone, and every prior answers to the same call."""

import dataclasses

import numpy as np
import pytest
import torch

from unclip.clip import Clip, TowerConfig, load_clip, make_clip, save_clip
from unclip.decoder import Decoder, DecoderConfig
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models, RowNoise, decoder_denoiser, generate, noise_condition, text_condition
from unclip.nn.unet import UNetConfig
from unclip.prior.autoregressive import AutoregressivePrior, AutoregressivePriorConfig
from unclip.prior.condition import PriorSampling
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig
from unclip.prior.linear import LinearPrior
from unclip.prior.regression import RegressionPrior, RegressionPriorConfig

TOWER = TowerConfig(emb_width=16, image_size=16, patch_size=8, vision_width=32, vision_layers=1, text_width=32, text_layers=1, head_width=16, context_length=12)
CAPTIONS = ["a dog", "a large red star above a small ring", "a cat", "nothing", "a dog"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_clip(folder, TOWER, make_clip(TOWER).state_dict(), origin="trained here")
    return load_clip(folder)


UNET = UNetConfig(image_size=8, channels=16, channel_mult=(1, 2), depth=1, attention_sizes=(4,), head_width=16)
PLAIN = DecoderConfig(unet=UNET, step_width=16, context_width=12)
ALL_OF_IT = dataclasses.replace(PLAIN, text_to_step=True, num_null_text=2, condition_noise=500, learned_variance=True)


def make_models(clip: Clip, kind: str, network: DecoderConfig = PLAIN) -> Models:
    torch.manual_seed(1)
    decoder = Decoder(network, emb_width=16, text_width=32).eval()
    for parameter in decoder.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    prior = {
        "diffusion": DiffusionPrior(DiffusionPriorConfig(width=16, depth=1, head_width=8, max_text_tokens=12), emb_width=16, text_width=32).eval(),
        "autoregressive": AutoregressivePrior(
            AutoregressivePriorConfig(width=16, depth=1, head_width=8, max_text_tokens=12), emb_width=16, text_width=32, num_components=9
        ).eval(),
        "regression": RegressionPrior(RegressionPriorConfig(width=16, depth=1, head_width=8, max_text_tokens=12), emb_width=16, text_width=32).eval(),
        "linear": LinearPrior(16),
        "none": None,
    }[kind]
    return Models(clip, prior, decoder)


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive", "regression", "linear", "none"])
def test_the_batch_size_does_not_matter(clip: Clip, kind: str) -> None:
    models = make_models(clip, kind)
    config = GenerateConfig(prior=PriorSampling(num_steps=3, guidance_scale=1.5), decoder_steps=3, guidance_scale=1.5, seed=4)
    runs = [generate(models, CAPTIONS, dataclasses.replace(config, batch_size=size)) for size in (1, 2, 5)]
    for other in runs[1:]:
        torch.testing.assert_close(other.candidates, runs[0].candidates, atol=1e-4, rtol=1e-4)
        assert np.abs(other.pictures.astype(int) - runs[0].pictures.astype(int)).max() <= 1
    assert runs[0].candidates.shape == (5, 1 if kind == "none" else 2, 16)
    assert runs[0].pictures.shape == (5, 8, 8, 3)


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_another_seed_is_another_picture(clip: Clip, kind: str) -> None:
    models = make_models(clip, kind)
    first, second = (generate(models, CAPTIONS[:1], GenerateConfig(prior=PriorSampling(num_steps=3), decoder_steps=3, seed=seed)) for seed in (1, 2))
    assert not np.array_equal(first.pictures, second.pictures)
    assert not torch.equal(first.candidates, second.candidates)


def test_the_best_candidate_is_the_one_that_is_drawn(clip: Clip) -> None:
    made = generate(make_models(clip, "diffusion"), CAPTIONS, GenerateConfig(prior=PriorSampling(num_steps=3), decoder_steps=2, num_candidates=4))
    best = made.similarities.argmax(1)
    assert torch.equal(made.image_emb, made.candidates[torch.arange(5), best])


def test_text_embeddings_stand_in_where_there_is_no_prior(clip: Clip) -> None:
    made = generate(make_models(clip, "none"), CAPTIONS, GenerateConfig(decoder_steps=2))
    torch.testing.assert_close(made.image_emb, clip.encode_texts(CAPTIONS).text_emb)


def test_rows_have_streams_of_their_own() -> None:
    def noise(rows: list[int], stream: int = 1) -> torch.Tensor:
        return RowNoise(7, rows, stream, (3,), torch.device("cpu"))()

    together = noise([0, 1, 2])
    assert torch.equal(together[1:2], noise([1]))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(noise([0], 1), noise([0], 2))


def test_the_batch_size_does_not_matter_to_a_decoder_with_everything_on(clip: Clip) -> None:
    models = make_models(clip, "none", ALL_OF_IT)
    config = GenerateConfig(decoder_steps=3, guidance_scale=(2.0, 1.5), condition_noise=200, sampler="ddpm", seed=4)
    runs = [generate(models, CAPTIONS, dataclasses.replace(config, batch_size=size)).pictures for size in (1, 5)]
    assert np.abs(runs[0].astype(int) - runs[1].astype(int)).max() <= 1


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
    models = make_models(clip, "none")
    plain, calls = denoised(models, GenerateConfig())
    by_two, calls_by_two = denoised(models, GenerateConfig(guidance_scale=(1.0, 1.0)))
    assert torch.equal(plain, by_two)
    assert (calls, calls_by_two) == (1, 1)


@pytest.mark.parametrize(("scale", "calls"), [(2.0, 2), ((2.0, 2.0), 2), ((1.0, 2.0), 2), ((2.0, 1.0), 3)])
def test_guidance_calls_what_it_needs(clip: Clip, scale: float | tuple[float, float], calls: int) -> None:
    assert denoised(make_models(clip, "none"), GenerateConfig(guidance_scale=scale))[1] == calls


def test_equal_scales_are_the_usual_guidance(clip: Clip) -> None:
    models = make_models(clip, "none")
    assert torch.equal(denoised(models, GenerateConfig(guidance_scale=2.0))[0], denoised(models, GenerateConfig(guidance_scale=(2.0, 2.0)))[0])


def test_condition_noise_is_drawn_a_row_and_changes_the_picture(clip: Clip) -> None:
    models = make_models(clip, "none", ALL_OF_IT)
    image_emb = models.clip.encode_texts(CAPTIONS).text_emb
    config = GenerateConfig(condition_noise=300, seed=4)
    assert noise_condition(models.decoder, image_emb, GenerateConfig(), rows=range(5)) is image_emb
    noised = noise_condition(models.decoder, image_emb, config, rows=range(5))
    torch.testing.assert_close(noise_condition(models.decoder, image_emb[3:], config, rows=[3, 4]), noised[3:])
    assert not torch.allclose(noised[0], noised[4])  # the same caption in another row


def test_what_does_not_fit_the_decoder_is_refused(clip: Clip) -> None:
    with pytest.raises(UnclipError, match="condition_noise up to 0; expected no more, got 100"):
        generate(make_models(clip, "none"), CAPTIONS, GenerateConfig(condition_noise=100))
    blind = make_models(clip, "none", dataclasses.replace(PLAIN, text_states=False))
    with pytest.raises(UnclipError, match=r"sees no caption; expected one generate.guidance_scale, got \(2.0, 1.0\)"):
        generate(blind, CAPTIONS, GenerateConfig(guidance_scale=(2.0, 1.0)))
    with pytest.raises(UnclipError, match="trained on text embeddings; expected no prior"):
        generate(make_models(clip, "linear", dataclasses.replace(PLAIN, embedding="text")), CAPTIONS, GenerateConfig())
    with pytest.raises(ValueError, match=r"condition_noise must be in \[0, 1000\]"):
        GenerateConfig(condition_noise=1001)


def test_the_decoder_has_no_analytic_sampler() -> None:
    with pytest.raises(ValueError, match="sampler of the decoder must be ddpm, ddim or dpm"):
        GenerateConfig(sampler="analytic")
