"""Low-resolution pictures: shrinking and blur against scipy and Pillow, and the random degradation step by step."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from unclip.data import degrade
from unclip.data.loader import as_pixels
from unclip.data.shards import decode


def pictures(num: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_shrinking_is_that_of_the_loader() -> None:
    picture = rng().integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "PNG")
    small = as_pixels(decode(stored.getvalue(), 8)[None].copy())
    torch.testing.assert_close(degrade.shrunk(as_pixels(picture[None]), 4), small, atol=2 / 255, rtol=0)  # Pillow rounds twice


def test_stripes_of_a_pixel_become_grey_and_not_one_of_their_colours() -> None:
    stripes = torch.ones(1, 3, 16, 16)
    stripes[..., ::2] = -1.0
    assert degrade.shrunk(stripes, 4).abs().max() == 0


def test_sides_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of scale 4"):
        degrade.shrunk(pictures(size=18), 4)


def test_the_blur_is_scipys() -> None:
    x = pictures()
    expected = ndimage.gaussian_filter(x.numpy(), 0.6, axes=(2, 3), radius=1, mode="mirror")
    torch.testing.assert_close(degrade.blurred(x), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_filters_are_scipys() -> None:
    x = (pictures(1) + 1) / 2
    kernel = degrade.blur_kernel(4, rng(3))
    expected = np.stack([ndimage.correlate(channel, kernel.numpy(), mode="nearest") for channel in x[0].numpy()])
    torch.testing.assert_close(degrade.filtered(x, kernel)[0], torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_a_gaussian_has_the_covariance_that_was_asked_for() -> None:
    angle, variances = 0.4, np.array([4.0, 1.0])
    weights = degrade.gaussian(41, variances, angle, shift=1.5).double().numpy()
    places = np.arange(41) - 20.0
    x, y = np.meshgrid(places, places)
    assert (weights * x).sum() == pytest.approx(1.5, abs=1e-5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = [[(weights * (a - 1.5) * (b - 1.5)).sum() for a in (x, y)] for b in (x, y)]
    np.testing.assert_allclose(found, turn @ np.diag(variances) @ turn.T, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_kernels_keep_the_energy(seed: int) -> None:
    kernel = degrade.blur_kernel(4, rng(seed))
    assert kernel.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert kernel.min() >= 0
    assert len(kernel) % 2 == 1


def test_noise_has_its_level_and_its_kinds() -> None:
    flat = torch.full((1, 3, 64, 64), 0.5)
    kinds = set()
    for seed in range(30):
        noise = (degrade.noised(flat, rng(seed)) - flat)[0].flatten(1)
        assert noise.std(dim=1).min() > 1.8 / 255
        assert noise.std(dim=1).max() < 26 / 255
        between = np.corrcoef(noise.numpy())[np.triu_indices(3, 1)]
        kinds.add("grey" if between.min() > 0.999 else "colour" if np.abs(between).max() < 0.1 else "correlated")
    assert kinds == {"grey", "colour", "correlated"}


def test_the_order_is_random_but_the_final_size_comes_after_the_other_resizing() -> None:
    orders = [[name for name, _ in degrade.operations((8, 8), 4, rng(seed))] for seed in range(200)]
    assert all(order.index("resizing") < order.index("final size") for order in orders)
    for name in orders[0]:
        places = {order.index(name) for order in orders}
        assert len(places) == (5 if name in ("resizing", "final size") else 6), name


@pytest.mark.parametrize("scale", [2, 4])
def test_a_degraded_picture_has_the_small_size_and_about_the_same_colour(scale: int) -> None:
    colour = torch.tensor([0.5, -0.25, 0.0])
    x = colour[:, None, None].expand(3, 32, 32)
    made = torch.stack([degrade.degraded(x, scale, rng(seed)) for seed in range(20)])
    assert made.shape == (20, 3, 32 // scale, 32 // scale)
    assert made.abs().max() <= 1.0
    torch.testing.assert_close(made.mean(dim=(0, 2, 3)), colour, atol=0.03, rtol=0)
    assert made.std(dim=0).mean() > 0.01


def test_a_picture_is_degraded_the_same_whatever_stands_beside_it() -> None:
    x = pictures(4)
    together = degrade.low_resolution(x, 4, "bsr", prob=0.7, generators=[rng(row) for row in range(4)])
    alone = torch.cat([degrade.low_resolution(x[row : row + 1], 4, "bsr", prob=0.7, generators=[rng(row)]) for row in range(4)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, degrade.low_resolution(x, 4, "bsr", prob=0.7, generators=[rng(row + 1) for row in range(4)]))


def test_as_many_are_corrupted_as_was_asked_for() -> None:
    x, small = pictures(400, 8), degrade.shrunk(pictures(400, 8), 2)

    def made(corruption: degrade.Corruption, prob: float) -> torch.Tensor:
        return degrade.low_resolution(x, 2, corruption, prob=prob, generators=[rng(row) for row in range(400)])

    shares = [(made("blur", prob) != small).flatten(1).any(dim=1).double().mean().item() for prob in (0.0, 0.25, 1.0)]
    assert shares == pytest.approx([0.0, 0.25, 1.0], abs=0.07)
    assert (shares[0], shares[2]) == (0.0, 1.0)
    assert torch.equal(made("none", 1.0), small)
