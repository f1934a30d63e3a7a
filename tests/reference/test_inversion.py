"""DDIM inversion against that of diffusers, with the network told the same step."""

import warnings
from itertools import pairwise

import pytest
import torch

from unclip.diffusion.inversion import invert_ddim
from unclip.diffusion.process import Prediction
from unclip.diffusion.sampling import make_denoiser
from unclip.diffusion.schedule import Schedule, make_schedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import DDIMInverseScheduler

STEPS = 20
THEIR_PREDICTION = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}


def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Anything smooth."""
    return torch.tanh(x_t * 1.3 + t[:, None] / 500 - 1)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_inversion_agrees(prediction: Prediction, name: str) -> None:
    theirs_named = {"cosine": "squaredcos_cap_v2", "linear": "linear"}[name]
    reference = DDIMInverseScheduler(
        num_train_timesteps=1000, beta_schedule=theirs_named, beta_start=1e-4, beta_end=0.02, prediction_type=THEIR_PREDICTION[prediction], clip_sample=False
    )
    reference.set_timesteps(STEPS)
    whole = make_schedule("cosine" if name == "cosine" else "linear", 1000)
    kept = reference.timesteps
    schedule = Schedule(whole.alphas_cumprod[kept], whole.timesteps[kept])
    denoiser = make_denoiser(network, schedule, prediction)
    x0 = torch.rand(3, 6, generator=torch.Generator().manual_seed(6)) * 2 - 1

    # Their step to t reads what the network says as being one kept step below t; the network is told that step here, as ours is.
    # Their way into the first one differs (they read clean data as free of noise), so both begin after it.
    first = torch.zeros(3, dtype=torch.long)
    said = denoiser(x0, first).x0
    theirs = schedule.alpha[0].float() * x0 + (x0 - schedule.alpha[0].float() * said)
    for before, t in pairwise(kept):
        theirs = reference.step(network(theirs, before.expand(3)), t, theirs).prev_sample
    torch.testing.assert_close(invert_ddim(denoiser, schedule, x0), theirs, atol=2e-3, rtol=5e-3)  # their alphas_cumprod are float32
