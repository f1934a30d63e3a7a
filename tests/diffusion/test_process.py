"""The forward process and the three predictions are one another's inverses."""

import pytest
import torch

from unclip.diffusion.process import Prediction, add_noise, log_variance, posterior, target, to_eps, to_x0
from unclip.diffusion.schedule import make_schedule, respace

SCHEDULE = make_schedule("cosine", 50)


def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64)
    return x0, eps, torch.tensor([0, 5, 20, 30, 40, 48])


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_a_perfect_output_gives_back_sample_and_noise(prediction: Prediction) -> None:
    x0, eps, i = draws()
    x_t = add_noise(SCHEDULE, x0, i, eps)
    found = to_x0(SCHEDULE, prediction, target(SCHEDULE, prediction, x0, i, eps), x_t, i)
    torch.testing.assert_close(found, x0)
    torch.testing.assert_close(to_eps(SCHEDULE, found, x_t, i), eps)


def test_posterior_is_bayes_rule() -> None:
    """q(x_{t-1} | x_t, x0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x0): a product of two Gaussians."""
    x0, eps, i = draws()
    i = i.clamp(min=1)
    x_t = add_noise(SCHEDULE, x0, i, eps)
    before, beta = SCHEDULE.alphas_cumprod_prev[i].reshape(-1, 1, 1), SCHEDULE.betas[i].reshape(-1, 1, 1)
    precision = 1 / (1 - before) + (1 - beta) / beta
    expected = (before.sqrt() * x0 / (1 - before) + (1 - beta).sqrt() * x_t / beta) / precision
    mean, variance = posterior(SCHEDULE, x0, x_t, i)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(variance, 1 / precision)


def test_a_learned_variance_lies_between_beta_and_the_posterior_variance() -> None:
    """v = 1 is beta_t, v = -1 the posterior variance, v = 0 their geometric mean (Nichol & Dhariwal 2021, eq. 15)."""
    x0, _, i = draws()
    i = i.clamp(min=1)
    beta = SCHEDULE.betas[i].reshape(-1, 1, 1).expand_as(x0)
    least = posterior(SCHEDULE, x0, x0, i)[1].expand_as(x0)
    torch.testing.assert_close(log_variance(SCHEDULE, torch.ones_like(x0), i).exp(), beta)
    torch.testing.assert_close(log_variance(SCHEDULE, -torch.ones_like(x0), i).exp(), least)
    torch.testing.assert_close(log_variance(SCHEDULE, torch.zeros_like(x0), i).exp(), (beta * least).sqrt())


def test_the_first_steps_least_variance_is_that_of_the_second() -> None:
    said, first, second = -torch.ones(1, 2, dtype=torch.float64), torch.tensor([0]), torch.tensor([1])
    assert torch.equal(log_variance(SCHEDULE, said, first), log_variance(SCHEDULE, said, second))
    assert log_variance(respace(SCHEDULE, 1), said, first).isfinite().all()
