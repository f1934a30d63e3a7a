"""The autoregressive prior: the cache, guidance, temperature and top-p on distributions set by hand, and a mixture that it must learn."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unclip.diffusion.sampling import Noise
from unclip.files import UnclipError
from unclip.prior.autoregressive import AutoregressivePrior, AutoregressivePriorConfig, inverse_cdf, load_autoregressive_prior, probabilities
from unclip.prior.condition import PriorSampling, TextCondition
from unclip.training.config import TrainingConfig
from unclip.training.prior_autoregressive import AutoregressivePriorTraining, token_loss, train_autoregressive_prior

from .conftest import TEXT_WIDTH, Store

E, K = 6, 5
CONFIG = AutoregressivePriorConfig(width=16, depth=2, head_width=8, max_text_tokens=7, num_buckets=12, num_dot_buckets=4)


def make_prior() -> AutoregressivePrior:
    torch.manual_seed(0)
    prior = AutoregressivePrior(CONFIG, emb_width=E, text_width=TEXT_WIDTH, num_components=K).eval()
    for parameter in prior.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return prior


def captions(rows: int = 3, length: int = 4) -> TextCondition:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(length) < torch.tensor([2, 4, 3])[:rows, None]
    return TextCondition(torch.randn(rows, E, generator=generator), torch.randn(rows, length, TEXT_WIDTH, generator=generator), mask)


def tokens(rows: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 4, (rows,), generator=generator), torch.randint(0, 12, (rows, K), generator=generator)


def noise_of(rows: int, seed: int = 5) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(rows, 1 + K, generator=generator)


KEPT, DROPPED = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)


def test_token_by_token_with_a_cache_equals_the_full_pass() -> None:
    prior, condition = make_prior(), captions()
    dot, codes = tokens()
    dot_logits, code_logits = prior(condition, KEPT, dot, codes)
    prefix = prior.transformer.read_prefix(*prior.caption(condition, KEPT))
    said = [torch.zeros(3, CONFIG.width), prior.dot_in(dot), *prior.code_in(codes[:, :-1]).unbind(1)]
    outs = []
    for place, token in enumerate(said):
        out, prefix = prior.transformer.extend((token + prior.positions[place])[:, None], prefix)
        outs.append(out[:, 0])
    torch.testing.assert_close(prior.dot_out(outs[0]), dot_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prior.code_out(torch.stack(outs[1:], dim=1)), code_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_draws_are_what_the_full_pass_would_draw(scale: float) -> None:
    """The codes that `draw` chose are read back, and each is the inverse CDF of the full pass's logits at its own noise."""
    prior, condition = make_prior(), captions()
    sampling = PriorSampling(guidance_scale=scale, temperature=0.8, top_p=0.9)
    dots: list[Tensor] = []
    handle = prior.dot_in.register_forward_hook(lambda module, given, out: dots.append(given[0]))
    drawn = prior.draw(condition, num_samples=2, sampling=sampling, noise=noise_of(6))
    handle.remove()
    codes, u = prior.codes.encode(drawn.flatten(0, 1)), torch.special.ndtr(noise_of(6)().double())
    rows = torch.arange(3).repeat_interleave(2)
    each = TextCondition(condition.text_emb[rows], condition.text_tokens[rows], condition.text_mask[rows])
    dot_logits, given = prior(each, KEPT.repeat(2), dots[0], codes)
    _, ungiven = prior(each, DROPPED.repeat(2), dots[0], codes)
    p = probabilities((ungiven + scale * (given - ungiven)).flatten(0, 1), temperature=0.8, top_p=0.9)
    assert torch.equal(inverse_cdf(p, u[:, 1:].flatten()).reshape(6, K), codes)
    assert torch.equal(inverse_cdf(dot_logits.double().softmax(-1), 0.5 + u[:, 0] / 2), dots[0])


