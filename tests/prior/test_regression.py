"""The regression prior: what it looks at, and that it learns the mean of a caption's images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unclip.files import UnclipError
from unclip.prior.condition import PriorSampling, TextCondition
from unclip.prior.regression import RegressionPrior, RegressionPriorConfig, load_regression_prior
from unclip.training.config import TrainingConfig
from unclip.training.prior_regression import TEMPERATURE, RegressionPriorTraining, contrastive_loss, train_regression_prior

from .conftest import TEXT_WIDTH, Store

E = 4
CONFIG = RegressionPriorConfig(width=16, depth=2, head_width=8, max_text_tokens=7)


def no_noise() -> torch.Tensor:
    raise AssertionError("a regression prior draws nothing")


def captions(rows: int = 3, length: int = 4) -> TextCondition:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(length) < torch.tensor([2, 4, 3])[:rows, None]
    return TextCondition(torch.randn(rows, E, generator=generator), torch.randn(rows, length, TEXT_WIDTH, generator=generator), mask)


def make_prior() -> RegressionPrior:
    torch.manual_seed(0)
    prior = RegressionPrior(CONFIG, emb_width=E, text_width=TEXT_WIDTH).eval()
    prior.emb_mean.copy_(torch.linspace(-1, 1, E))
    prior.emb_std.copy_(torch.linspace(0.5, 2, E))
    return prior


def test_all_draws_are_the_one_answer_unwhitened() -> None:
    prior, condition = make_prior(), captions()
    drawn = prior.draw(condition, num_samples=3, sampling=PriorSampling(guidance_scale=4.0, temperature=0.3), noise=no_noise)
    assert drawn.shape == (3, 3, E)
    for draw in range(3):
        torch.testing.assert_close(prior.whiten(drawn[:, draw]), prior(condition))


def test_padding_does_not_matter() -> None:
    prior, condition = make_prior(), captions()
    padded = TextCondition(
        condition.text_emb, nn.functional.pad(condition.text_tokens, (0, 0, 0, 2), value=7.0), nn.functional.pad(condition.text_mask, (0, 2))
    )
    torch.testing.assert_close(prior(condition), prior(padded), atol=1e-5, rtol=1e-5)


def test_states_and_embedding_of_the_caption_both_matter() -> None:
    prior, condition = make_prior(), captions()
    said = prior(condition)
    assert not torch.allclose(said, prior(TextCondition(condition.text_emb + 0.5, condition.text_tokens, condition.text_mask)), atol=1e-3)
    assert not torch.allclose(said, prior(TextCondition(condition.text_emb, condition.text_tokens + 0.5, condition.text_mask)), atol=1e-3)


def test_a_caption_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="7 tokens .* got 8"):
        make_prior()(TextCondition(torch.zeros(1, E), torch.zeros(1, 8, TEXT_WIDTH), torch.ones(1, 8, dtype=torch.bool)))


def test_the_contrastive_loss_in_closed_form() -> None:
    orthogonal = torch.eye(3)
    scale = 1 / TEMPERATURE
    expected = np.log(1 + 2 * np.exp(-scale))
    assert contrastive_loss(7 * orthogonal, 0.1 * orthogonal).item() == pytest.approx(expected, rel=0.1, abs=1e-7)
    assert contrastive_loss(orthogonal, orthogonal[[1, 2, 0]]).item() == pytest.approx(scale + expected, rel=1e-4)
    assert contrastive_loss(torch.ones(3, 3), orthogonal).item() == pytest.approx(np.log(3), rel=1e-4)


def training(**more: object) -> RegressionPriorTraining:
    steps = TrainingConfig(
        num_steps=100, batch_size=32, learning_rate=1e-2, warmup_steps=5, device="cpu", num_threads=1, ema_decays=(0.9,), checkpoint_seconds=1e9
    )
    network = RegressionPriorConfig(width=16, depth=1, head_width=8, max_text_tokens=2)
    return RegressionPriorTraining(network=network, reading="store", training=steps, **more)  # type: ignore[arg-type]


def test_it_learns_the_mean_of_a_captions_images(make_store: Store, tmp_path: Path) -> None:
    """Each caption has two images, 2 +- 1 along an axis of its own: squared errors are least halfway between them."""
    rng = np.random.default_rng(0)
    which, side = rng.integers(0, 2, 400), rng.choice([-1.0, 1.0], 400)
    text_emb = np.eye(E)[which] + rng.normal(size=(400, E)) * 0.02
    image_emb = np.eye(E)[which] * (2 + side[:, None]) + rng.normal(size=(400, E)) * 0.05
    prior = load_regression_prior(train_regression_prior(make_store(image_emb, text_emb), tmp_path / "run", training(contrastive_weight=0.0)))
    asked = np.eye(E)[[0, 1]]
    states = torch.from_numpy(np.tile(asked, (1, 12))[:, : 2 * TEXT_WIDTH].reshape(2, 2, TEXT_WIDTH)).float()
    condition = TextCondition(torch.from_numpy(asked).float(), states, torch.ones(2, 2, dtype=torch.bool))
    answer = prior.draw(condition, num_samples=1, sampling=PriorSampling(), noise=no_noise)[:, 0]
    torch.testing.assert_close(answer, torch.from_numpy(2 * asked).float(), atol=0.25, rtol=0)


def test_captions_longer_than_the_network_are_refused(make_store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = make_store(rng.normal(size=(8, E)), rng.normal(size=(8, E)))
    with pytest.raises(UnclipError, match=r"prior\.regression\.network\.max_text_tokens is 1, .* has 2 tokens"):
        train_regression_prior(store, tmp_path / "run", RegressionPriorTraining(reading="store", network=RegressionPriorConfig(max_text_tokens=1)))


def test_a_contrast_over_pieces_of_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compares the whole batch.*accumulate 1, got 2"):
        RegressionPriorTraining(training=TrainingConfig(batch_size=32, accumulate=2))
    RegressionPriorTraining(contrastive_weight=0.0, training=TrainingConfig(batch_size=32, accumulate=2))
