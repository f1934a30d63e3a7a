"""The diffusion prior: causality, the shared prefix, what a dropped caption may still tell, and sampling."""

import torch
from torch import Tensor, nn

from unclip.nn.transformer import CausalTransformer
from unclip.prior.condition import PriorSampling, TextCondition, best_of, similarities
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig

E, S = 6, 5


def make_prior(depth: int = 2) -> DiffusionPrior:
    torch.manual_seed(0)
    config = DiffusionPriorConfig(width=16, depth=depth, head_width=8, max_text_tokens=7)
    prior = DiffusionPrior(config, emb_width=E, text_width=S).eval()
    prior.emb_mean.copy_(torch.linspace(-1, 1, E))
    prior.emb_std.copy_(torch.linspace(0.5, 2, E))
    return prior


def captions(rows: int = 3, length: int = 4) -> TextCondition:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(length) < torch.tensor([2, 4, 3, 1])[:rows, None]
    return TextCondition(torch.randn(rows, E, generator=generator), torch.randn(rows, length, S, generator=generator), mask)


def noised(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, E, generator=generator), torch.randint(0, 1000, (rows,), generator=generator)


def full_pass(transformer: CausalTransformer, tokens: Tensor, mask: Tensor) -> Tensor:
    """The whole sequence at once with a dense causal mask, as every other implementation runs it."""
    length = tokens.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, :] | torch.eye(length, dtype=torch.bool)
    for block in transformer.blocks:
        tokens, _, _ = block(tokens, visible[:, None], None)
    out: Tensor = transformer.norm(tokens)
    return out


def test_prefix_and_three_tokens_equal_the_full_pass() -> None:
    torch.manual_seed(3)
    transformer = CausalTransformer(width=16, depth=3, head_width=8).eval()
    tokens, mask = torch.randn(3, 8, 16), torch.ones(3, 8, dtype=torch.bool)
    mask[0, 2:4] = False
    mask[1, 4] = False
    split = transformer(tokens[:, 5:], transformer.read_prefix(tokens[:, :5], mask[:, :5]))
    torch.testing.assert_close(split, full_pass(transformer, tokens, mask)[:, 5:], atol=1e-5, rtol=1e-5)


def test_draws_that_share_a_prefix_equal_draws_of_their_own() -> None:
    prior, condition = make_prior(), captions()
    everyone = torch.ones(3, dtype=torch.bool)
    x_t, t = noised(12)
    shared = prior(x_t, t, prior.read_text(condition, everyone).repeat(4))
    rows = torch.arange(3).repeat_interleave(4)
    own = TextCondition(condition.text_emb[rows], condition.text_tokens[rows], condition.text_mask[rows])
    torch.testing.assert_close(shared, prior(x_t, t, prior.read_text(own, torch.ones(12, dtype=torch.bool))), atol=1e-5, rtol=1e-5)


def test_padding_does_not_matter() -> None:
    prior, condition = make_prior(), captions()
    everyone = torch.ones(3, dtype=torch.bool)
    x_t, t = noised(3)
    padded = TextCondition(
        condition.text_emb, nn.functional.pad(condition.text_tokens, (0, 0, 0, 2), value=7.0), nn.functional.pad(condition.text_mask, (0, 2))
    )
    torch.testing.assert_close(prior(x_t, t, prior.read_text(condition, everyone)), prior(x_t, t, prior.read_text(padded, everyone)), atol=1e-5, rtol=1e-5)


def test_a_dropped_caption_tells_nothing() -> None:
    prior, condition = make_prior(), captions()
    nobody = torch.zeros(3, dtype=torch.bool)
    x_t, t = noised(3)
    other = TextCondition(condition.text_emb + 3, condition.text_tokens * 2, condition.text_mask.flip(0))
    torch.testing.assert_close(prior(x_t, t, prior.read_text(condition, nobody)), prior(x_t, t, prior.read_text(other, nobody)))


def test_the_noised_embedding_the_step_and_the_caption_all_matter() -> None:
    prior, condition = make_prior(), captions()
    prefix = prior.read_text(condition, torch.ones(3, dtype=torch.bool))
    x_t, t = noised(3)
    said = prior(x_t, t, prefix)
    assert not torch.allclose(said, prior(x_t + 0.5, t, prefix), atol=1e-4)
    assert not torch.allclose(said, prior(x_t, (t + 300) % 1000, prefix), atol=1e-4)
    assert not torch.allclose(said, prior(x_t, t, prior.read_text(condition, torch.zeros(3, dtype=torch.bool))), atol=1e-4)


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