def test_padding_does_not_matter() -> None:
    prior, condition = make_prior(), captions()
    padded = TextCondition(
        condition.text_emb, nn.functional.pad(condition.text_tokens, (0, 0, 0, 2), value=7.0), nn.functional.pad(condition.text_mask, (0, 2))
    )
    for first, second in zip(prior(condition, KEPT, *tokens()), prior(padded, KEPT, *tokens()), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_a_dropped_caption_tells_nothing() -> None:
    prior, condition = make_prior(), captions()
    other = TextCondition(condition.text_emb + 3, condition.text_tokens * 2, condition.text_mask.flip(0))
    for first, second in zip(prior(condition, DROPPED, *tokens()), prior(other, DROPPED, *tokens()), strict=True):
        torch.testing.assert_close(first, second)
    for kept, dropped in zip(prior(condition, KEPT, *tokens()), prior(condition, DROPPED, *tokens()), strict=True):
        assert not torch.allclose(kept, dropped, atol=1e-3)


def test_a_token_sees_those_before_it_and_none_after() -> None:
    prior, condition = make_prior(), captions()
    dot, codes = tokens()
    changed = codes.clone()
    changed[:, 2] = (changed[:, 2] + 5) % 12
    (_, before), (_, after) = prior(condition, KEPT, dot, codes), prior(condition, KEPT, dot, changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-3)
    assert not torch.allclose(before, prior(condition, KEPT, (dot + 1) % 4, codes)[1], atol=1e-3)


def test_temperature_and_top_p_in_closed_form() -> None:
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(probabilities(p.log()), p)
    torch.testing.assert_close(probabilities(p.log() + 3.0, temperature=0.5), p**2 / (p**2).sum())
    torch.testing.assert_close(probabilities(p.log(), temperature=2.0), p**0.5 / (p**0.5).sum())
    torch.testing.assert_close(probabilities(p.log(), top_p=0.6), torch.tensor([[0, 0.4, 0, 0.3]], dtype=torch.float64) / 0.7)  # 0.4 alone is too little
    torch.testing.assert_close(probabilities(p.log(), top_p=0.01), torch.tensor([[0, 1.0, 0, 0]], dtype=torch.float64))


def test_a_uniform_number_becomes_the_value_whose_share_holds_it() -> None:
    p = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1.0], dtype=torch.float64)
    assert inverse_cdf(p.expand(6, -1), u).tolist() == [0, 0, 2, 2, 3, 3]


def set_by_hand(prior: AutoregressivePrior, code_p: list[float], dot_p: list[float]) -> None:
    """Whatever comes before: codes by `code_p`, the dot token by `dot_p`."""
    for layer in (prior.code_out.gaussian, prior.code_out.free, prior.dot_out):
        layer.weight.data.zero_()
    prior.code_out.gaussian.bias.data.copy_(torch.tensor([0.0, 20.0]))  # flat
    prior.code_out.free.bias.data.copy_(torch.tensor(code_p).log())
    prior.dot_out.bias.data.copy_(torch.tensor(dot_p).log())


def test_draws_follow_the_networks_distribution_and_the_dot_token_its_upper_half() -> None:
    prior, condition = make_prior(), captions()
    code_p, dot_p = [0.0] * 4 + [0.5, 0.0, 0.1, 0.4] + [0.0] * 4, [0.3, 0.3, 0.3, 0.1]
    set_by_hand(prior, code_p, dot_p)
    dots: list[Tensor] = []
    prior.dot_in.register_forward_hook(lambda module, given, out: dots.append(given[0]))
    drawn = prior.draw(condition, num_samples=700, sampling=PriorSampling(), noise=noise_of(2100))
    found = torch.bincount(prior.codes.encode(drawn).flatten(), minlength=12) / drawn[..., :K].numel()
    torch.testing.assert_close(found, torch.tensor(code_p), atol=0.02, rtol=0)
    # half of 0.3 0.3 0.3 0.1 is gone from below: 0.1 of the second bucket is left, and all above it
    torch.testing.assert_close(torch.bincount(dots[0], minlength=4) / 2100, torch.tensor([0.0, 0.2, 0.6, 0.2]), atol=0.04, rtol=0)


def test_draws_of_a_row_depend_on_its_own_noise_alone() -> None:
    prior, condition = make_prior(), captions()
    noise = noise_of(6)()
    together = prior.draw(condition, num_samples=2, sampling=PriorSampling(guidance_scale=2.0), noise=lambda: noise)
    alone = TextCondition(condition.text_emb[1:2], condition.text_tokens[1:2], condition.text_mask[1:2])
    torch.testing.assert_close(prior.draw(alone, num_samples=2, sampling=PriorSampling(guidance_scale=2.0), noise=lambda: noise[2:4])[0], together[1])
    assert prior.noise_width == 1 + K
    assert not torch.equal(together[1, 0], together[1, 1])


