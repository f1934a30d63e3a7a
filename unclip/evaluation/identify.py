"""Can a generated picture be told from all others as the one that was asked for? By CLIP, and by plain pixels."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from unclip.clip import Clip
from unclip.data.index import Index
from unclip.evaluation.classifier import shrunk
from unclip.evaluation.heldout import Asked
from unclip.evaluation.judge import Judge, Judged

IDENTIFIED = (1, 5)
METRICS = tuple(f"top_{k}" for k in IDENTIFIED)
PIXEL_SIDE = 16
ROWS_AT_ONCE = 2048

ABOUT_CLIP = (
    "Each picture is embedded by CLIP and looked up among all pictures of the index. The same CLIP gave the models their embeddings, so this judge is partial: "
    "it says whether the loop closes, not whether a person would agree."
)
ABOUT_PIXELS = (
    f"Each picture is reduced to {PIXEL_SIDE}x{PIXEL_SIDE} and the real pictures of its split are sorted by mean squared error to it. "
    "Nothing here was trained; it sees colour and rough form only. Real pictures find themselves."
)


def identify(asked: Sequence[Asked], pictures: Sequence[Mapping[str, np.ndarray]], real: Sequence[np.ndarray], clip: Clip, index: Index) -> list[Judge]:
    """The two judges that any data has.

    Args:
        pictures: of each split, a row -> (p, H, H, 3) uint8.
        real: of each split the real pictures to seek among, (g, H, H, 3) uint8, the first p being those asked for.
    """
    names = [one.split for one in asked]
    whole, parts = len(index.keys), dict(zip(names, map(len, real), strict=True))
    by_clip = {one.split: identify_by_clip(made, one.rows.keys, clip, index) for one, made in zip(asked, pictures, strict=True)}
    by_pixels = {one.split: identify_by_pixels(made, of_split) for one, made, of_split in zip(asked, pictures, real, strict=True)}
    galleries = dict.fromkeys(names, whole)
    return [
        Judge("CLIP (also used to make the pictures)", ABOUT_CLIP, METRICS, by_clip, galleries, chances(galleries)),
        Judge("pixels (used by no model)", ABOUT_PIXELS, METRICS, by_pixels, parts, chances(parts)),
    ]


def chances(galleries: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """What luck gives among so many pictures."""
    return {split: {f"top_{k}": min(1.0, k / size) for k in IDENTIFIED} for split, size in galleries.items()}


def identify_by_clip(pictures: Mapping[str, np.ndarray], keys: Sequence[str], clip: Clip, index: Index) -> Judged:
    """Whether CLIP finds the true picture (by key) among all of the index, held-out and training, from each picture made."""
    row_of = {str(key): row for row, key in enumerate(index.keys["key"].to_pylist())}
    judged = {}
    for row, made in pictures.items():
        emb = clip.encode_pictures([Image.fromarray(picture) for picture in made]).numpy()
        _, found = index.search(emb, max(IDENTIFIED))
        wanted = np.array([row_of[key] for key in keys[: len(made)]])
        judged[row] = {f"top_{k}": (found[:, :k] == wanted[:, None]).any(axis=1).astype(np.float64) for k in IDENTIFIED}
    return judged


def identify_by_pixels(pictures: Mapping[str, np.ndarray], real: np.ndarray) -> Judged:
    """Whether the true picture is among the nearest real ones (g, H, H, 3) by mean squared error; row i belongs to real i."""
    gallery = thumbnails(real)
    judged = {}
    for row, made in pictures.items():
        errors = squared_errors(thumbnails(made), gallery)  # (p, g)
        own = np.arange(len(made))
        place = (errors < errors[own, own][:, None]).sum(axis=1)
        judged[row] = {f"top_{k}": (place < k).astype(np.float64) for k in IDENTIFIED}
    return judged


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """(n, H, H, 3) uint8 -> (n, 16 * 16 * 3) uint8, averaged over areas."""
    return shrunk(pictures, PIXEL_SIDE).reshape(len(pictures), -1)


def squared_errors(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) float32 the mean squared error, of values in [0, 1], of each thumbnail (n, D) uint8 and each other one (m, D) uint8."""
    # whole numbers, which float64 holds exactly: two equal pictures come to zero, and the matrix product is fast
    left = first.astype(np.float64)
    squares = np.square(left).sum(axis=1)[:, None]
    out = np.empty((len(first), len(second)), np.float32)
    for start in range(0, len(second), ROWS_AT_ONCE):
        right = second[start : start + ROWS_AT_ONCE].astype(np.float64)
        out[:, start : start + ROWS_AT_ONCE] = (squares + np.square(right).sum(axis=1) - 2.0 * left @ right.T) / (255.0**2 * first.shape[1])
    return out
