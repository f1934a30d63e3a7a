"""The decoder's loss: what it equals for networks that are known, where its gradients go, and what conditions it draws."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from unclip.decoder import Decoder, DecoderCondition, DecoderConfig
from unclip.diffusion.loss import bound_term, min_snr_weight
from unclip.diffusion.process import Prediction, add_noise, target
from unclip.diffusion.sampling import read_output
from unclip.diffusion.schedule import make_schedule
from unclip.nn.unet import UNetConfig
from unclip.training.decoder import DecoderStageConfig
from unclip.training.decoder_loss import DecoderBatch, decoder_loss
from unclip.training.draws import Draws

UNET = UNetConfig(image_size=8, channels=16, channel_mult=(1, 2), depth=1, attention_sizes=(4,), head_width=16)
NETWORK = DecoderConfig(unet=UNET, step_width=16, context_width=8)
SCHEDULE = make_schedule("cosine", 1000)


def make_batch(num: int = 6) -> DecoderBatch:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (num, 3, 8, 8), generator=generator) / 127.5 - 1
    image_emb, text_tokens, text_emb = (torch.randn(shape, generator=generator) for shape in ((num, 6), (num, 4, 5), (num, 6)))
    return DecoderBatch(pictures, image_emb, text_tokens, torch.ones(num, 4, dtype=torch.bool), text_emb)


class Said(nn.Module):
    """A network that says the same everywhere, and keeps what it was asked."""

    def __init__(self, mean: float, variance: float | None = None) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.variance = None if variance is None else nn.Parameter(torch.tensor(variance))

    def forward(self, x_t: Tensor, t: Tensor, condition: DecoderCondition) -> Tensor:
        self.x_t, self.t, self.condition = x_t, t, condition
        mean = self.mean.expand_as(x_t)
        return mean if self.variance is None else torch.cat([mean, self.variance.expand_as(x_t)], dim=1)


def loss_of(said: Said, config: DecoderStageConfig, num: int = 6) -> tuple[Tensor, dict[str, Tensor]]:
    model = Decoder(config.network, emb_width=6, text_width=5)
    loss, numbers = decoder_loss(said, model, make_batch(num), Draws(1, 2), config)
    return loss, dict(numbers)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_the_simple_loss_is_the_weighed_error_of_what_should_be_said(prediction: Prediction, gamma: float) -> None:
    config = DecoderStageConfig(network=dataclasses.replace(NETWORK, prediction=prediction), min_snr_gamma=gamma)
    said, x0 = Said(0.3), make_batch().pictures
    loss, _ = loss_of(said, config)
    eps = (said.x_t - SCHEDULE.alpha[said.t].float().reshape(-1, 1, 1, 1) * x0) / SCHEDULE.sigma[said.t].float().reshape(-1, 1, 1, 1)
    errors = (0.3 - target(SCHEDULE, prediction, x0, said.t, eps)).square().mean((1, 2, 3))
    if gamma:
        errors = errors * min_snr_weight(SCHEDULE, prediction, said.t, gamma)
    torch.testing.assert_close(loss, errors.mean(), rtol=1e-4, atol=1e-5)


def test_the_hybrid_loss_adds_the_bound_and_steers_the_mean_by_the_simple_loss_alone() -> None:
    plain, learned = (DecoderStageConfig(network=dataclasses.replace(NETWORK, prediction="v", learned_variance=learned)) for learned in (False, True))
    simple, _ = loss_of(alone := Said(0.3), plain)
    hybrid, numbers = loss_of(said := Said(0.3, 0.2), learned)
    output = torch.cat([torch.full_like(said.x_t, 0.3), torch.full_like(said.x_t, 0.2)], dim=1)
    denoised = read_output(SCHEDULE, "v", output, said.x_t, said.t, clamp=1.0)
    bound = bound_term(SCHEDULE, make_batch().pictures, said.x_t, said.t, denoised).mean()
    torch.testing.assert_close(numbers["bound"], bound)
    torch.testing.assert_close(hybrid, simple + bound)  # at a thousand steps the bound counts once
    simple.backward()
    hybrid.backward()
    assert said.variance is not None
    torch.testing.assert_close(said.mean.grad, alone.mean.grad)
    assert said.variance.grad is not None
    assert said.variance.grad.isfinite()
    assert said.variance.grad != 0


def test_the_variance_that_the_bound_asks_for_is_found() -> None:
    """At x0 = 0 said for pictures of a known spread, the best variance is in closed form; descent on the bound finds it."""
    schedule, i, spread = make_schedule("cosine", 100), torch.full((1000,), 60), 0.4
    generator = torch.Generator().manual_seed(0)
    x0, eps = spread * torch.randn(1000, 1, 1, 1, generator=generator), torch.randn(1000, 1, 1, 1, generator=generator)
    x_t = add_noise(schedule, x0, i, eps)
    said = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([said], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        output = torch.cat([torch.zeros_like(x_t), said.expand_as(x_t)], dim=1)
        bound_term(schedule, x0, x_t, i, read_output(schedule, "x0", output, x_t, i)).mean().backward()
        optimizer.step()
    before, now, beta = schedule.alphas_cumprod_prev[60], schedule.alphas_cumprod[60], schedule.betas[60]
    best = beta * (1 - before) / (1 - now) + before * (beta / (1 - now)) ** 2 * x0.double().square().mean()
    found = read_output(schedule, "x0", torch.cat([x_t, said.detach().expand_as(x_t)], dim=1), x_t, i).log_variance
    assert found is not None
    assert found[0].exp().item() == pytest.approx(best.item(), rel=0.01)


def test_a_network_trains_with_everything_on() -> None:
    network = dataclasses.replace(NETWORK, prediction="eps", learned_variance=True, condition_noise=500, text_to_step=True, num_null_text=2)
    config = DecoderStageConfig(network=network, min_snr_gamma=5.0)
    torch.manual_seed(0)
    model = Decoder(network, emb_width=6, text_width=5)
    optimizer, batch = torch.optim.Adam(model.parameters(), lr=3e-3), make_batch(16)
    losses = []
    for step in range(30):
        loss, _ = decoder_loss(model, model, batch, Draws(0, step), config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_each_condition_is_dropped_at_its_own_rate() -> None:
    config = DecoderStageConfig(network=NETWORK, drop_image_prob=0.1, drop_text_prob=0.5, drop_both_prob=0.2)
    loss_of(said := Said(0.0), config, 4000)
    image, text = said.condition.keep_image, said.condition.keep_text
    assert image.float().mean() == pytest.approx(0.9 * 0.8, abs=0.03)
    assert text.float().mean() == pytest.approx(0.5 * 0.8, abs=0.03)
    assert (image & text).float().mean() == pytest.approx(0.9 * 0.5 * 0.8, abs=0.03)


def test_condition_noise_is_drawn_up_to_its_highest_level_and_told() -> None:
    config = DecoderStageConfig(network=dataclasses.replace(NETWORK, condition_noise=200))
    loss_of(said := Said(0.0), config, 4000)
    level = said.condition.noise_level
    assert level is not None
    assert (level.min(), level.max()) == (0, 200)
    assert level.float().mean() == pytest.approx(100, abs=4)
    clean, off = make_batch(4000).image_emb, said.condition.image_emb
    assert torch.equal(off[level == 0], clean[level == 0])
    schedule = make_schedule("cosine", 1000)
    high = level > 190
    residual = off[high] - schedule.alpha[level[high] - 1].float()[:, None] * clean[high]
    assert residual.std() == pytest.approx(schedule.sigma[194].item(), rel=0.1)


def test_what_is_drawn_without_condition_noise_is_drawn_the_same_with_it() -> None:
    plain, noised = Said(0.0), Said(0.0)
    loss_of(plain, DecoderStageConfig(network=NETWORK))
    loss_of(noised, DecoderStageConfig(network=dataclasses.replace(NETWORK, condition_noise=200)))
    assert torch.equal(plain.x_t, noised.x_t)
    assert torch.equal(plain.condition.keep_text, noised.condition.keep_text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": dataclasses.replace(NETWORK, text_states=False)}, "drop_text_prob has no effect"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma must be at least 0"),
        ({"drop_both_prob": 1.5}, r"drop_both_prob must be in \[0, 1\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderStageConfig(**settings)  # type: ignore[arg-type]
