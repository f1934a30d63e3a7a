"""Noise levels as they are drawn, and weights that mean the same loss whatever is predicted."""

import torch

from unclip.diffusion.loss import min_snr_weight, steps_at
from unclip.diffusion.process import add_noise, target, to_eps
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
