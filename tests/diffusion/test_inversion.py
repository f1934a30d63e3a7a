"""DDIM inversion on Gaussian data, of which denoiser, noise and drift are known exactly."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from unclip.diffusion.inversion import invert_ddim
from unclip.diffusion.sampling import Denoised, Denoiser, sample_ddim
from unclip.diffusion.schedule import Schedule, ScheduleName, make_schedule, respace

STD = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64)  # of each dimension


def perfect(schedule: Schedule) -> Denoiser:
    """E[x0 | x_t] of data N(0, STD^2)."""

    def denoiser(x_t: Tensor, i: Tensor) -> Denoised:
        alpha, sigma = schedule.alpha[i][:, None], schedule.sigma[i][:, None]
        return Denoised(alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x_t)

    return denoiser


def drawn(num: int = 8) -> Tensor:
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * STD


def no_noise() -> Tensor:
    raise AssertionError("eta 0 draws nothing")


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_it_comes_to_the_noise_that_the_flow_leads_to(name: ScheduleName) -> None:
    # along the probability flow a Gaussian keeps its quantiles: x_T is x0 times the ratio of the standard deviations
    x0, errors = drawn(), []
    for steps in (50, 100, 200):
        schedule = respace(make_schedule(name, 1000), steps)
        there = (schedule.alphas_cumprod[-1] * STD**2 + 1 - schedule.alphas_cumprod[-1]).sqrt()
        errors.append(float((invert_ddim(perfect(schedule), schedule, x0) - x0 / STD * there).abs().max()))
    assert errors[2] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.25)  # of first order
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.25)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_drift_of_a_round_trip_vanishes_as_steps_grow(name: ScheduleName) -> None:
    x0, drifts = drawn(), []
    for steps in (25, 50, 100, 200, 500):
        schedule = respace(make_schedule(name, 1000), steps)
        x_T = invert_ddim(perfect(schedule), schedule, x0)
        drifts.append(float((sample_ddim(perfect(schedule), schedule, x_T, no_noise) - x0).abs().max() / x0.abs().max()))
    assert all(later < earlier for earlier, later in pairwise(drifts))
    assert drifts[0] / drifts[2] > 3.0
    assert drifts[-1] < 0.02


def test_one_step_is_closed_form() -> None:
    schedule = respace(make_schedule("cosine", 1000), 2)
    denoiser, x0 = perfect(schedule), drawn(1)
    first = torch.zeros(1, dtype=torch.long)
    alpha, sigma = schedule.alpha, schedule.sigma
    eps = (x0 - alpha[0] * denoiser(x0, first).x0) / sigma[0]
    x = alpha[0] * x0 + sigma[0] * eps
    clean = denoiser(x, first).x0
    torch.testing.assert_close(invert_ddim(denoiser, schedule, x0), alpha[1] * clean + sigma[1] * (x - alpha[0] * clean) / sigma[0])


def test_rows_do_not_mix() -> None:
    schedule = respace(make_schedule("cosine", 1000), 20)
    x0 = drawn()
    torch.testing.assert_close(invert_ddim(perfect(schedule), schedule, x0)[3:4], invert_ddim(perfect(schedule), schedule, x0[3:4]))
