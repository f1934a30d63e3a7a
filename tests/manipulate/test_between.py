"""Interpolation and edits: the ends, the way, and the text difference in closed form."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from unclip.data.loader import as_pictures
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models
from unclip.manipulate.edit import edit, text_difference
from unclip.manipulate.interpolate import interpolate
from unclip.manipulate.latent import deterministic, draw, latent_of

Pictures = list[Image.Image]


def test_the_ends_of_an_interpolation_are_the_reconstructions_of_its_pictures(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    made = interpolate(models, *pictures, config, num=5)
    latent = latent_of(models, pictures, config)
    again = as_pictures(draw(models, latent.image_emb, latent.x_T, deterministic(config)))
    assert np.array_equal(made.pictures[0], again[0])
    assert np.array_equal(made.pictures[-1], again[1])
    assert [one["theta"] for one in made.about] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert made.originals.shape == (2, 8, 8, 3)


def test_the_embedding_turns_evenly(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    emb = torch.nn.functional.normalize(interpolate(models, *pictures, config, num=4).image_emb, dim=-1)
    angles = [math.acos(min(1.0, float(one @ other))) for one, other in pairwise(emb)]
    assert angles == pytest.approx([angles[0]] * 3, rel=1e-3)


def test_with_fixed_noise_all_are_drawn_from_one(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    made = interpolate(models, *pictures, config, num=3, noise="fixed")
    assert torch.equal(made.x_T, made.x_T[:1].expand(3, -1, -1, -1))
    other = interpolate(models, *pictures, dataclasses.replace(config, seed=1), num=3, noise="fixed")
    assert not torch.equal(other.x_T, made.x_T)
    assert torch.equal(other.image_emb, made.image_emb)


def test_an_interpolation_has_two_ends(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    with pytest.raises(UnclipError, match="at least its two ends"):
        interpolate(models, *pictures, config, num=1)


def test_the_text_difference_is_that_of_directions() -> None:
    found = text_difference(torch.tensor([[0.0, 3.0]]), torch.tensor([[5.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0]]) / math.sqrt(2))


def test_an_edit_turns_the_embedding_by_theta_and_keeps_its_length(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    made = edit(models, pictures[0], config, before="a red circle", after="a blue square", thetas=(0.0, 0.25, 0.5, 1.0))
    latent = latent_of(models, pictures[:1], config)
    text = models.clip.encode_texts(["a red circle", "a blue square"]).text_emb
    direction = text_difference(text[1:], text[:1])[0]
    start, whole = latent.image_emb[0] / latent.image_emb[0].norm(), math.acos(float(direction @ latent.image_emb[0] / latent.image_emb[0].norm()))
    for emb, theta in zip(made.image_emb, (0.0, 0.25, 0.5, 1.0), strict=True):
        assert float(emb.norm()) == pytest.approx(float(latent.image_emb.norm()), rel=1e-5)
        assert math.acos(min(1.0, float(emb @ start / emb.norm()))) == pytest.approx(theta * whole, abs=2e-3)
    assert torch.equal(made.image_emb[0], latent.image_emb[0])
    assert torch.equal(made.x_T, latent.x_T.expand(4, -1, -1, -1))


def test_an_edit_that_changes_nothing_is_refused(models: Models, config: GenerateConfig, pictures: Pictures) -> None:
    with pytest.raises(UnclipError, match="the same to CLIP"):
        edit(models, pictures[0], config, before="a cat", after="a cat")
    with pytest.raises(UnclipError, match=r"\[0, 1\]"):
        edit(models, pictures[0], config, before="a cat", after="a dog", thetas=[1.5])
