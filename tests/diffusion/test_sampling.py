"""Samplers with the perfect denoiser of a Gaussian must land on that Gaussian, and on both modes of a mixture."""

import pytest
import torch
from torch import Tensor

from unclip.diffusion.process import add_noise, log_variance_bounds, to_eps
from unclip.diffusion.sampling import Denoised, Denoiser, Noise, SamplerName, analytic_variance, make_denoiser, sample, sample_ddim
from unclip.diffusion.schedule import Schedule, make_schedule, respace

# whitened data: unit variances, and correlations that whitening each dimension leaves
MEAN = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 1.0]], dtype=torch.float64)
NUM = 20_000
ALL: list[SamplerName] = ["ddpm", "analytic", "ddim", "dpm++"]


def gaussian_denoiser(schedule: Schedule, covariance: Tensor = COVARIANCE) -> Denoiser:
    """E[x0 | x_t] for x0 ~ N(MEAN, covariance), in closed form."""

    def denoiser(x_t: Tensor, i: Tensor) -> Denoised:
        alpha, sigma = schedule.alpha[i[0]], schedule.sigma[i[0]]
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(3, dtype=torch.float64))
        return Denoised(MEAN + (x_t - alpha * MEAN) @ gain.T)

    return denoiser


def gaussian_eps_square(schedule: Schedule, covariance: Tensor = COVARIANCE) -> Tensor:
    """E||eps_hat||^2 / d of that denoiser: eps_hat is sigma_t * inv(alpha_t^2 * covariance + sigma_t^2) * (x_t - alpha_t * MEAN)."""
    spread = torch.linalg.eigvalsh(covariance)
    return (schedule.sigma[:, None] ** 2 / (schedule.alpha[:, None] ** 2 * spread + schedule.sigma[:, None] ** 2)).mean(dim=1)


def noise(seed: int) -> "torch.Generator":
    return torch.Generator().manual_seed(seed)


def normal(seed: int, num: int = NUM, width: int = 3) -> Noise:
    generator = noise(seed)
    return lambda: torch.randn(num, width, generator=generator, dtype=torch.float64)


def draw(name: SamplerName, steps: int, covariance: Tensor = COVARIANCE, *, eta: float = 0.0) -> Tensor:
    full, fresh = make_schedule("cosine", 1000), normal(0)
    schedule = respace(full, steps)
    return sample(name, gaussian_denoiser(schedule, covariance), schedule, fresh(), fresh, eta=eta, eps_square=gaussian_eps_square(full, covariance))


@pytest.mark.parametrize(
    ("name", "steps", "eta"),
    [("ddpm", 500, 0.0), ("analytic", 100, 0.0), ("ddim", 100, 0.0), ("ddim", 200, 0.5), ("ddim", 300, 1.0), ("dpm++", 25, 0.0)],
)
def test_every_sampler_lands_on_the_gaussian(name: SamplerName, steps: int, eta: float) -> None:
    x = draw(name, steps, eta=eta)
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, atol=0.03, rtol=0)


@pytest.mark.parametrize("steps", [5, 10])
def test_analytic_variance_is_exact_at_few_steps(steps: int) -> None:
    """Where all directions have one variance, a step's distribution is the Gaussian that the sampler takes it for."""
    covariance = 0.5 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(draw("analytic", steps, covariance).T.cov(), covariance, atol=0.015, rtol=0)
    assert draw("ddpm", steps, covariance).var(0).mean() < 0.35


def test_analytic_variance_is_nearly_right_at_ten_steps_where_the_fixed_one_falls_short() -> None:
    analytic, fixed = draw("analytic", 10).var(0).mean(), draw("ddpm", 10).var(0).mean()
    assert analytic == pytest.approx(1.0, abs=0.06)
    assert fixed < 0.7


def test_analytic_variance_stays_within_that_of_whitened_data() -> None:
    """A mean square that is measured a little wrong means anything at alpha 5e-5; the bounds keep that from mattering."""
    full = make_schedule("cosine", 1000)
    schedule = respace(full, 10)
    of_x0 = schedule.alphas_cumprod_prev * (schedule.betas / (1 - schedule.alphas_cumprod)).square()
    torch.testing.assert_close(analytic_variance(schedule, torch.full((1000,), -1e9)), of_x0)
    assert (analytic_variance(schedule, torch.full((1000,), 1.001)) == 0).all()


def test_second_order_needs_fewer_steps() -> None:
    errors = {name: (draw(name, 15).T.cov() - COVARIANCE).abs().max() for name in ("ddim", "dpm++")}  # type: ignore[arg-type]
    assert errors["dpm++"] < 0.04
    assert errors["ddim"] > 0.12


SHARE, CENTRE, SPREAD = 0.3, 1.0, 0.2  # modes at -CENTRE with SHARE of the samples and at +CENTRE with the rest


def mixture_denoiser(schedule: Schedule) -> Denoiser:
    """E[x0 | x_t] for two modes along the first of three dimensions, in closed form."""
    centres = torch.tensor([[-CENTRE, 0.0, 0.0], [CENTRE, 0.0, 0.0]], dtype=torch.float64)
    shares = torch.tensor([SHARE, 1 - SHARE], dtype=torch.float64)

    def denoiser(x_t: Tensor, i: Tensor) -> Denoised:
        alpha, sigma = schedule.alpha[i[0]], schedule.sigma[i[0]]
        variance = alpha**2 * SPREAD**2 + sigma**2
        off = x_t[:, None] - alpha * centres  # (B, 2, 3)
        mode = torch.softmax(shares.log() - off.square().sum(2) / (2 * variance), dim=1)
        return Denoised((mode[..., None] * (centres + alpha * SPREAD**2 / variance * off)).sum(1))

    return denoiser


