"""Do generated pictures come from the distribution of real ones? Fréchet distances in two spaces, beside their floor.

One space is that of the CLIP that the models were made with, which is partial; the other is spanned by the features of a
small convolutional network with fixed random weights, which nothing was trained on. The usual space of an Inception
network would have to be fetched, and knows photographs. As in `unclip.evaluation.distribution` what is made for one half
of the rows is compared with the real pictures of the other half, and the floor is real against real at the same number.
"""

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unclip.clip import Clip
from unclip.data.loader import as_pixels
from unclip.data.store import normalised
from unclip.evaluation.classifier import shrunk
from unclip.evaluation.distribution import MAX_AXES, ROWS_AN_AXIS, Training, frechet_of_rows, halves_of

FEATURE_SEED = 20220413  # that of every installation and every run, so that distances can be compared between runs
FILTERS = (3, 32, 64)
BATCH_SIZE = 256


@cache
def _weights() -> tuple[tuple[Tensor, ...], Tensor]:
    """The filters of each layer, and the directions (features, 16) that their pooled answers are projected on."""
    rng = np.random.default_rng(FEATURE_SEED)  # numpy's streams are the same everywhere
    layers = [rng.standard_normal((out, into, 3, 3)) / np.sqrt(into * 9) for into, out in pairwise(FILTERS)]
    directions = np.linalg.qr(rng.standard_normal((2 * sum(FILTERS[1:]), MAX_AXES)))[0]
    return tuple(torch.from_numpy(layer).float() for layer in layers), torch.from_numpy(directions).float()


@torch.no_grad()
def random_features(pictures: np.ndarray) -> np.ndarray:
    """(n, H, H, 3) uint8 -> (n, 16): mean and spread of each filter's answer over the picture, on fixed random directions."""
    layers, directions = _weights()
    found = []
    for start in range(0, len(pictures), BATCH_SIZE):
        x, pooled = as_pixels(pictures[start : start + BATCH_SIZE]), []
        for layer in layers:
            x = F.relu(F.conv2d(x, layer, stride=2, padding=1))
            pooled += [x.mean(dim=(2, 3)), x.flatten(2).std(dim=2)]
        found.append(torch.cat(pooled, dim=1) @ directions)
    return torch.cat(found).numpy()


def measure_fidelity(pictures: Mapping[str, np.ndarray], clip: Clip, training: Training, *, real: str) -> dict[str, Any]:
    """The Fréchet distance of each kind of pictures (p, H, H, 3) uint8 to the real ones, which stand under the name `real`.

    Larger pictures are brought to the size of the real ones for the random features, which depend on it.

    Returns:
        `n`, the rows on each side; `axes`, the dimensions of both spaces; and `rows`, a kind -> `clip` and `random`
        (both times 1000; that of `real` is the floor), None where n is under 2.
    """
    n = len(pictures[real]) // 2
    if n < 2:
        return {"n": n, "axes": None, "rows": {kind: {"clip": None, "random": None} for kind in pictures}}
    num_axes = min(max(1, n // ROWS_AN_AXIS), MAX_AXES)
    spaces: dict[str, dict[str, np.ndarray]] = {"clip": {}, "random": {}}
    for kind, made in pictures.items():
        emb = clip.encode_pictures([Image.fromarray(picture) for picture in made]).numpy()
        spaces["clip"][kind] = normalised(emb) @ training.axes[:num_axes].T
        spaces["random"][kind] = random_features(shrunk(made, pictures[real].shape[1]))[:, :num_axes]
    halves = halves_of(n)
    rows = {
        kind: {
            name: 1000.0 * float(np.mean([frechet_of_rows(features[kind][one], features[real][other]) for one, other in halves]))
            for name, features in spaces.items()
        }
        for kind in pictures
    }
    return {"n": n, "axes": num_axes, "rows": rows}
