"""Samplers with the perfect denoiser of a Gaussian must land on that Gaussian."""

import pytest
import torch
from torch import Tensor

from unclip.diffusion.guidance import guided
from unclip.diffusion.process import at
from unclip.diffusion.sampling import Denoiser, make_denoiser, sample, sample_ddim, sample_ddpm
from unclip.diffusion.schedule import Schedule, make_schedule, respace

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
STD = torch.tensor([0.5, 1.5], dtype=torch.float64)
NUM = 20_000


def gaussian_denoiser(schedule: Schedule) -> Denoiser:
    """E[x0 | x_t] for x0 ~ N(MEAN, STD^2), in closed form."""

    def denoiser(x_t: Tensor, i: Tensor) -> Tensor:
        alpha, sigma = at(schedule.alpha, i, x_t), at(schedule.sigma, i, x_t)
        gain = STD**2 * alpha / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN)

    return denoiser


def noise(seed: int) -> "torch.Generator":
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 100), (0.5, 200), (1.0, 400)])
def test_ddim_lands_on_the_gaussian(eta: float, steps: int) -> None:
    schedule, generator = respace(make_schedule("cosine", 1000), steps), noise(0)
    x_T = torch.randn(NUM, 2, generator=generator, dtype=torch.float64)
    x = sample_ddim(gaussian_denoiser(schedule), schedule, x_T, lambda: torch.randn(NUM, 2, generator=generator, dtype=torch.float64), eta=eta)
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.04, rtol=0)
    torch.testing.assert_close(x.std(0), STD, atol=0.03, rtol=0.02)


def test_ancestral_sampling_lands_on_the_gaussian() -> None:
    schedule, generator = make_schedule("cosine", 1000), noise(1)
    x_T = torch.randn(NUM, 2, generator=generator, dtype=torch.float64)
    x = sample_ddpm(gaussian_denoiser(schedule), schedule, x_T, lambda: torch.randn(NUM, 2, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.04, rtol=0)
    torch.testing.assert_close(x.std(0), STD, atol=0.03, rtol=0.02)


def test_ddim_with_eta_one_is_ancestral_sampling() -> None:
    schedule = respace(make_schedule("cosine", 1000), 7)
    x_T = torch.randn(5, 2, generator=noise(2), dtype=torch.float64)
    runs = []
    for run in ("ddpm", "ddim"):
        generator = noise(3)

        def draw(generator: torch.Generator = generator) -> Tensor:
            return torch.randn(5, 2, generator=generator, dtype=torch.float64)

        runs.append(sample(run, gaussian_denoiser(schedule), schedule, x_T, draw, eta=1.0 if run == "ddim" else 0.0))  # type: ignore[arg-type]
    torch.testing.assert_close(runs[0], runs[1])


def test_one_step_is_the_denoised_noise() -> None:
    schedule = respace(make_schedule("cosine", 1000), 1)
    x_T = torch.randn(3, 2, generator=noise(4), dtype=torch.float64)
    expected = gaussian_denoiser(schedule)(x_T, torch.zeros(3, dtype=torch.long))
    for name in ("ddpm", "ddim"):
        torch.testing.assert_close(sample(name, gaussian_denoiser(schedule), schedule, x_T, lambda: torch.zeros(3, 2)), expected)  # type: ignore[arg-type]


def test_the_network_is_told_the_original_steps() -> None:
    told: list[int] = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        told.append(int(t[0]))
        return x_t

    schedule = respace(make_schedule("cosine", 1000), 4)
    sample_ddim(make_denoiser(network, schedule, "x0"), schedule, torch.zeros(2, 2), lambda: torch.zeros(2, 2))
    assert told == [999, 666, 333, 0]


def test_clamp_bounds_what_the_sampler_sees() -> None:
    schedule = respace(make_schedule("cosine", 1000), 4)
    denoiser = make_denoiser(lambda x, t: torch.full_like(x, 9.0), schedule, "x0", clamp=1.0)
    assert denoiser(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)).max() == 1.0


def test_guidance_of_one_is_the_conditional_network_itself() -> None:
    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return x + 1

    assert guided(conditional, lambda x, t: x, 1.0) is conditional


def test_guidance_moves_away_from_the_unconditional() -> None:
    network = guided(lambda x, t: x + 1, lambda x, t: x - 1, 3.0)
    torch.testing.assert_close(network(torch.zeros(2), torch.zeros(2)), torch.full((2,), 5.0))


def test_eta_without_ddim_is_refused() -> None:
    schedule = respace(make_schedule("cosine", 1000), 4)
    with pytest.raises(ValueError, match="eta is a setting of the ddim sampler"):
        sample("ddpm", lambda x, i: x, schedule, torch.zeros(1, 1), lambda: torch.zeros(1, 1), eta=0.5)
