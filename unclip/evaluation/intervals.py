"""How sure a mean is: the seeded bootstrap."""

from functools import lru_cache

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


@lru_cache(maxsize=8)
def resampled(num: int, seed: int) -> np.ndarray:
    """(1000, num) how often each of `num` rows is drawn in each resample with replacement (Efron 1979).

    The same seed draws the same rows, so that two measurements of the same rows are compared pair by pair.

    Raises:
        ValueError: there is no row.
    """
    if num < 1:
        raise ValueError(f"expected at least one value, got {num}")
    drawn = np.random.default_rng(seed).multinomial(num, np.full(num, 1.0 / num), size=RESAMPLES).astype(np.float64)
    drawn.flags.writeable = False  # it is shared between calls
    return drawn


def percentiles(values: np.ndarray) -> np.ndarray:
    """The ends of the 95 % interval of resampled statistics (1000, ...): (2, ...)."""
    ends: np.ndarray = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return ends


def interval(values: np.ndarray, *, seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of values (n,).

    Raises:
        ValueError: there is no value.
    """
    if values.ndim != 1:
        raise ValueError(f"expected at least one value in one dimension, got the shape {values.shape}")
    low, high = percentiles(resampled(len(values), seed) @ values.astype(np.float64) / len(values))
    return float(low), float(high)


def mean_with_interval(values: np.ndarray, *, seed: int) -> dict[str, float]:
    """The mean of values (n,), its interval, and n, as the report holds them."""
    low, high = interval(values, seed=seed)
    return {"mean": float(values.mean()), "low": low, "high": high, "number": len(values)}
