"""What training draws and weighs: the noise level of each sample, and how much its error counts."""

from typing import Literal

import torch
from torch import Tensor

from unclip.diffusion.process import Prediction
from unclip.diffusion.schedule import Schedule

StepSampling = Literal["uniform", "more-noise"]


def draw_steps(schedule: Schedule, num: int, sampling: StepSampling, *, generator: torch.Generator) -> Tensor:
    """The noise levels that a batch is trained at, (num,) indices into the schedule.

    "uniform" is Ho et al. 2020, algorithm 1. "more-noise" draws a level with a probability that grows with it in
    proportion: at much noise the condition alone decides what goes where, which is the slowest thing to learn. (SD3's
    logit-normal, arXiv 2403.03206, was tried: it starves the last steps, where every sample begins.)
    """
    if sampling == "uniform":
        return torch.randint(len(schedule), (num,), generator=generator)
    share = torch.rand(num, generator=generator, dtype=torch.float64).sqrt()
    return (share * len(schedule)).long()


def min_snr_weight(schedule: Schedule, prediction: Prediction, i: Tensor, gamma: float) -> Tensor:
    """(B,) float32 weights of Min-SNR (arXiv 2303.09556): min(SNR, gamma) on x0, as it reads for each prediction."""
    snr = schedule.logsnr.exp().to(i.device)[i]
    on_x0 = snr.clamp(max=gamma)
    weight = {"x0": on_x0, "eps": on_x0 / snr, "v": on_x0 / (snr + 1)}[prediction]
    return weight.to(torch.float32)
