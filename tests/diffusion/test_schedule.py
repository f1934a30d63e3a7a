"""Schedules against their closed forms."""

import math

import pytest
import torch

from unclip.diffusion.schedule import make_schedule, respace, respace_sections


def test_cosine_schedule_follows_its_formula() -> None:
    schedule = make_schedule("cosine", 1000)

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    for step in (0, 1, 499, 900):
        assert schedule.alphas_cumprod[step].item() == pytest.approx(alpha_bar((step + 1) / 1000) / alpha_bar(0), rel=1e-9)
    assert schedule.betas.max().item() == pytest.approx(0.999)


def test_linear_schedule_scales_its_betas_to_its_length() -> None:
    assert make_schedule("linear", 1000).betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    assert make_schedule("linear", 500).betas[[0, -1]].tolist() == pytest.approx([2e-4, 0.04])


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_signal_falls_and_noise_rises_with_t(name: str) -> None:
    schedule = make_schedule(name, 100)  # type: ignore[arg-type]
    assert (schedule.alphas_cumprod.diff() < 0).all()
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(100, dtype=torch.float64))
    torch.testing.assert_close(schedule.logsnr, torch.log(schedule.alpha**2 / schedule.sigma**2))


def test_respacing_keeps_first_and_last_step_and_their_noise() -> None:
    full = make_schedule("cosine", 1000)
    short = respace(full, 10)
    assert short.timesteps.tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert torch.equal(short.alphas_cumprod, full.alphas_cumprod[short.timesteps])
    # the respaced chain has the same marginals: its betas multiply up to the same alphas_cumprod
    torch.testing.assert_close(torch.cumprod(1 - short.betas, 0), short.alphas_cumprod)
    assert respace(full, 1).timesteps.tolist() == [999]
    assert torch.equal(respace(full, 1000).timesteps, full.timesteps)


@pytest.mark.parametrize("steps", [0, 1001])
def test_respacing_refuses_what_the_schedule_has_not(steps: int) -> None:
    with pytest.raises(ValueError, match=r"in \[1, 1000\]"):
        respace(make_schedule("cosine", 1000), steps)


def test_sections_are_respaced_each_by_itself() -> None:
    """GLIDE's upsampler: 10, 10, 3, 2 and 2 steps in the fifths of a thousand."""
    full = make_schedule("cosine", 1000)
    glide = respace_sections(full, (10, 10, 3, 2, 2))
    assert glide.timesteps.tolist() == [
        *(0, 22, 44, 66, 88, 111, 133, 155, 177, 199), *(200, 222, 244, 266, 288, 311, 333, 355, 377, 399), *(400, 500, 599), *(600, 799), *(800, 999),
    ]  # fmt: skip
    assert torch.equal(glide.alphas_cumprod, full.alphas_cumprod[glide.timesteps])
    assert torch.equal(respace_sections(full, (27,)).timesteps, respace(full, 27).timesteps)
    assert respace_sections(full, (1, 1)).timesteps.tolist() == [499, 999]


@pytest.mark.parametrize("steps", [(0, 5), (501, 2)])
def test_a_section_keeps_no_more_than_it_has(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at most the 500"):
        respace_sections(make_schedule("cosine", 1000), steps)