def mixture_eps_square(schedule: Schedule, num: int = 2_000) -> Tensor:
    """Its E||eps_hat||^2 / d, measured."""
    fresh = normal(7, num)
    x0 = SPREAD * fresh()
    x0[:, 0] += torch.where(torch.arange(num) < SHARE * num, -CENTRE, CENTRE)
    measured = []
    for step in range(len(schedule)):
        i, eps = torch.full((num,), step), fresh()
        x_t = add_noise(schedule, x0, i, eps)
        measured.append(1 + (to_eps(schedule, mixture_denoiser(schedule)(x_t, i).x0, x_t, i).square() - eps.square()).mean())
    return torch.stack(measured)


@pytest.mark.parametrize("name", ALL)
def test_both_modes_of_a_mixture_come_in_their_shares(name: SamplerName) -> None:
    full, fresh = make_schedule("cosine", 1000), normal(8)
    schedule = respace(full, 50)
    eps_square = torch.ones(1000, dtype=torch.float64)
    eps_square[schedule.timesteps] = mixture_eps_square(schedule)
    x = sample(name, mixture_denoiser(schedule), schedule, fresh(), fresh, eps_square=eps_square)
    below = x[:, 0] < 0
    assert below.double().mean() == pytest.approx(SHARE, abs=0.02)
    for mode, centre in ((x[below], -CENTRE), (x[~below], CENTRE)):
        torch.testing.assert_close(mode.mean(0), torch.tensor([centre, 0.0, 0.0], dtype=torch.float64), atol=0.03, rtol=0)
        torch.testing.assert_close(mode.std(0), torch.full((3,), SPREAD, dtype=torch.float64), atol=0.04, rtol=0)


def test_ddim_with_eta_one_is_ancestral_sampling() -> None:
    schedule = respace(make_schedule("cosine", 1000), 7)
    x_T = normal(2, 5)()
    runs = []
    for run in ("ddpm", "ddim"):
        runs.append(sample(run, gaussian_denoiser(schedule), schedule, x_T, normal(3, 5), eta=1.0 if run == "ddim" else 0.0))  # type: ignore[arg-type]
    torch.testing.assert_close(runs[0], runs[1])


def test_one_step_is_the_denoised_noise() -> None:
    full = make_schedule("cosine", 1000)
    schedule = respace(full, 1)
    x_T = normal(4, 3)()
    expected = gaussian_denoiser(schedule)(x_T, torch.zeros(3, dtype=torch.long)).x0
    for name in ALL:
        x = sample(name, gaussian_denoiser(schedule), schedule, x_T, lambda: torch.zeros(3, 3), eps_square=gaussian_eps_square(full))
        torch.testing.assert_close(x, expected)


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
    assert denoiser(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)).x0.max() == 1.0


def learned_share(schedule: Schedule) -> Tensor:
    """(T,) what the variance half must say for the variance that the analytic sampler has for the Gaussian."""
    least, most = log_variance_bounds(schedule)
    fixed = schedule.betas * (1 - schedule.alphas_cumprod_prev) / (1 - schedule.alphas_cumprod)
    wanted = (fixed + analytic_variance(schedule, gaussian_eps_square(make_schedule("cosine", 1000)))).clamp(min=1e-30).log()
    return 2 * (wanted - least) / (most - least) - 1


def test_a_learned_variance_is_sampled_with() -> None:
    """A network that says the exact variance as its learned one samples as the analytic sampler does."""
    schedule, fresh = respace(make_schedule("cosine", 1000), 10), normal(0)
    plain, share = gaussian_denoiser(schedule), learned_share(schedule)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        i = torch.searchsorted(schedule.timesteps, t)
        return torch.cat([plain(x_t, i).x0, share[i][:, None].expand_as(x_t)], dim=1)

    found = sample("ddpm", make_denoiser(network, schedule, "x0"), schedule, fresh(), fresh)
    torch.testing.assert_close(found, draw("analytic", 10))


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_deterministic_samplers_see_x0_alone(name: SamplerName) -> None:
    schedule, x_T = respace(make_schedule("cosine", 1000), 6), normal(1, 4)()
    plain = gaussian_denoiser(schedule)
    runs = [sample(name, denoiser, schedule, x_T, lambda: x_T) for denoiser in (plain, lambda x, i: Denoised(plain(x, i).x0, torch.full_like(x, 9.0)))]
    assert torch.equal(runs[0], runs[1])


def test_eta_without_ddim_is_refused() -> None:
    schedule = respace(make_schedule("cosine", 1000), 4)
    with pytest.raises(ValueError, match="eta is a setting of the ddim sampler"):
        sample("ddpm", lambda x, i: Denoised(x), schedule, torch.zeros(1, 1), lambda: torch.zeros(1, 1), eta=0.5)


def test_analytic_sampling_needs_what_was_measured() -> None:
    schedule = respace(make_schedule("cosine", 1000), 4)
    with pytest.raises(ValueError, match="needs eps_square"):
        sample("analytic", lambda x, i: Denoised(x), schedule, torch.zeros(1, 1), lambda: torch.zeros(1, 1))
