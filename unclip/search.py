"""Nearest neighbours in the index, by caption or by picture, and the pictures that belong to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unclip.clip import Clip
from unclip.data.index import Index
from unclip.data.picture import open_picture
from unclip.data.shards import decode, read_shard
from unclip.files import UnclipError

SHARD_DIGITS = 5  # a key begins with the name of its shard


@dataclass(frozen=True)
class Hit:
    """One neighbour: its cosine with the query, and its row of the key table."""

    score: float
    key: str
    caption: str
    url: str
    split: str


def search(index: Index, query: np.ndarray, k: int) -> list[Hit]:
    """The k nearest to one raw embedding (E,), best first.

    Raises:
        UnclipError: k is not positive, or the query is of another width.
    """
    if k < 1:
        raise UnclipError(f"k must be at least 1, got {k}")
    scores, rows = index.search(query[None], k)
    found = index.keys.take(rows[0]).to_pylist()
    return [Hit(float(score), row["key"], row["caption"], row["url"], row["split"]) for score, row in zip(scores[0], found, strict=True)]


def embed_query(clip: Clip, *, text: str, image: Path | None) -> np.ndarray:
    """The raw embedding (E,) of a caption or of a picture file.

    Raises:
        UnclipError: both or neither were given, or the file is no picture.
    """
    if bool(text) == (image is not None):
        raise UnclipError("search takes a caption or --image PICTURE, one of the two")
    if image is None:
        return clip.encode_texts([text]).text_emb[0].cpu().numpy()
    return clip.encode_pictures([open_picture(image)])[0].numpy()


def pictures_of(shards: Path, keys: Sequence[str], size: int) -> np.ndarray:
    """The pictures of these keys from the shards, (n, size, size, 3) uint8, in the order of the keys.

    Raises:
        UnclipError: a key has no picture there.
    """
    wanted, found = set(keys), {}
    for shard in sorted({key[:SHARD_DIGITS] for key in keys}):
        for sample in read_shard(shards / f"{shard}.tar"):
            if sample.key in wanted:
                found[sample.key] = decode(sample.image, size)
    if missing := wanted - found.keys():
        raise UnclipError(f"{shards} holds no picture for {', '.join(sorted(missing)[:5])}; index and shards do not belong together, run `unclip index` again")
    return np.stack([found[key] for key in keys])
