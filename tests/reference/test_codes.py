"""The codes' principal components against scikit-learn's PCA."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from unclip.prior.codes import fit_codes


@pytest.mark.parametrize("explained", [0.8, 0.99])
def test_components_are_those_of_scikit_learn(explained: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(600, 12)) @ (rng.normal(size=(12, 12)) * np.geomspace(1, 0.01, 12)[:, None]) + 50.0).astype(np.float32)
    text_emb = rng.normal(size=(600, 12))
    codes = fit_codes(
        ((x[i : i + 70], text_emb[i : i + 70]) for i in range(0, 600, 70)), 12, explained=explained, max_components=12, num_buckets=64, num_dot_buckets=4
    )
    reference = PCA(explained, svd_solver="full").fit(x.astype(np.float64))
    assert len(codes.stds) == reference.n_components_
    np.testing.assert_allclose(codes.mean, reference.mean_, rtol=1e-6)
    np.testing.assert_allclose(codes.stds, np.sqrt(reference.explained_variance_ * 599 / 600), rtol=1e-5)  # scikit-learn divides by n - 1
    np.testing.assert_allclose(np.abs((codes.components.numpy() * reference.components_).sum(1)), 1.0, atol=1e-5)
    projected = reference.inverse_transform(reference.transform(x.astype(np.float64)))
    centred = torch.from_numpy(x) - codes.mean
    np.testing.assert_allclose(centred @ codes.components.T @ codes.components + codes.mean, projected, atol=1e-3)