def test_the_loss_of_a_network_that_knows_nothing_is_the_entropy() -> None:
    loss, parts = token_loss(torch.zeros(3, 4), torch.zeros(3, K, 16), *tokens())
    assert parts["loss_dot"].item() == pytest.approx(np.log(4))
    assert parts["bits_per_code"].item() == pytest.approx(4.0)
    assert loss.item() == pytest.approx((np.log(4) + K * np.log(16)) / (1 + K))


def test_an_untrained_network_says_the_standard_normal() -> None:
    torch.manual_seed(0)
    fine = AutoregressivePrior(dataclasses.replace(CONFIG, num_buckets=512), emb_width=E, text_width=TEXT_WIDTH, num_components=K)
    dot, codes = tokens()
    p = fine(captions(), KEPT, dot, codes)[1].softmax(-1)
    torch.testing.assert_close((p * fine.codes.centres).sum(-1), torch.zeros(3, K), atol=1e-4, rtol=0)
    torch.testing.assert_close((p * fine.codes.centres**2).sum(-1), torch.ones(3, K), atol=1e-3, rtol=0)


def training() -> AutoregressivePriorTraining:
    steps = TrainingConfig(
        num_steps=120, batch_size=32, learning_rate=2e-2, warmup_steps=5, device="cpu", num_threads=1, ema_decays=(0.9,), checkpoint_seconds=1e9
    )
    network = AutoregressivePriorConfig(width=16, depth=1, head_width=8, max_text_tokens=2, num_buckets=17, num_dot_buckets=2, explained=0.98)
    return AutoregressivePriorTraining(network=network, reading="store", training=steps)


def test_a_mixture_is_drawn_in_both_its_modes(make_store: Store, tmp_path: Path) -> None:
    """Each of two captions has its images at -3 and 3 on an axis of its own and at 0 on the other's; the caption favours neither side."""
    rng = np.random.default_rng(0)
    which, side = rng.integers(0, 2, 400), rng.choice([-3.0, 3.0], 400)
    text_emb = np.eye(4)[2 + which] + rng.normal(size=(400, 4)) * 0.02
    image_emb = np.eye(4)[which] * side[:, None] + rng.normal(size=(400, 4)) * 0.05
    prior = load_autoregressive_prior(train_autoregressive_prior(make_store(image_emb, text_emb), tmp_path / "run", training()))
    assert len(prior.codes.stds) == 2
    asked = torch.eye(4)[[2, 3]]
    states = asked.repeat(1, 3).reshape(2, 2, TEXT_WIDTH)
    generator = torch.Generator().manual_seed(3)
    drawn = prior.draw(
        TextCondition(asked, states, torch.ones(2, 2, dtype=torch.bool)),
        num_samples=200,
        sampling=PriorSampling(),
        noise=lambda: torch.randn(400, prior.noise_width, generator=generator),
    )
    for row in range(2):
        own, other = drawn[row, :, row], drawn[row, :, 1 - row]
        assert ((own.abs() - 3).abs() < 0.7).float().mean() > 0.9
        assert (other.abs() < 0.7).float().mean() > 0.9
        assert 0.3 < (own > 0).float().mean() < 0.7


def test_what_does_not_fit_the_network_is_refused(make_store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = make_store(rng.normal(size=(40, E)), rng.normal(size=(40, E)))
    with pytest.raises(UnclipError, match=r"prior\.autoregressive\.network\.max_text_tokens is 1, .* has 2 tokens"):
        train_autoregressive_prior(store, tmp_path / "run", AutoregressivePriorTraining(reading="store", network=AutoregressivePriorConfig(max_text_tokens=1)))
    with pytest.raises(UnclipError, match=r"max_components is 3"):
        train_autoregressive_prior(store, tmp_path / "run", AutoregressivePriorTraining(reading="store", network=AutoregressivePriorConfig(max_components=3)))
