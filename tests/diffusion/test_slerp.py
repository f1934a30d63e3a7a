"""Spherical interpolation: against the closed form in a plane, and its ends, lengths and refusals."""

import math

import pytest
import torch

from unclip.diffusion.slerp import slerp


def rows(seed: int, shape: tuple[int, ...] = (4, 3, 5, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_double(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("degrees", [1e-3, 10.0, 90.0, 179.0])
@pytest.mark.parametrize("theta", [0.1, 0.5, 0.75])
def test_in_a_plane_it_is_a_rotation(degrees: float, theta: float) -> None:
    omega = math.radians(degrees)
    start, end = in_double([[2.0, 0.0]]), in_double([[4 * math.cos(omega), 4 * math.sin(omega)]])
    expected = (2 + theta * 2) * in_double([[math.cos(theta * omega), math.sin(theta * omega)]])
    torch.testing.assert_close(slerp(start, end, theta), expected, atol=1e-9, rtol=1e-9)


def test_the_ends_are_exact() -> None:
    start, end = rows(0), rows(1)
    assert torch.equal(slerp(start, end, 0.0), start)
    assert torch.equal(slerp(start, end, 1.0), end)


@pytest.mark.parametrize("theta", [0.25, 0.5, 0.9])
def test_unit_vectors_stay_unit_vectors_and_each_row_goes_its_own_way(theta: float) -> None:
    start, end = (values / values.flatten(1).norm(dim=1)[:, None, None, None] for values in (rows(0), rows(1)))
    between = slerp(start, end, theta)
    torch.testing.assert_close(between.flatten(1).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(slerp(start[2:3], end[2:3], theta), between[2:3])


def test_from_the_other_end_it_is_the_same_way() -> None:
    torch.testing.assert_close(slerp(rows(0), rows(1), 0.3), slerp(rows(1), rows(0), 0.7))


def test_along_one_direction_the_length_alone_changes() -> None:
    torch.testing.assert_close(slerp(rows(0), 3 * rows(0), 0.5), 2 * rows(0))


def test_what_has_no_way_is_refused() -> None:
    with pytest.raises(ValueError, match="opposite"):
        slerp(rows(0), -rows(0), 0.5)
    with pytest.raises(ValueError, match="zeros"):
        slerp(rows(0), torch.zeros_like(rows(0)), 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        slerp(rows(0), rows(1), 1.5)
