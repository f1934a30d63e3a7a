"""Inpainting of correlated Gaussians, of which it is known what the kept numbers say about the others."""

import pytest
import torch
from torch import Tensor

from unclip.diffusion.inpainting import inpaint_ddim
from unclip.diffusion.sampling import Denoised, Denoiser
from unclip.diffusion.schedule import Schedule, make_schedule, respace

RHO, KNOWN = 0.9, 1.5
COVARIANCE = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)
KEEP = torch.tensor([True, False])


def perfect(schedule: Schedule) -> Denoiser:
    """E[x0 | x_t] of data N(0, COVARIANCE)."""

    def denoiser(x_t: Tensor, i: Tensor) -> Denoised:
        alpha, sigma = schedule.alpha[i[0]], schedule.sigma[i[0]]
        gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(2))
        return Denoised(x_t @ gain.T)

    return denoiser


def inpainted(num: int = 2000, *, steps: int = 25, seed: int = 0, eta: float = 1.0, num_resamples: int = 1, keep: Tensor = KEEP) -> Tensor:
    schedule = respace(make_schedule("cosine", 1000), steps)
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(num, 2, generator=generator, dtype=torch.float64)

    known = torch.full((num, 2), KNOWN, dtype=torch.float64)
    return inpaint_ddim(perfect(schedule), schedule, noise(), known, keep.expand(num, 2), noise, eta=eta, num_resamples=num_resamples)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_is_kept_is_kept_bit_for_bit(eta: float) -> None:
    assert (inpainted(20, eta=eta)[:, 0] == KNOWN).all()


def test_with_resampling_the_rest_comes_to_what_the_kept_part_says() -> None:
    # the conditional is N(RHO * KNOWN, 1 - RHO^2)
    plain, resampled = inpainted(), inpainted(num_resamples=10)
    wanted = RHO * KNOWN
    assert abs(float(resampled[:, 1].mean()) - wanted) < 0.08
    assert abs(float(resampled[:, 1].mean()) - wanted) < 0.3 * abs(float(plain[:, 1].mean()) - wanted)
    assert float(resampled[:, 1].std()) == pytest.approx((1 - RHO**2) ** 0.5, rel=0.3)  # so few steps take some of it


def test_where_nothing_is_kept_the_data_come_back() -> None:
    made = inpainted(keep=torch.tensor([False, False]), steps=100)
    torch.testing.assert_close(torch.cov(made.T), COVARIANCE, atol=0.1, rtol=0)


def test_resampling_at_least_once() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        inpainted(1, num_resamples=0)
