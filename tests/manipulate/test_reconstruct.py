"""Reconstruction from principal components: all of them are the embedding itself, and the noise is one."""

import numpy as np
import pytest
import torch
from PIL import Image

from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models
from unclip.manipulate.latent import embed_pictures
from unclip.manipulate.reconstruct import reconstruct
from unclip.prior.components import Components, principal_components


@pytest.fixture
def components() -> Components:
    return principal_components([np.random.default_rng(0).normal(size=(100, 16)) * np.geomspace(2, 0.1, 16)], 16)


def test_all_components_are_the_embedding_itself(models: Models, config: GenerateConfig, pictures: list[Image.Image], components: Components) -> None:
    made = reconstruct(models, pictures[0], components, config, pca=[1, 8, 16])
    _, image_emb = embed_pictures(models, pictures[:1])
    torch.testing.assert_close(made.image_emb[2:], image_emb, atol=1e-5, rtol=1e-5)
    errors = (made.image_emb - image_emb).square().sum(dim=1)
    assert errors[0] > errors[1] > errors[2]
    assert torch.equal(made.x_T, made.x_T[:1].expand(3, -1, -1, -1))
    assert [one["components"] for one in made.about] == [1, 8, 16]
    assert made.about[2]["variance held"] == 1.0


def test_each_is_drawn_as_if_alone(models: Models, config: GenerateConfig, pictures: list[Image.Image], components: Components) -> None:
    both = reconstruct(models, pictures[0], components, config, pca=[1, 8])
    assert np.array_equal(reconstruct(models, pictures[0], components, config, pca=[8]).pictures[0], both.pictures[1])


@pytest.mark.parametrize("pca", [[4, 17], [0], []])
def test_numbers_that_are_no_components_are_an_error_that_says_the_width(
    models: Models, config: GenerateConfig, pictures: list[Image.Image], components: Components, pca: list[int]
) -> None:
    with pytest.raises(UnclipError, match=r"\[1, 16\], the width of the image embedding"):
        reconstruct(models, pictures[0], components, config, pca=pca)
