"""Guidance by one condition and by two: what it equals, what it costs, and that a learned variance is left alone."""

import pytest
import torch
from torch import Tensor

from unclip.diffusion.guidance import Network, guided, guided_by_two

X, T = torch.zeros(2, 3, 4, 4), torch.zeros(2)


class Counted:
    """A network that says one number for the mean half, another for the variance half, and counts its calls."""

    def __init__(self, mean: float, variance: float | None = None) -> None:
        self.mean, self.variance, self.calls = mean, variance, 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        mean = torch.full_like(x_t, self.mean)
        return mean if self.variance is None else torch.cat([mean, torch.full_like(x_t, self.variance)], dim=1)


def networks(variance: float | None = None) -> tuple[Counted, Counted, Counted]:
    """With both conditions, with the first alone, with neither."""
    return Counted(7.0, variance), Counted(5.0, None if variance is None else 0.2), Counted(4.0, None if variance is None else 0.3)


def mean_of(network: Network) -> float:
    out = network(X, T)[:, :3]
    assert (out == out.flatten()[0]).all()
    return float(out.flatten()[0])


def test_guidance_of_one_is_the_conditional_network_itself() -> None:
    both, first, neither = networks()
    assert guided(both, neither, 1.0) is both
    assert guided_by_two(both, first, neither, (1.0, 1.0)) is both


def test_guidance_moves_away_from_the_unconditional() -> None:
    both, _, neither = networks()
    assert mean_of(guided(both, neither, 3.0)) == pytest.approx(4 + 3 * (7 - 4))


@pytest.mark.parametrize("scales", [(1.5, 3.0), (3.0, 1.0), (0.0, 2.0), (2.0, 0.0)])
def test_each_condition_has_its_own_scale(scales: tuple[float, float]) -> None:
    both, first, neither = networks()
    assert mean_of(guided_by_two(both, first, neither, scales)) == pytest.approx(4 + scales[0] * (5 - 4) + scales[1] * (7 - 5))


@pytest.mark.parametrize(
    ("scales", "calls"),
    [
        ((1.0, 1.0), [1, 0, 0]),
        ((2.5, 2.5), [1, 0, 1]),
        ((1.0, 2.5), [1, 1, 0]),
        ((2.5, 1.0), [1, 1, 1]),
        ((2.5, 0.0), [0, 1, 1]),
        ((1.0, 0.0), [0, 1, 0]),
    ],
)
def test_a_network_that_cancels_out_is_not_called(scales: tuple[float, float], calls: list[int]) -> None:
    both, first, neither = networks()
    value = mean_of(guided_by_two(both, first, neither, scales))
    assert [network.calls for network in (both, first, neither)] == calls
    assert value == pytest.approx(4 + scales[0] * (5 - 4) + scales[1] * (7 - 5))


def test_equal_scales_are_the_usual_guidance() -> None:
    both, first, neither = networks()
    assert torch.equal(guided_by_two(both, first, neither, (2.0, 2.0))(X, T), guided(both, neither, 2.0)(X, T))


@pytest.mark.parametrize("scales", [(1.0, 1.0), (2.0, 2.0), (1.0, 2.0), (3.0, 1.5)])
def test_a_learned_variance_stays_that_of_the_conditional(scales: tuple[float, float]) -> None:
    both, first, neither = networks(0.1)
    out = guided_by_two(both, first, neither, scales)(X, T)
    assert out.shape == (2, 6, 4, 4)
    assert (out[:, 3:] == 0.1).all()
    plain = guided_by_two(*networks(), scales)(X, T)
    torch.testing.assert_close(out[:, :3], plain)


def test_an_output_of_other_width_is_refused() -> None:
    with pytest.raises(ValueError, match="3 channels, or 6 with a learned variance, got 4"):
        guided(lambda x, t: x[:, :1].expand(-1, 4, -1, -1), lambda x, t: x, 2.0)(X, T)
