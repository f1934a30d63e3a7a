"""A small picture classifier with several heads, trained here on real pictures: the judges that learn are made of it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from unclip.data.loader import as_pixels
from unclip.progress import progress

MAX_SIDE = 32  # larger pictures are made smaller, by areas: a judge of what is shown needs no more
UNSAID = -100  # a label that is not known; torch's cross-entropy leaves it out
WIDTHS, HIDDEN = (16, 32, 64), 256
BATCH_SIZE, LEARNING_RATE = 64, 1e-2
MAX_NOISE, MAX_SHIFT = 0.15, 2  # in half the range of a pixel, and in pixels: generated pictures are not as clean as real ones


class Classifier(nn.Module):
    """Pictures (B, 3, H, H) in [-1, 1] -> logits (B, sum of heads): a few convolutions, and one layer over the last map."""

    def __init__(self, side: int, heads: Sequence[int]) -> None:
        super().__init__()
        self.side, self.heads = side, list(heads)
        blocks: list[nn.Module] = []
        for before, width in pairwise((3, *WIDTHS)):
            blocks += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        features = WIDTHS[-1] * (side // 2 ** len(WIDTHS)) ** 2
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, sum(heads)))

    def forward(self, pictures: Tensor) -> Tensor:
        return cast(Tensor, self.body(pictures))


def train_classifier(pictures: np.ndarray, labels: np.ndarray, heads: Sequence[int], *, num_steps: int, seed: int, name: str) -> Classifier:
    """Learns from pictures (n, H, H, 3) uint8 and their labels (n, heads), UNSAID where a picture has none; frozen.

    Args:
        heads: the number of classes of each head.
        num_steps: optimizer steps of 64 pictures.
        name: what the bar shows.
    """
    side = min(pictures.shape[1], MAX_SIDE)
    pixels, targets = as_pixels(shrunk(pictures, side)), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(side, heads)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    with progress(name, num_steps, unit="step") as bar:
        for _ in range(num_steps):
            rows = torch.randint(len(pixels), (BATCH_SIZE,), generator=generator)
            optimizer.zero_grad()
            torch.autograd.backward(_loss(network(_roughened(pixels[rows], generator)), targets[rows], network.heads))
            optimizer.step()
            schedule.step()
            bar.advance()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def classify(network: Classifier, pictures: np.ndarray) -> np.ndarray:
    """The class of each head for each picture: (n, H, H, 3) uint8 of any size -> (n, heads) int64."""
    found = []
    for start in range(0, len(pictures), BATCH_SIZE):
        logits = network(as_pixels(shrunk(pictures[start : start + BATCH_SIZE], network.side)))
        found.append(torch.stack([part.argmax(dim=1) for part in torch.split(logits, network.heads, dim=1)], dim=1))
    return torch.cat(found).numpy()


def shrunk(pictures: np.ndarray, side: int) -> np.ndarray:
    """Pictures (n, H, H, 3) uint8 at another side, averaged over areas; those that have it are returned as they are."""
    if pictures.shape[1] == side:
        return pictures
    return np.stack([np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)) for picture in pictures])


def _roughened(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures moved by a pixel or two, with noise of a strength of their own."""
    down, right = (int(torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (), generator=generator)) for _ in range(2))
    padded = F.pad(pixels, (MAX_SHIFT,) * 4, mode="replicate")
    H = pixels.shape[-1]
    moved = padded[:, :, MAX_SHIFT + down :][:, :, :H, MAX_SHIFT + right :][..., :H]
    strength = MAX_NOISE * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return moved + strength * torch.randn(moved.shape, generator=generator)


def _loss(logits: Tensor, labels: Tensor, heads: list[int]) -> Tensor:
    """The sum over heads of the cross-entropy of the pictures that have a label; a head without any counts nothing."""
    parts = torch.split(logits, heads, dim=1)
    sums = [F.cross_entropy(part, labels[:, head], reduction="sum") for head, part in enumerate(parts)]
    counts = [(labels[:, head] != UNSAID).sum().clamp(min=1) for head in range(len(heads))]
    return torch.stack([total / count for total, count in zip(sums, counts, strict=True)]).sum()
