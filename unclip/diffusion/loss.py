"""What training draws and weighs: the noise level of each sample, and how much its error counts."""

from typing import Literal

import torch
from torch import Tensor

from unclip.diffusion.process import Prediction
from unclip.diffusion.schedule import Schedule

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
