"""The linear prior: the closed-form least-squares map from text embedding to image embedding.

Kandinsky's authors found that it rivals a diffusion prior (arXiv 2310.03502), so no prior is worth anything before it
beats this one.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip import checkpoint
from unclip.diffusion.sampling import Noise
from unclip.files import replacing, write_json
from unclip.prior.condition import PriorSampling, TextCondition


class LinearPrior(nn.Module):
    """text_emb (B, E) -> image_emb (B, E), both raw."""

    weight: Tensor
    bias: Tensor

    def __init__(self, emb_width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(emb_width, emb_width))
        self.register_buffer("bias", torch.zeros(emb_width))

    def forward(self, text_emb: Tensor) -> Tensor:
        return text_emb @ self.weight + self.bias

    @property
    def noise_width(self) -> int:
        """Nothing is drawn."""
        return 0

    def draw(self, condition: TextCondition, *, num_samples: int, sampling: PriorSampling, noise: Noise) -> Tensor:
        """The one answer to each caption, as often as was asked: (B, n, E)."""
        return self(condition.text_emb)[:, None].expand(-1, num_samples, -1)


def fit_linear(batches: Iterable[tuple[np.ndarray, np.ndarray]], emb_width: int, *, ridge: float) -> LinearPrior:
    """Ridge regression in one pass over (text_emb, image_emb) batches of (n, E), accumulated in float64.

    Args:
        ridge: as a share of the mean variance of the text embedding.

    Raises:
        ValueError: there is no row.
    """
    count = 0
    sum_x, sum_y = np.zeros(emb_width), np.zeros(emb_width)
    xx, xy = np.zeros((emb_width, emb_width)), np.zeros((emb_width, emb_width))
    for text_emb, image_emb in batches:
        x, y = text_emb.astype(np.float64), image_emb.astype(np.float64)
        count += len(x)
        sum_x, sum_y = sum_x + x.sum(0), sum_y + y.sum(0)
        xx, xy = xx + x.T @ x, xy + x.T @ y
    if count == 0:
        raise ValueError("expected at least one pair of embeddings, got none")
    mean_x, mean_y = sum_x / count, sum_y / count
    covariance = xx / count - np.outer(mean_x, mean_x)
    added = ridge * np.trace(covariance) / emb_width
    weight = np.linalg.solve(covariance + added * np.eye(emb_width), xy / count - np.outer(mean_x, mean_y))
    prior = LinearPrior(emb_width)
    prior.weight.copy_(torch.from_numpy(weight))
    prior.bias.copy_(torch.from_numpy(mean_y - mean_x @ weight))
    return prior


def save_linear(folder: Path, prior: LinearPrior) -> None:
    """Writes the prior as a checkpoint without an optimizer."""
    with replacing(folder) as aside:
        aside.mkdir(parents=True)
        save_file(prior.state_dict(), aside / checkpoint.EMA)
        write_json(aside / checkpoint.CONFIG, {"kind": "prior-linear", "network": {"emb_width": len(prior.bias)}})


def load_linear_prior(folder: Path, *, device: str = "cpu") -> LinearPrior:
    """Reads what `save_linear` wrote.

    Raises:
        UnclipError: the folder holds something else.
    """
    network = checkpoint.read_config(folder, "prior-linear")["network"]
    prior = LinearPrior(network["emb_width"])
    checkpoint.load_weights(prior, folder / checkpoint.EMA)
    return prior.to(device).eval()
