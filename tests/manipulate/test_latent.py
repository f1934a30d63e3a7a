"""A picture as embedding and noise: the way there and back, and what a caption changes."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from tests.small_models import SIDE, small_models
from unclip.data.loader import as_pictures
from unclip.decoder import Decoder
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models
from unclip.manipulate.latent import deterministic, draw, embed_pictures, invert, latent_of
from unclip.manipulate.roundtrip import measure_round_trip, psnr
from unclip.manipulate.variations import vary

Pictures = list[Image.Image]


def test_the_round_trip_gets_better_with_the_steps_and_comes_back(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    pixels, image_emb = embed_pictures(models, pictures[:1])
    found = measure_round_trip(models, pixels, image_emb, config, num_steps=[6, 24, 96])
    assert [one.num_steps for one in found] == [6, 24, 96]
    assert found[0].psnr + 6 < found[1].psnr < found[2].psnr - 6
    assert found[2].psnr > 32
    assert found[2].max_error < found[1].max_error < found[0].max_error


def test_with_a_caption_it_comes_back_too(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    pixels, image_emb = embed_pictures(models, pictures[:1])
    few, more = measure_round_trip(models, pixels, image_emb, config, num_steps=[6, 24], caption="a large red star")
    assert few.psnr + 6 < more.psnr


def test_the_psnr_of_several_pictures_is_that_of_their_mean_error(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    pixels, image_emb = embed_pictures(models, pictures)
    (found,) = measure_round_trip(models, pixels, image_emb, config, num_steps=[4])
    assert len(found.each) == 2
    assert min(found.each) <= found.psnr <= max(found.each)
    assert 10 ** (-found.psnr / 10) == pytest.approx(np.mean([10 ** (-one / 10) for one in found.each]))


def test_the_noise_depends_on_the_embedding_and_on_the_caption(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    pixels, image_emb = embed_pictures(models, pictures)
    plain = invert(models, pixels, image_emb, config).x_T
    assert not torch.equal(invert(models, pixels, image_emb.flip(0), config).x_T, plain)
    assert not torch.equal(invert(models, pixels, image_emb, config, caption="a star").x_T, plain)


def test_the_noise_is_sought_without_guidance_and_guidance_draws_another_picture(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    guided = dataclasses.replace(config, guidance_scale=3.0)
    one, other = vary(models, pictures[0], config, num=1, eta=0.0), vary(models, pictures[0], guided, num=1, eta=0.0)
    assert torch.equal(one.x_T, other.x_T)
    assert not np.array_equal(one.pictures, other.pictures)


def test_each_picture_is_inverted_as_if_alone(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    both, second = latent_of(models, pictures, config), latent_of(models, pictures[1:], config)
    assert torch.equal(both.x_T[1:], second.x_T)
    assert torch.equal(both[1].image_emb, second.image_emb)


def test_settings_that_have_no_inverse_are_left_out() -> None:
    config = deterministic(GenerateConfig(sampler="ddpm", condition_noise=7), eta=0.3)
    assert (config.sampler, config.eta, config.condition_noise) == ("ddim", 0.3, 0)


def test_psnr_is_closed_form() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    others = torch.stack([torch.full((3, 4, 4), 0.2), torch.zeros(3, 4, 4)])
    assert psnr(pixels, others).tolist() == [pytest.approx(20.0), float("inf")]


def test_eta_nothing_is_the_reconstruction(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    made = vary(models, pictures[0], config, num=1, eta=0.0)
    latent = latent_of(models, pictures[:1], config)
    assert np.array_equal(made.pictures, as_pictures(draw(models, latent.image_emb, latent.x_T, deterministic(config))))
    assert np.array_equal(made.originals[0], np.asarray(pictures[0]))


def test_variations_go_farther_with_eta_and_more_of_them_leave_the_first_as_they_are(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    def distance(eta: float) -> float:
        made = vary(models, pictures[0], config, num=4, eta=eta)
        return float(np.square(made.pictures.astype(float) - made.originals).mean())

    assert distance(0.2) < distance(1.0)
    few, many = (vary(models, pictures[0], config, num=num, eta=0.5) for num in (2, 4))
    assert np.array_equal(few.pictures, many.pictures[:2])
    assert not np.array_equal(many.pictures[0], many.pictures[1])
    other = vary(models, pictures[0], dataclasses.replace(config, seed=1), num=2, eta=0.5)
    assert not np.array_equal(other.pictures, few.pictures)


def test_what_makes_no_sense_is_refused(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    for num, eta, words in ((2, 0.0, "the same reconstruction"), (1, 1.5, r"\[0, 1\], got 1.5"), (0, 0.5, "at least 1, got 0")):
        with pytest.raises(UnclipError, match=words):
            vary(models, pictures[0], config, num=num, eta=eta)
    reads_text = Decoder(dataclasses.replace(models.decoder.config, embedding="text"), emb_width=16, text_width=32)
    with pytest.raises(UnclipError, match="trained on text embeddings"):
        embed_pictures(dataclasses.replace(models, decoder=reads_text), pictures)


def test_pictures_of_any_size_are_cut_and_scaled(models: Models) -> None:
    pixels, image_emb = embed_pictures(models, [Image.new("RGBA", (40, 30)), Image.new("L", (5, 9))])
    assert pixels.shape == (2, 3, SIDE, SIDE)
    assert image_emb.shape == (2, 16)


def test_they_are_enlarged_where_there_is_an_upsampler(models: Models, pictures: Pictures) -> None:
    from unclip.upsampler import UpsamplerSampling

    config = GenerateConfig(decoder_steps=2, upsampler=UpsamplerSampling(first_steps=(2,)))
    made = vary(small_models(models.clip, upsampled=True), pictures[0], config, num=2, eta=0.5)
    assert made.pictures.shape == (2, 2 * SIDE, 2 * SIDE, 3)
    assert made.originals.shape == (1, 2 * SIDE, 2 * SIDE, 3)
    assert [image.size for image in made.images] == [(2 * SIDE, 2 * SIDE)] * 2
