"""The linear prior against scikit-learn's ridge regression."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from unclip.prior.linear import fit_linear, load_linear_prior, save_linear

RIDGE = 1e-3


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8)) + 3
    y = x @ rng.normal(size=(8, 8)) + rng.normal(size=(500, 8)) - 2
    return x, y


def test_it_is_ridge_regression() -> None:
    x, y = data()
    penalty = RIDGE * np.trace(np.cov(x.T, bias=True)) / 8 * len(x)
    reference = Ridge(alpha=penalty).fit(x, y)
    prior = fit_linear(((x[i : i + 70], y[i : i + 70]) for i in range(0, 500, 70)), 8, ridge=RIDGE)
    torch.testing.assert_close(prior(torch.from_numpy(x).float()), torch.from_numpy(reference.predict(x)).float(), atol=1e-3, rtol=1e-4)


def test_batches_do_not_matter() -> None:
    x, y = data()
    one, many = fit_linear([(x, y)], 8, ridge=RIDGE), fit_linear(zip(np.split(x, 10), np.split(y, 10), strict=True), 8, ridge=RIDGE)
    torch.testing.assert_close(one.weight, many.weight)


def test_saved_and_loaded(tmp_path: Path) -> None:
    x, y = data()
    prior = fit_linear([(x, y)], 8, ridge=RIDGE)
    save_linear(tmp_path / "linear", prior)
    assert torch.equal(load_linear_prior(tmp_path / "linear").weight, prior.weight)


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        fit_linear([], 8, ridge=RIDGE)
