"""Do predicted embeddings come from the distribution of real ones? Fréchet distance and MMD, beside their floor.

Both are above zero even between two draws of one distribution, the more so the fewer rows there are. So the true
embeddings are cut into halves of n rows, in several ways: what is predicted for one half is compared with the truth of
the other, and the floor is the truth of one half against that of the other, at the same n.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unclip.data.store import emb_width, iter_batches, normalised

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al. 2024, arXiv 2401.09603
MAX_AXES = 16
NUM_CUTS = 4  # ways to cut the rows into halves, each measured in both directions
ROWS_AN_AXIS = 10  # a covariance of k axes from fewer than about 10 k rows is mostly noise, and from fewer than k singular


@dataclass(frozen=True)
class Training:
    """What the training rows say, as unit vectors.

    Attributes:
        image_mean, text_mean: (E,).
        axes: (k, E), the directions in which the image embeddings vary most, the first the most.
        shares: (k,) of the variance that each of them holds.
    """

    image_mean: np.ndarray
    text_mean: np.ndarray
    axes: np.ndarray
    shares: np.ndarray


def read_training(store: Path) -> Training:
    """One pass over the training rows of a store."""
    width = emb_width(store)
    count, images, texts, products = 0, np.zeros(width), np.zeros(width), np.zeros((width, width))
    for batch in iter_batches(store, ["split", "image_emb", "text_emb"]):
        rows = batch["split"] == "train"
        image = normalised(batch["image_emb"][rows]).astype(np.float64)
        count += len(image)
        images, products = images + image.sum(axis=0), products + image.T @ image
        texts = texts + normalised(batch["text_emb"][rows]).sum(axis=0, dtype=np.float64)
    mean = images / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))  # ascending
    kept = slice(None, -min(MAX_AXES, width) - 1, -1)
    shares = np.maximum(variances[kept], 0.0) / max(variances.sum(), np.finfo(np.float64).tiny)
    return Training(mean.astype(np.float32), (texts / count).astype(np.float32), directions[:, kept].T, shares)


def frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared Fréchet (Wasserstein-2) distance of two Gaussians, means (k,) and covariances (k, k) (Dowson & Landau 1982)."""
    root = _root(cov_a)
    # tr (A B)^1/2 = tr (A^1/2 B A^1/2)^1/2, and the latter is symmetric
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross)


def _root(cov: np.ndarray) -> np.ndarray:
    variances, directions = np.linalg.eigh(cov)
    root: np.ndarray = (directions * np.sqrt(np.maximum(variances, 0.0))) @ directions.T
    return root


def frechet_of_rows(first: np.ndarray, second: np.ndarray) -> float:
    """The Fréchet distance of the Gaussians fitted to rows (n, k) and (m, k)."""
    mean_a, mean_b = first.mean(axis=0), second.mean(axis=0)
    return frechet(mean_a, np.atleast_2d(np.cov(first.T)), mean_b, np.atleast_2d(np.cov(second.T)))


def mmd(first: np.ndarray, second: np.ndarray, *, sigma: float) -> float:
    """Squared maximum mean discrepancy of rows (n, E) and (m, E) under exp(-|x - y|^2 / (2 sigma^2)), as a V-statistic."""

    def mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-_squared_distances(x, y) / (2.0 * sigma**2)).mean())

    first, second = first.astype(np.float64), second.astype(np.float64)
    return mean_kernel(first, first) + mean_kernel(second, second) - 2.0 * mean_kernel(first, second)


def median_distance(emb: np.ndarray) -> float:
    """The median distance over all pairs of n rows (n, E), n at least 2: the usual sigma."""
    rows, columns = np.triu_indices(len(emb), 1)
    return float(np.median(np.sqrt(_squared_distances(emb.astype(np.float64), emb.astype(np.float64))[rows, columns])))


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2.0 * x @ y.T
    return np.maximum(squares, 0.0)


def halves_of(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The ways to cut 2n rows into two halves of n row numbers each, both ways round."""
    orders = [np.roll(np.arange(2 * n), cut * n // NUM_CUTS) for cut in range(NUM_CUTS)]
    return [pair for order in orders for pair in ((order[:n], order[n:]), (order[n:], order[:n]))]


def measure_distribution(ladder: Mapping[str, np.ndarray], true_emb: np.ndarray, training: Training) -> dict[str, Any]:
    """Each row of the ladder (c, E) against the true embeddings (c, E), all as unit vectors, with n = c // 2 on each side.

    The Fréchet distance is taken in the space of the few axes in which the training images vary most, since n rows
    do not tell a covariance of E dimensions. The row of the true embeddings is the floor.

    Returns:
        `rows`, a name -> `frechet`, `cmmd` and `mmd` (all times 1000), None where n is under 2; `n`, the number of
        `axes`, the share of the variance that they hold, and the `sigma` of mmd.
    """
    n = len(true_emb) // 2
    if n < 2:
        return {"n": n, "axes": None, "share": None, "sigma": None, "rows": {name: dict.fromkeys(("frechet", "cmmd", "mmd")) for name in ladder}}
    axes = training.axes[: max(1, n // ROWS_AN_AXIS)]
    real = normalised(true_emb)
    halves = halves_of(n)
    # a prior that sees nothing but one picture has no median; then any width tells as little
    sigma = max(median_distance(real[: 2 * n]), float(np.finfo(np.float32).eps))
    rows = {}
    for name, emb in ladder.items():
        unit = normalised(emb)
        sides = [(unit[one], real[other]) for one, other in halves]
        found = {
            "frechet": np.mean([frechet_of_rows(a @ axes.T, b @ axes.T) for a, b in sides]),
            "cmmd": np.mean([mmd(a, b, sigma=CMMD_SIGMA) for a, b in sides]),
            "mmd": np.mean([mmd(a, b, sigma=sigma) for a, b in sides]),
        }
        rows[name] = {metric: CMMD_SCALE * float(value) for metric, value in found.items()}
    return {"n": n, "axes": len(axes), "share": float(training.shares[: len(axes)].sum()), "sigma": sigma, "rows": rows}
