"""Schedule, posterior and samplers against diffusers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from unclip.diffusion.process import Prediction, add_noise, target
from unclip.diffusion.sampling import make_denoiser, sample_ddim, sample_ddpm, sample_dpm
from unclip.diffusion.schedule import make_schedule, respace

THEIR_PREDICTION = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}
STEPS = 20


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of sample and step will do."""
    return torch.tanh(x_t * 0.7 + torch.cos(t.to(x_t.dtype) / 300)[:, None])


@pytest.mark.parametrize(("ours", "theirs"), [("cosine", "squaredcos_cap_v2"), ("linear", "linear")])
def test_schedules_agree(ours: str, theirs: str) -> None:
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)
    schedule = make_schedule(ours, 1000)  # type: ignore[arg-type]
    torch.testing.assert_close(schedule.alphas_cumprod.float(), reference.alphas_cumprod, atol=1e-6, rtol=2e-3)


def test_noising_and_velocity_agree() -> None:
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    schedule, generator = make_schedule("cosine", 1000), torch.Generator().manual_seed(0)
    x0, eps, i = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator), torch.tensor([0, 100, 500, 998])
    torch.testing.assert_close(add_noise(schedule, x0, i, eps), reference.add_noise(x0, eps, i), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(target(schedule, "v", x0, i, eps), reference.get_velocity(x0, eps, i), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_agrees_step_by_step(prediction: Prediction, eta: float) -> None:
    reference = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=THEIR_PREDICTION[prediction],
        timestep_spacing="linspace",
        clip_sample=True,
        clip_sample_range=1.0,
    )
    reference.set_timesteps(STEPS)
    # diffusers takes t - T/N for the step before; ours is the next of the linspace. Equal where that spacing is even.
    x_T = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    draws = torch.randn(STEPS, 3, 6, generator=torch.Generator().manual_seed(2))
    reference.timesteps = torch.arange(STEPS - 1, -1, -1) * (1000 // STEPS)
    theirs = x_T
    for step, t in enumerate(reference.timesteps):
        output = network(theirs, t.expand(3))
        theirs = reference.step(output, t, theirs, eta=eta, variance_noise=draws[step], use_clipped_model_output=True).prev_sample
    full = make_schedule("cosine", 1000)
    kept = torch.arange(STEPS) * (1000 // STEPS)
    schedule = type(full)(full.alphas_cumprod[kept], full.timesteps[kept])
    left = iter(draws)
    ours = sample_ddim(make_denoiser(network, schedule, prediction, clamp=1.0), schedule, x_T, lambda: next(left), eta=eta)
    # their last step goes to alphas_cumprod[0] unless told otherwise; ours ends at the clean sample
    assert reference.final_alpha_cumprod == 1.0
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_ddpm_agrees_with_linspace_timesteps(prediction: Prediction) -> None:
    reference = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type=THEIR_PREDICTION[prediction],
        variance_type="fixed_small", timestep_spacing="linspace", clip_sample=True, clip_sample_range=1.0,
    )  # fmt: skip
    reference.set_timesteps(STEPS)
    schedule = respace(make_schedule("cosine", 1000), STEPS)
    assert schedule.timesteps.flip(0).tolist() == reference.timesteps.tolist()
    x_T = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))

    # the noise that their step draws, in its order
    generator = torch.Generator().manual_seed(4)
    theirs = x_T
    for t in reference.timesteps:
        theirs = reference.step(network(theirs, t.expand(3)), t, theirs, generator=generator).prev_sample
    same = torch.Generator().manual_seed(4)
    ours = sample_ddpm(make_denoiser(network, schedule, prediction, clamp=1.0), schedule, x_T, lambda: torch.randn(3, 6, generator=same))
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=1e-2)  # their alphas_cumprod are float32
    assert np.isfinite(ours.numpy()).all()


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_dpm_solver_agrees(prediction: Prediction) -> None:
    reference = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type=THEIR_PREDICTION[prediction], algorithm_type="dpmsolver++",
        solver_order=2, solver_type="midpoint", timestep_spacing="linspace", final_sigmas_type="sigma_min", euler_at_final=True,
    )  # fmt: skip
    reference.set_timesteps(STEPS - 1)  # theirs ends at the least noise, from where ours takes x0
    schedule = respace(make_schedule("cosine", 1000), STEPS)
    assert schedule.timesteps.flip(0).tolist() == [*reference.timesteps.tolist(), 0]
    x_T = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    theirs = x_T
    for t in reference.timesteps:
        theirs = reference.step(network(theirs, t.expand(3)), t, theirs).prev_sample
    denoiser = make_denoiser(network, schedule, prediction)
    theirs = denoiser(theirs, torch.zeros(3, dtype=torch.long)).x0
    torch.testing.assert_close(sample_dpm(denoiser, schedule, x_T), theirs, atol=1e-3, rtol=1e-3)  # their alphas_cumprod are float32


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ddpm_with_a_learned_variance_agrees(prediction: Prediction) -> None:
    reference = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type=THEIR_PREDICTION[prediction],
        variance_type="learned_range", timestep_spacing="linspace", clip_sample=True, clip_sample_range=1.0,
    )  # fmt: skip
    reference.set_timesteps(STEPS)
    schedule = respace(make_schedule("cosine", 1000), STEPS)
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))

    def halves(x_t: Tensor, t: Tensor) -> Tensor:
        step = torch.cos(t.to(x_t.dtype) / 300)[:, None, None, None]
        return torch.cat([torch.tanh(x_t * 0.7 + step), torch.sin(3 * x_t + step)], dim=1)

    generator = torch.Generator().manual_seed(4)
    theirs = x_T
    for t in reference.timesteps:
        theirs = reference.step(halves(theirs, t.expand(2)), t, theirs, generator=generator).prev_sample
    same = torch.Generator().manual_seed(4)
    ours = sample_ddpm(make_denoiser(halves, schedule, prediction, clamp=1.0), schedule, x_T, lambda: torch.randn(2, 3, 4, 4, generator=same))
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=1e-2)  # their alphas_cumprod are float32
