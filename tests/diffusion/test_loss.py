"""Noise levels as they are drawn, and weights that mean the same loss whatever is predicted."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from unclip.diffusion.loss import bound_term, bound_weight, discretised_nll, gaussian_kl, min_snr_weight, steps_at
from unclip.diffusion.process import add_noise, log_variance_bounds, posterior, target, to_eps
from unclip.diffusion.sampling import Denoised
from unclip.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("cosine", 50)


def test_uniform_steps_come_equally_often() -> None:
    drawn = steps_at(SCHEDULE, torch.rand(100_000, generator=torch.Generator().manual_seed(0)), "uniform")
    counts = torch.bincount(drawn, minlength=50).float()
    assert len(counts) == 50
    assert (counts / 2000 - 1).abs().max() < 0.1


def test_more_noise_comes_in_proportion_to_its_level() -> None:
    """P(step < k) is (k / T)^2."""
    drawn = steps_at(SCHEDULE, torch.rand(100_000, generator=torch.Generator().manual_seed(0)), "more-noise")
    for k in (5, 10, 25, 40, 49):
        assert abs((drawn < k).float().mean() - (k / 50) ** 2) < 0.006
    assert drawn.min() >= 0
    assert drawn.max() < 50


def test_min_snr_weights_mean_the_same_loss_on_x0() -> None:
    """Weighted squared errors of x0, eps and v agree when they speak of the same error of x0."""
    x0, eps = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    i = torch.tensor([0, 5, 20, 30, 40, 48])
    x_t = add_noise(SCHEDULE, x0, i, eps)
    wrong = x0 + 0.1
    losses = []
    for prediction in ("x0", "eps", "v"):
        said = {"x0": wrong, "eps": to_eps(SCHEDULE, wrong, x_t, i)}.get(prediction)
        if said is None:
            said = target(SCHEDULE, "v", wrong, i, to_eps(SCHEDULE, wrong, x_t, i))
        error = (said - target(SCHEDULE, prediction, x0, i, eps)).square().mean((1, 2))
        losses.append(error * min_snr_weight(SCHEDULE, prediction, i, 5.0))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-5, atol=1e-8)


def test_divergence_of_gaussians_is_its_integral() -> None:
    p, q = norm(0.3, 0.7), norm(-0.2, 1.4)
    expected, _ = quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -8, 8)
    found = gaussian_kl(*(torch.tensor(value, dtype=torch.float64) for value in (0.3, 2 * math.log(0.7), -0.2, 2 * math.log(1.4))))
    assert found.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.01), (0.4, 0.3), (-0.99, 0.05), (0.999, 2.0)])
def test_the_bins_of_a_picture_share_out_the_whole_gaussian(mean: float, std: float) -> None:
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    nll = discretised_nll(values, values.new_tensor(mean), values.new_tensor(2 * math.log(std)))
    edges = np.concatenate([[-np.inf], values[:-1] + 1 / 255, [np.inf]])
    expected = np.diff(norm(mean, std).cdf(edges))
    np.testing.assert_allclose((-nll).exp(), expected, rtol=1e-6, atol=1e-12)
    assert (-nll).exp().sum() == pytest.approx(1.0)


def test_likelihood_far_off_stays_finite_and_points_back() -> None:
    """In float32, 40 standard deviations away on either side, where the mass itself is 0."""
    mean = torch.tensor([-0.4, 0.4], requires_grad=True)
    nll = discretised_nll(torch.zeros(2), mean, torch.full((2,), 2 * math.log(0.01)))
    torch.testing.assert_close(nll[0], nll[1])
    assert nll.detach().numpy() == pytest.approx(-norm(0.4, 0.01).logcdf(1 / 255), rel=1e-3)
    (gradient,) = torch.autograd.grad(nll.sum(), mean)
    assert gradient[0] < 0 < gradient[1]


def test_the_bound_is_divergence_before_the_last_step_and_likelihood_at_it() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (3, 2, 2, 2), generator=generator).double() / 127.5 - 1
    eps, wrong = torch.randn(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    i = torch.tensor([0, 7, 49])
    x_t = add_noise(SCHEDULE, x0, i, eps)
    said = Denoised(x0 + 0.1 * wrong, torch.full_like(x0, -3.0))
    found = bound_term(SCHEDULE, x0, x_t, i, said)
    mean, _ = posterior(SCHEDULE, said.x0, x_t, i)
    true_mean, variance = posterior(SCHEDULE, x0, x_t, i)
    edges = [np.where(np.abs(edge) > 1, np.sign(edge) * np.inf, edge) for edge in (x0[0].numpy() - 1 / 255, x0[0].numpy() + 1 / 255)]
    gaussian = norm(mean[0], math.exp(-1.5))
    expected = [-np.log(gaussian.cdf(edges[1]) - gaussian.cdf(edges[0])).mean()]
    for row in (1, 2):
        true, ours = variance[row].item(), math.exp(-3.0)
        expected.append((0.5 * (math.log(ours / true) - 1 + (true + (true_mean - mean)[row].square()) / ours)).mean().item())
    np.testing.assert_allclose(found, np.array(expected) / math.log(2), rtol=1e-8)


def test_the_true_posterior_has_no_divergence() -> None:
    x0, eps = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    i = torch.tensor([1, 10, 30, 49])
    x_t = add_noise(SCHEDULE, x0, i, eps)
    least = log_variance_bounds(SCHEDULE)[0][i].reshape(-1, 1, 1, 1).expand_as(x0)
    torch.testing.assert_close(bound_term(SCHEDULE, x0, x_t, i, Denoised(x0, least)), torch.zeros(4, dtype=torch.float64))


def test_the_bound_counts_once_at_a_thousand_steps() -> None:
    assert bound_weight(make_schedule("cosine", 1000)) == pytest.approx(1.0)
    assert bound_weight(make_schedule("cosine", 250)) == pytest.approx(0.25)


def test_the_bound_needs_a_learned_variance() -> None:
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="needs a learned variance"):
        bound_term(SCHEDULE, x, x, torch.tensor([3]), Denoised(x))
