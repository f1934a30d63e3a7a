"""The diffusion prior: causality, the shared prefix, what a hidden caption may still tell, self-conditioning, sampling, and its size."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unclip.config import load_config
from unclip.diffusion.process import Prediction, target
from unclip.diffusion.sampling import Noise, SamplerName
from unclip.files import UnclipError
from unclip.nn.transformer import CausalTransformer, Prefix
from unclip.prior.condition import PriorSampling, TextCondition, best_of, similarities
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig

E, S = 6, 5
SAMPLERS: list[SamplerName] = ["ddpm", "analytic", "ddim", "dpm++"]


def make_prior(depth: int = 2, *, self_condition: bool = False, prediction: Prediction = "x0") -> DiffusionPrior:
    torch.manual_seed(0)
    config = DiffusionPriorConfig(width=16, depth=depth, head_width=8, max_text_tokens=7, self_condition=self_condition, prediction=prediction)
    prior = DiffusionPrior(config, emb_width=E, text_width=S).eval()
    for mean, std in ((prior.emb_mean, prior.emb_std), (prior.caption.text_mean, prior.caption.text_std)):
        mean.copy_(torch.linspace(-1, 1, E))
        std.copy_(torch.linspace(0.5, 2, E))
    prior.eps_square.fill_(0.9)
    return prior


def captions(rows: int = 3, length: int = 4) -> TextCondition:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(length) < torch.tensor([2, 4, 3, 1])[:rows, None]
    return TextCondition(torch.randn(rows, E, generator=generator), torch.randn(rows, length, S, generator=generator), mask)


def noised(rows: int, draws: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, draws, E, generator=generator), torch.randint(0, 1000, (rows, draws), generator=generator)


def everyone(rows: int = 3) -> Tensor:
    return torch.ones(rows, dtype=torch.bool)


def normal(seed: int, *shape: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(*shape, generator=generator)


def full_pass(transformer: CausalTransformer, tokens: Tensor, mask: Tensor) -> Tensor:
    """The whole sequence at once with a dense causal mask, as every other implementation runs it."""
    length = tokens.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, :] | torch.eye(length, dtype=torch.bool)
    nothing = tokens.new_zeros(len(tokens), tokens.shape[2] // transformer.blocks[0].head_width, 0, transformer.blocks[0].head_width)
    for block in transformer.blocks:
        tokens, _, _ = block(tokens, visible[:, None], (nothing, nothing))
    out: Tensor = transformer.norm(tokens)
    return out


def prefix_of(num: int = 3, length: int = 5) -> tuple[CausalTransformer, Tensor, Tensor]:
    """A transformer, prefixes (num, length, 16) and their mask: one padded, one whole, one of which only the last token is visible."""
    torch.manual_seed(3)
    transformer = CausalTransformer(width=16, depth=3, head_width=8)
    mask = torch.ones(num, length, dtype=torch.bool)
    mask[0, 2:4] = False
    mask[2, :4] = False
    return transformer, torch.randn(num, length, 16), mask


def test_prefix_and_three_tokens_equal_the_full_pass() -> None:
    transformer, before, mask = prefix_of()
    last = torch.randn(3, 3, 16)
    full = full_pass(transformer, torch.cat([before, last], dim=1), torch.cat([mask, torch.ones(3, 3, dtype=torch.bool)], dim=1))[:, 5:]
    prefix = transformer.read_prefix(before, mask)
    torch.testing.assert_close(transformer(last, prefix), full, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(transformer(last, prefix, last_only=True), full[:, -1:], atol=1e-5, rtol=1e-5)


def test_draws_that_share_a_prefix_equal_draws_of_their_own() -> None:
    """Outputs and gradients, of weights and of the prefix."""
    transformer, before, mask = prefix_of()
    last, draws = torch.randn(3, 4 * 3, 16), 4

    def run(output: Callable[[Prefix], Tensor]) -> list[Tensor]:
        transformer.zero_grad()
        leaf = before.clone().requires_grad_()
        out = output(transformer.read_prefix(leaf, mask))
        out.square().sum().backward()
        assert leaf.grad is not None
        return [out.detach(), leaf.grad, *[weight.grad.clone() for weight in transformer.parameters() if weight.grad is not None]]

    shared = run(lambda prefix: transformer(last, prefix, num_draws=draws, last_only=True))
    own = run(lambda prefix: torch.cat([transformer(part, prefix)[:, -1:] for part in last.split(3, dim=1)], dim=1))
    assert len(shared) == len(own) == 2 + len(list(transformer.parameters()))
    for mine, theirs in zip(shared, own, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_training_draws_equal_one_caption_a_row() -> None:
    prior, condition = make_prior(), captions()
    x_t, t = noised(3, 4)
    rows = torch.arange(3).repeat_interleave(4)
    own = TextCondition(condition.text_emb[rows], condition.text_tokens[rows], condition.text_mask[rows])
    keep = torch.tensor([True, False, True])
    separate = prior(own, keep[rows], x_t.flatten(0, 1)[:, None], t.flatten()[:, None])
    torch.testing.assert_close(prior(condition, keep, x_t, t).flatten(0, 1), separate[:, 0], atol=1e-5, rtol=1e-5)


def test_padding_does_not_matter() -> None:
    prior, condition = make_prior(), captions()
    padded = TextCondition(
        condition.text_emb, nn.functional.pad(condition.text_tokens, (0, 0, 0, 2), value=7.0), nn.functional.pad(condition.text_mask, (0, 2))
    )
    torch.testing.assert_close(prior(condition, everyone(), *noised(3)), prior(padded, everyone(), *noised(3)), atol=1e-5, rtol=1e-5)


def test_a_hidden_caption_tells_nothing() -> None:
    prior, condition = make_prior(), captions()
    other = TextCondition(condition.text_emb + 3, condition.text_tokens * 2, condition.text_mask.flip(0))
    torch.testing.assert_close(prior(condition, ~everyone(), *noised(3)), prior(other, ~everyone(), *noised(3)))


def test_the_empty_prefix_is_that_of_a_hidden_caption() -> None:
    prior, (x_t, t) = make_prior(), noised(3, 2)
    empty = prior.predict(x_t, t, prior.read_nothing().expand(3), torch.zeros_like(x_t))
    torch.testing.assert_close(empty, prior(captions(), ~everyone(), x_t, t), atol=1e-6, rtol=1e-6)


def test_the_noised_embedding_the_step_and_the_caption_all_matter() -> None:
    prior, condition = make_prior(), captions()
    x_t, t = noised(3)
    said = prior(condition, everyone(), x_t, t)
    assert not torch.allclose(said, prior(condition, everyone(), x_t + 0.5, t), atol=1e-4)
    assert not torch.allclose(said, prior(condition, everyone(), x_t, (t + 300) % 1000), atol=1e-4)
    assert not torch.allclose(said, prior(condition, ~everyone(), x_t, t), atol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_self_conditioning_gives_the_marked_draws_the_first_pass_and_the_others_zeros(prediction: Prediction) -> None:
    prior, condition = make_prior(self_condition=True, prediction=prediction), captions()
    x_t, t = noised(3, 2)
    marked = torch.tensor([[True, False], [False, False], [True, True]])
    prefix, zeros = prior.read_text(condition, everyone()), torch.zeros_like(x_t)
    first = prior.predict(x_t, t, prefix, zeros)
    given = prior.x0_of(first, x_t, t)
    assert given.abs().max() <= prior.config.clamp
    out = prior(condition, everyone(), x_t, t, marked)
    torch.testing.assert_close(out[~marked], first[~marked])
    torch.testing.assert_close(out[marked], prior.predict(x_t, t, prefix, given.detach())[marked])
    assert not torch.allclose(out[marked], first[marked], atol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_feeds_the_last_estimate_back(sampler: SamplerName, prediction: Prediction) -> None:
    """A network that is made to say its last estimate plus one has said `steps` after as many steps."""
    prior = make_prior(self_condition=True, prediction=prediction)
    schedule, seen = prior.schedule(), []

    def predict(x_t: Tensor, t: Tensor, prefix: Prefix, last_x0: Tensor) -> Tensor:
        seen.append(last_x0.clone())
        i, x = t.flatten(), x_t.flatten(0, 1)
        x0 = last_x0.flatten(0, 1) + 1
        eps = (x - schedule.alpha[i, None] * x0) / schedule.sigma[i, None]
        return target(schedule, prediction, x0, i, eps).view_as(x_t).to(x_t.dtype)

    prior.predict = predict  # type: ignore[method-assign]
    drawn = prior.draw(captions(), num_samples=2, sampling=PriorSampling(num_steps=4, sampler=sampler), noise=normal(4, 6, E))
    torch.testing.assert_close(torch.stack(seen), torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, E), atol=2e-3, rtol=0)
    torch.testing.assert_close(drawn, prior.unwhiten(torch.full((3, 2, E), 4.0)), atol=5e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_prior_that_is_the_perfect_denoiser_lands_on_its_gaussian(sampler: SamplerName, prediction: Prediction) -> None:
    """Every sampler, whatever the network predicts: whitened data of variance 0.5 around a mean of each caption's own."""
    prior, variance = make_prior(prediction=prediction), 0.5
    schedule = prior.schedule()
    prior.eps_square.copy_(schedule.sigma**2 / (schedule.alpha**2 * variance + schedule.sigma**2))
    mean = torch.tensor([-1.0, 0.0, 1.0])[:, None, None]

    def predict(x_t: Tensor, t: Tensor, prefix: Prefix, last_x0: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha[t][..., None], schedule.sigma[t][..., None]
        x0 = mean + variance * alpha / (alpha**2 * variance + sigma**2) * (x_t - alpha * mean)
        eps = (x_t - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[prediction].float()

    prior.predict = predict  # type: ignore[method-assign]
    steps = {"ddpm": 250, "analytic": 10, "ddim": 250, "dpm++": 25}[sampler]
    drawn = prior.draw(captions(), num_samples=1500, sampling=PriorSampling(num_steps=steps, sampler=sampler), noise=normal(5, 4500, E))
    whitened = prior.whiten(drawn)
    torch.testing.assert_close(whitened.mean(dim=(1, 2)), mean.flatten(), atol=0.03, rtol=0)
    torch.testing.assert_close(whitened.var(dim=1).mean(dim=1), torch.full((3,), variance), atol=0.025, rtol=0)


def test_guidance_leads_away_from_the_hidden_caption() -> None:
    """One step at scale s is the hidden caption's answer and s times what the caption changes in it."""
    prior, condition, x_T = make_prior(), captions(), normal(6, 6, E)()
    t = torch.full((3, 2), 999)
    shown, hidden = (prior(condition, keep, x_T.view(3, 2, E), t) for keep in (everyone(), ~everyone()))
    drawn = prior.draw(condition, num_samples=2, sampling=PriorSampling(num_steps=1, guidance_scale=3.0), noise=lambda: x_T)
    torch.testing.assert_close(drawn, prior.unwhiten(hidden + 3.0 * (shown - hidden)), atol=1e-5, rtol=1e-5)


def test_estimates_are_clamped_in_standard_deviations() -> None:
    torch.manual_seed(0)
    config = DiffusionPriorConfig(width=16, depth=1, head_width=8, max_text_tokens=7, clamp=0.01)
    prior = DiffusionPrior(config, emb_width=E, text_width=S).eval()
    drawn = prior.draw(captions(), num_samples=2, sampling=PriorSampling(num_steps=3), noise=normal(7, 6, E))
    assert drawn.abs().max() == pytest.approx(0.01)
    with pytest.raises(ValueError, match="clamp must be positive"):
        DiffusionPriorConfig(clamp=0.0)


def test_the_analytic_sampler_is_refused_before_it_is_measured() -> None:
    prior = make_prior()
    prior.eps_square.zero_()
    with pytest.raises(UnclipError, match="use sampler ddpm, ddim or dpm"):
        prior.draw(captions(), num_samples=1, sampling=PriorSampling(num_steps=2, sampler="analytic"), noise=normal(8, 3, E))


def num_parameters(config: DiffusionPriorConfig, *, emb_width: int, text_width: int) -> int:
    """As published: with the mean and standard deviation of the image embedding, which are parameters there."""
    with torch.device("meta"):
        prior = DiffusionPrior(config, emb_width=emb_width, text_width=text_width)
    return sum(weight.numel() for weight in [*prior.parameters(), prior.emb_mean, prior.emb_std])


def test_published_sizes() -> None:
    karlo, paper = (load_config(preset=name).prior.network for name in ("karlo", "paper"))
    assert num_parameters(karlo, emb_width=768, text_width=768) == 1_022_030_080
    assert num_parameters(karlo, emb_width=1280, text_width=1280) == 1_026_225_920  # Kandinsky 2.2
    assert num_parameters(paper, emb_width=1024, text_width=1024) == pytest.approx(1.21e9, rel=0.02)  # 24 blocks of 12 * 2048^2, the paper's "1B"


def test_whitening_round_trip() -> None:
    prior = make_prior()
    x = torch.randn(4, E)
    torch.testing.assert_close(prior.unwhiten(prior.whiten(x)), x)


def test_sampling_shapes_and_repeatability() -> None:
    prior, condition = make_prior(), captions()
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(5)
        draw = lambda generator=generator: torch.randn(6, E, generator=generator)  # noqa: E731
        runs.append(prior.draw(condition, num_samples=2, sampling=PriorSampling(num_steps=4, guidance_scale=1.5), noise=draw))
    assert runs[0].shape == (3, 2, E)
    assert torch.equal(runs[0], runs[1])


def test_best_of_takes_the_candidate_nearest_to_the_caption() -> None:
    text_emb = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    candidates = torch.tensor([[[0.0, 1.0], [3.0, 0.1]], [[0.1, 1.0], [1.0, 0.0]]])
    assert similarities(candidates, text_emb).argmax(1).tolist() == [1, 0]
    assert torch.equal(best_of(candidates, text_emb), torch.tensor([[3.0, 0.1], [0.1, 1.0]]))
