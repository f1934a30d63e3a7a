"""The forward process and the three predictions are one another's inverses."""

import pytest
import torch

from unclip.diffusion.process import Prediction, add_noise, posterior, target, to_eps, to_x0
from unclip.diffusion.schedule import make_schedule

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
