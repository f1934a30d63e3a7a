"""An image embedding as a short row of codes: principal components, each cut into buckets (paper, section 2.2).

Buckets are of equal width between -RANGE and RANGE standard deviations of their component; the paper leaves this open.
Measured on the embeddings of 16,000 rendered shapes, on correlated Gaussians and on Student's t with 3 degrees of
freedom, with 64 to 1,024 buckets: on the first two equal widths lose (2 * RANGE / num_buckets)^2 / 12 of the variance
(0.2 % at 64 buckets, 8e-6 at 1,024), nothing lies beyond 5 deviations (0.01 % beyond 4), and quantile edges with the
mean of each bucket lose up to twice (64) to twenty times (1,024) as much, because their outermost buckets are wide. On
heavy tails equal widths lose 2 to 3 %, quantiles 2 to 6 %. Equal widths also take one pass over the data, and a code means
the same number of deviations in every component.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unclip.files import UnclipError
from unclip.prior.components import principal_components

RANGE = 5.0  # standard deviations; the diffusion prior clamps there too


class EmbeddingCodes(nn.Module):
    """Raw image embeddings (..., E) <-> codes (..., num_components), by decreasing variance.

    Attributes:
        mean, components, stds: (E,), (num_components, E) orthonormal rows, and the standard deviation along each.
        edges, centres: (num_buckets - 1,) and (num_buckets,) of the buckets, in standard deviations.
        dot_edges: (num_dot_buckets - 1,) quantiles of the training pairs' cosines.
    """

    mean: Tensor
    components: Tensor
    stds: Tensor
    edges: Tensor
    centres: Tensor
    dot_edges: Tensor

    def __init__(self, emb_width: int, num_components: int, *, num_buckets: int, num_dot_buckets: int) -> None:
        super().__init__()
        edges = torch.linspace(-RANGE, RANGE, num_buckets + 1, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(emb_width))
        self.register_buffer("components", torch.eye(num_components, emb_width))
        self.register_buffer("stds", torch.ones(num_components))
        self.register_buffer("edges", edges[1:-1].float())
        self.register_buffer("centres", ((edges[1:] + edges[:-1]) / 2).float())
        self.register_buffer("dot_edges", torch.linspace(-1.0, 1.0, num_dot_buckets + 1)[1:-1])

    def encode(self, image_emb: Tensor) -> Tensor:
        """(..., E) -> (..., num_components) int64; what lies beyond the range goes to the outermost bucket."""
        return torch.bucketize((image_emb - self.mean) @ self.components.T / self.stds, self.edges, right=True)

    def decode(self, codes: Tensor) -> Tensor:
        """(..., num_components) -> (..., E): the centre of each bucket."""
        return (self.centres[codes] * self.stds) @ self.components + self.mean

    def dot_tokens(self, image_emb: Tensor, text_emb: Tensor) -> Tensor:
        """(..., E) and (..., E) -> (...) int64: the bucket of their cosine, each as often as the others in training.

        The cosine stands for the paper's dot product, whose embeddings have norm 1; ours are raw.
        """
        return torch.bucketize(F.cosine_similarity(image_emb, text_emb, dim=-1), self.dot_edges, right=True)


def fit_codes(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], emb_width: int, *, explained: float, max_components: int, num_buckets: int, num_dot_buckets: int
) -> EmbeddingCodes:
    """Codes of the fewest principal components that hold a share `explained` of the variance.

    One pass over (image_emb, text_emb) batches of (n, E), accumulated in float64; of each pair its cosine is kept.

    Raises:
        UnclipError: more than `max_components` would be needed, or nothing varies.
    """
    cosines = [np.zeros(0)]

    def image_embs() -> Iterator[np.ndarray]:
        for image_emb, text_emb in batches:
            x, y = image_emb.astype(np.float64), text_emb.astype(np.float64)
            cosines.append((x * y).sum(1) / np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1), np.finfo(np.float64).tiny))
            yield x

    found = principal_components(image_embs(), emb_width)
    values, held = found.variances, np.cumsum(np.maximum(found.variances, 0.0))
    needed = min(int(np.searchsorted(held, explained * held[-1])) + 1, int((values > values[0] * np.finfo(np.float32).eps).sum()))
    if needed > max_components:
        raise UnclipError(f"{explained:.1%} of the variance needs {needed} components, max_components is {max_components}; raise it or lower explained")
    codes = EmbeddingCodes(emb_width, needed, num_buckets=num_buckets, num_dot_buckets=num_dot_buckets)
    codes.mean.copy_(torch.from_numpy(found.mean))
    codes.components.copy_(torch.from_numpy(found.directions[:needed].copy()))
    codes.stds.copy_(torch.from_numpy(np.sqrt(values[:needed])))
    codes.dot_edges.copy_(torch.from_numpy(np.quantile(np.concatenate(cosines), np.arange(1, num_dot_buckets) / num_dot_buckets)))
    return codes
