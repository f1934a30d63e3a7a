"""The measurements of the priors against scipy and scikit-learn."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import cosine_distances, cosine_similarity, rbf_kernel

from unclip.evaluation.cosine import quintet, spread
from unclip.evaluation.distribution import frechet, median_distance, mmd


def test_frechet_is_that_of_scipy_s_matrix_root() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2, 6))
    factors = rng.normal(size=(2, 6, 6))
    first, second = factors @ factors.transpose(0, 2, 1)
    expected = np.square(means[0] - means[1]).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet(means[0], first, means[1], second) == pytest.approx(expected, rel=1e-9)


def test_mmd_and_its_sigma_are_those_of_scikit_learn_and_scipy() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) + 0.3
    sigma = median_distance(first)
    assert sigma == pytest.approx(np.median(pdist(first)))
    gamma = 1 / (2 * sigma**2)
    expected = rbf_kernel(first, gamma=gamma).mean() + rbf_kernel(second, gamma=gamma).mean() - 2 * rbf_kernel(first, second, gamma=gamma).mean()
    assert mmd(first, second, sigma=sigma) == pytest.approx(expected, rel=1e-9)


def test_cosines_and_spread_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    emb, true_emb, text_emb = rng.normal(size=(3, 20, 6)).astype(np.float32) + 2.0
    found = quintet(emb, true_emb, text_emb)
    np.testing.assert_allclose(found["image"], np.diag(cosine_similarity(emb, true_emb)), atol=1e-5)
    np.testing.assert_allclose(found["unrelated"], np.diag(cosine_similarity(np.roll(emb, 1, axis=0), text_emb)), atol=1e-5)
    assert spread(emb) == pytest.approx(cosine_distances(emb)[np.triu_indices(20, 1)].mean(), abs=1e-5)
