"""How sure a mean is: the seeded bootstrap."""

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def interval(values: np.ndarray, *, seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of values (n,) (Efron 1979).

    Raises:
        ValueError: there is no value.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected at least one value in one dimension, got the shape {values.shape}")
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_with_interval(values: np.ndarray, *, seed: int) -> dict[str, float]:
    """The mean of values (n,), its interval, and n, as the report holds them."""
    low, high = interval(values.astype(np.float64), seed=seed)
    return {"mean": float(values.mean()), "low": low, "high": high, "number": len(values)}
