"""Principal components of image embeddings, in one pass over them (paper, sections 2.2 and 4)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from unclip.files import UnclipError


@dataclass(frozen=True)
class Components:
    """The directions in which embeddings vary, by decreasing variance.

    Attributes:
        mean: (E,) float64.
        directions: (E, E) float64, orthonormal rows.
        variances: (E,) float64 along each; the last may be zero or, by rounding, a little less.
    """

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray

    def first(self, num: int, image_emb: np.ndarray) -> np.ndarray:
        """(..., E) embeddings of which only the first `num` components are kept, the mean standing for the others.

        Raises:
            UnclipError: there are not as many.
        """
        width = len(self.mean)
        if not 0 <= num <= width:
            raise UnclipError(f"expected a number of principal components in [0, {width}], the width of the image embedding, got {num}")
        kept = self.directions[:num]
        projected: np.ndarray = self.mean + (image_emb.astype(np.float64) - self.mean) @ kept.T @ kept
        return projected

    def held(self, num: int) -> float:
        """The share of the variance that the first `num` hold."""
        variances = np.maximum(self.variances, 0.0)
        return float(variances[:num].sum() / variances.sum())


def principal_components(batches: Iterable[np.ndarray], emb_width: int) -> Components:
    """Components of batches of (n, E), accumulated in float64.

    Raises:
        UnclipError: there is no row, or all are alike.
    """
    count, total, squares = 0, np.zeros(emb_width), np.zeros((emb_width, emb_width))
    shift = None  # near the mean, so that the sums of squares keep their digits
    for batch in batches:
        x = batch.astype(np.float64)
        shift = x.mean(0) if shift is None and len(x) else shift
        x = x - shift if shift is not None else x
        count, total, squares = count + len(x), total + x.sum(0), squares + x.T @ x
    if shift is None:
        raise UnclipError("expected at least two embeddings to find principal components of, got none")
    covariance = squares / count - np.outer(total / count, total / count)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    if np.maximum(values, 0.0).sum() <= np.finfo(np.float64).eps * max(1.0, float(np.square(shift).sum())):
        raise UnclipError(f"the {count} image embeddings are all alike, so that they have no principal components")
    return Components(shift + total / count, vectors.T, values)
