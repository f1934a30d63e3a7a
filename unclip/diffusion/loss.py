"""What training draws and weighs: the noise level of each sample, how much its error counts, and what a learned variance learns from."""

import math
from typing import Literal

import torch
from torch import Tensor

from unclip.diffusion.process import Prediction, at, log_variance_bounds, posterior
from unclip.diffusion.sampling import Denoised
from unclip.diffusion.schedule import Schedule

BOUND_WEIGHT = 0.001  # of the variational bound beside the simple loss (Nichol & Dhariwal 2021, section 3.1, lambda)
HALF_BIN = 1 / 255  # pictures of 256 values in [-1, 1]

StepSampling = Literal["uniform", "more-noise"]


def steps_at(schedule: Schedule, share: Tensor, sampling: StepSampling) -> Tensor:
    """The noise levels that a batch is trained at: uniform numbers in [0, 1) of any shape -> indices into the schedule.

    "uniform" is Ho et al. 2020, algorithm 1. "more-noise" gives a level a probability that grows with it in
    proportion: at much noise the condition alone decides what goes where, which is the slowest thing to learn. (SD3's
    logit-normal, arXiv 2403.03206, was tried: it starves the last steps, where every sample begins.)
    """
    return ((share.sqrt() if sampling == "more-noise" else share) * len(schedule)).long()


def min_snr_weight(schedule: Schedule, prediction: Prediction, i: Tensor, gamma: float) -> Tensor:
    """(B,) float32 weights of Min-SNR (arXiv 2303.09556): min(SNR, gamma) on x0, as it reads for each prediction."""
    snr = schedule.logsnr.exp().to(i.device)[i]
    on_x0 = snr.clamp(max=gamma)
    weight = {"x0": on_x0, "eps": on_x0 / snr, "v": on_x0 / (snr + 1)}[prediction]
    return weight.to(torch.float32)


def bound_term(schedule: Schedule, x0: Tensor, x_t: Tensor, i: Tensor, denoised: Denoised) -> Tensor:
    """(B,) bits a dimension: each row's term of the variational bound (Ho et al. 2020, eq. 5).

    At the last step (i = 0) it is the likelihood of the picture's 256 values, before it the divergence of the step said
    from the true posterior. All that is said must be of a learned variance; x0 may be clamped, as in sampling.
    """
    if denoised.log_variance is None:
        raise ValueError("the variational bound needs a learned variance; expected a denoised with log_variance, got None")
    true_mean, _ = posterior(schedule, x0, x_t, i)
    mean, _ = posterior(schedule, denoised.x0, x_t, i)
    divergence = gaussian_kl(true_mean, at(log_variance_bounds(schedule)[0], i, x_t), mean, denoised.log_variance)
    is_last = (i == 0).to(x0.device).reshape(-1, *[1] * (x0.ndim - 1))
    # elsewhere at variance 1, since even a gradient that counts for nothing must be finite
    likelihood = discretised_nll(x0, mean, torch.where(is_last, denoised.log_variance, 0.0))
    return torch.where(is_last, likelihood, divergence).flatten(1).mean(dim=1) / math.log(2)


def bound_weight(schedule: Schedule) -> float:
    """What a row's term counts beside its simple loss: lambda times the number of steps, of which one was drawn."""
    return BOUND_WEIGHT * len(schedule)


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, e^log_variance) || N(other ...)) in nats, elementwise."""
    apart = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (other_log_variance - log_variance - 1 + (log_variance - other_log_variance).exp() + apart)


def discretised_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the Gaussian's mass in the bin of x0, in nats: 256 bins over [-1, 1], the outer two open (Ho et al. 2020, eq. 13)."""
    std = (0.5 * log_variance).exp()
    low = ((x0 - HALF_BIN - mean) / std).masked_fill(x0 < HALF_BIN - 1, -math.inf)
    high = ((x0 + HALF_BIN - mean) / std).masked_fill(x0 > 1 - HALF_BIN, math.inf)
    # mirrored into the lower tail, where the difference of two small numbers keeps its digits
    is_above = low + high > 0
    low, high = torch.where(is_above, -high, low), torch.where(is_above, -low, high)
    less, more = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return -(more + torch.log1p(-(less - more).exp()))
