"""A second judge of the shapes world: a small network trained on fresh renders alone, which no model has seen.

It reads a picture as a whole, so it errs differently from the program of `unclip.worlds.judge`, which unmixes colours and
fits outlines. Its own accuracy, on renders that it was not trained on, is published beside what it says.
"""

from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unclip.data.loader import as_pixels
from unclip.evaluation.scene_labels import HEADS, labels_of, seen_of
from unclip.progress import progress
from unclip.worlds.judge import SCORES, Seen, compare
from unclip.worlds.shapes import Scene, Split, render, scenes

SPLITS: tuple[Split, ...] = ("train", "heldout-scene", "heldout-pair")  # it must know all that can be asked for
NUM_RENDERS, NUM_CHECKED = 6000, 600  # to learn from, and to say how well it reads
BATCH_SIZE, LEARNING_RATE = 64, 3e-3
MAX_NOISE, MAX_SHIFT = 0.15, 2  # in half the range of a pixel, and in pixels: generated pictures are not as clean as renders
STREAM = 5  # of the seed; 1 to 4 have other uses


class Reader(nn.Module):
    """Pictures (B, 3, H, H) in [-1, 1] -> logits (B, sum of HEADS): a few convolutions and one layer over the last map."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 96)
        blocks: list[nn.Module] = []
        for before, width in pairwise(widths):
            blocks += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        side = image_size // 2 ** (len(widths) - 1)
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(widths[-1] * side**2, 256), nn.ReLU(), nn.Linear(256, sum(HEADS)))

    def forward(self, pictures: Tensor) -> Tensor:
        return cast(Tensor, self.body(pictures))


@dataclass(frozen=True)
class TrainedReader:
    """The network, and the share of fresh renders of which it reads everything rightly."""

    network: Reader
    accuracy: dict[str, float]


def train_reader(*, image_size: int, num_steps: int, seed: int) -> TrainedReader:
    """Trains on renders of all splits, of scenes drawn anew from the seed; checks on others.

    Args:
        image_size: side of the pictures that it will read, a multiple of 8 pixels.
        num_steps: optimizer steps of 64 pictures.
    """
    rng = np.random.default_rng([seed, STREAM])
    drawn = [scene for split in SPLITS for scene in islice(scenes(split, rng), (NUM_RENDERS + NUM_CHECKED) // len(SPLITS))]
    drawn = [drawn[i] for i in rng.permutation(len(drawn))]
    with progress("reader: renders", len(drawn), unit="picture") as bar:
        pictures = np.stack([_rendered(scene, image_size, rng, bar) for scene in drawn])
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    pixels, labels = as_pixels(pictures[NUM_CHECKED:]), torch.tensor([labels_of(scene) for scene in drawn[NUM_CHECKED:]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Reader(image_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    network.train()
    with progress("reader", num_steps, unit="step") as bar:
        for _ in range(num_steps):
            rows = torch.randint(len(pixels), (BATCH_SIZE,), generator=generator)
            optimizer.zero_grad()
            loss = _loss(network(_roughened(pixels[rows], generator)), labels[rows])
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            bar.advance()
    network.eval().requires_grad_(False)
    read = read_pictures(network, pictures[:NUM_CHECKED])
    scored = [compare(background, seen, scene) for (background, seen), scene in zip(read, drawn, strict=False)]
    return TrainedReader(network, {name: float(np.mean([one[name] for one in scored if one[name] is not None])) for name in SCORES})


def _rendered(scene: Scene, image_size: int, rng: np.random.Generator, bar: Any) -> np.ndarray:
    bar.advance()
    return render(scene, size=image_size, rng=rng)


def _roughened(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures moved by a pixel or two, with noise of a strength of their own."""
    down, right = (int(torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (), generator=generator)) for _ in range(2))
    padded = F.pad(pixels, (MAX_SHIFT,) * 4, mode="replicate")
    H = pixels.shape[-1]
    moved = padded[:, :, MAX_SHIFT + down :][:, :, :H, MAX_SHIFT + right :][..., :H]
    strength = MAX_NOISE * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return moved + strength * torch.randn(moved.shape, generator=generator)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    parts = torch.split(logits, list(HEADS), dim=1)
    return torch.stack([F.cross_entropy(part, labels[:, head]) for head, part in enumerate(parts)]).sum()


@torch.no_grad()
def read_pictures(network: Reader, pictures: np.ndarray) -> list[tuple[str, list[Seen]]]:
    """The background and the objects of each picture (n, H, H, 3) uint8, as `unclip.worlds.judge.compare` takes them."""
    read: list[tuple[str, list[Seen]]] = []
    for start in range(0, len(pictures), BATCH_SIZE):
        parts = torch.split(network(as_pixels(pictures[start : start + BATCH_SIZE])), list(HEADS), dim=1)
        read += [seen_of(labels) for labels in torch.stack([part.argmax(dim=1) for part in parts], dim=1).tolist()]
    return read
