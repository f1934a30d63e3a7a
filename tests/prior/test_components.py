"""Principal components in one pass: against a decomposition of all rows at once, and what the first few keep."""

import numpy as np
import pytest

from unclip.files import UnclipError
from unclip.prior.components import principal_components

E = 6


def rows(num: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, E)) * np.geomspace(3, 0.1, E) @ np.linalg.qr(rng.normal(size=(E, E)))[0] + 100.0


def in_batches(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[:0], *(x[start : start + size] for start in range(0, len(x), size))]


@pytest.mark.parametrize("size", [1, 77, 500])
def test_one_pass_says_what_a_decomposition_of_all_rows_says(size: int) -> None:
    x = rows()
    found = principal_components(in_batches(x, size), E)
    _, values, vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.mean, x.mean(0))
    np.testing.assert_allclose(found.variances, values**2 / len(x), rtol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * vectors, axis=1)), 1.0, rtol=1e-6)


def test_all_components_give_the_rows_back_and_none_the_mean() -> None:
    x, found = rows(), principal_components([rows()], E)
    np.testing.assert_allclose(found.first(E, x), x)
    np.testing.assert_allclose(found.first(0, x), np.broadcast_to(x.mean(0), x.shape))


@pytest.mark.parametrize("num", [1, 3, 5])
def test_the_first_keep_the_share_of_the_variance_that_they_are_said_to(num: int) -> None:
    x, found = rows(), principal_components([rows()], E)
    lost = np.square(found.first(num, x) - x).sum() / np.square(x - x.mean(0)).sum()
    assert 1 - lost == pytest.approx(found.held(num))


def test_more_than_there_are_is_an_error_that_says_the_width() -> None:
    with pytest.raises(UnclipError, match=r"\[0, 6\], the width of the image embedding, got 7"):
        principal_components([rows()], E).first(7, rows())


def test_rows_that_are_all_alike_have_none() -> None:
    with pytest.raises(UnclipError, match="all alike"):
        principal_components([np.ones((5, E))], E)
    with pytest.raises(UnclipError, match="got none"):
        principal_components([], E)
