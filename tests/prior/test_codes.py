"""Codes of an embedding: the round trip, the variance that is lost, one pass, and the dot product's token."""

import numpy as np
import pytest
import torch

from unclip.files import UnclipError
from unclip.prior.codes import RANGE, EmbeddingCodes, fit_codes

E = 16


def pairs(num: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated Gaussian embeddings with the mean far from zero, and text embeddings that know something of them."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(np.random.default_rng(7).normal(size=(E, E)))[0] * np.geomspace(1, 1e-2, E)[:, None]
    image_emb = rng.normal(size=(num, E)) @ mix + 20.0
    return image_emb, image_emb + rng.normal(size=(num, E)) * 5.0


def fitted(explained: float = 0.99, num_buckets: int = 256, batch: int = 700) -> EmbeddingCodes:
    image_emb, text_emb = pairs()
    batches = ((image_emb[i : i + batch], text_emb[i : i + batch]) for i in range(0, len(image_emb), batch))
    return fit_codes(batches, E, explained=explained, max_components=E, num_buckets=num_buckets, num_dot_buckets=8)


def lost(codes: EmbeddingCodes, image_emb: torch.Tensor) -> float:
    """The share of the variance that a round trip loses."""
    return float((codes.decode(codes.encode(image_emb)) - image_emb).square().sum() / (image_emb - image_emb.mean(0)).square().sum())


@pytest.mark.parametrize("explained", [0.9, 0.99, 0.999])
def test_a_round_trip_loses_what_was_allowed_and_one_component_less_would_lose_more(explained: float) -> None:
    codes = fitted(explained, num_buckets=1024)
    image_emb = torch.from_numpy(pairs()[0]).float()
    assert lost(codes, image_emb) < 1 - explained + 1e-4
    codes.components, codes.stds = codes.components[:-1], codes.stds[:-1]
    assert lost(codes, image_emb) > 1 - explained


@pytest.mark.parametrize("num_buckets", [32, 128])
def test_buckets_of_equal_width_lose_a_twelfth_of_their_width_squared(num_buckets: int) -> None:
    codes = fitted(1.0, num_buckets)
    assert len(codes.stds) == E
    expected = (2 * RANGE / num_buckets) ** 2 / 12
    assert lost(codes, torch.from_numpy(pairs()[0]).float()) == pytest.approx(expected, rel=0.05)


def test_held_out_embeddings_lose_no_more() -> None:
    codes = fitted()
    assert lost(codes, torch.from_numpy(pairs(seed=1)[0]).float()) < 1.2 * lost(codes, torch.from_numpy(pairs()[0]).float())


def test_components_are_orthonormal_by_decreasing_variance() -> None:
    codes = fitted()
    torch.testing.assert_close(codes.components @ codes.components.T, torch.eye(len(codes.stds)), atol=1e-5, rtol=0)
    assert (codes.stds.diff() < 0).all()


def test_centres_are_their_own_codes_and_far_values_go_to_the_outermost() -> None:
    codes = fitted(num_buckets=64)
    tokens = torch.randint(0, 64, (50, len(codes.stds)), generator=torch.Generator().manual_seed(0))
    assert torch.equal(codes.encode(codes.decode(tokens)), tokens)
    far = codes.mean + 100 * codes.stds[0] * codes.components[0]
    assert codes.encode(far)[0] == 63
    assert codes.encode(2 * codes.mean - far)[0] == 0


def test_batches_do_not_matter() -> None:
    one, many = fitted(batch=4000), fitted(batch=97)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value.abs(), many.state_dict()[name].abs(), atol=1e-4, rtol=1e-4)  # a component has no sign of its own


def test_dot_tokens_are_equally_frequent_and_rise_with_the_cosine_alone() -> None:
    codes = fitted()
    image_emb, text_emb = (torch.from_numpy(values).float() for values in pairs())
    tokens = codes.dot_tokens(image_emb, text_emb)
    assert np.bincount(tokens.numpy(), minlength=8) == pytest.approx(np.full(8, 500), abs=2)
    cosines = torch.nn.functional.cosine_similarity(image_emb, text_emb)
    assert (tokens[cosines.argsort()].diff() >= 0).all()
    assert torch.equal(codes.dot_tokens(3 * image_emb, text_emb / 4), tokens)


def test_what_can_not_be_coded_is_refused() -> None:
    settings = {"explained": 0.99, "num_buckets": 8, "num_dot_buckets": 4}
    with pytest.raises(UnclipError, match=r"needs \d+ components, max_components is 2"):
        fit_codes([pairs()], E, max_components=2, **settings)  # type: ignore[arg-type]
    with pytest.raises(UnclipError, match="all alike"):
        fit_codes([(np.full((9, E), 0.3), np.ones((9, E)))], E, max_components=E, **settings)  # type: ignore[arg-type]
    with pytest.raises(UnclipError, match="got none"):
        fit_codes([], E, max_components=E, **settings)  # type: ignore[arg-type]
