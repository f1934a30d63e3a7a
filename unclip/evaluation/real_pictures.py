"""The real pictures that generated ones are held against, read from the shards: those asked for, and those trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unclip.data.shards import decode, read_shard
from unclip.data.store import iter_batches
from unclip.evaluation.classifier import shrunk
from unclip.evaluation.heldout import TRAIN
from unclip.files import UnclipError
from unclip.progress import progress


@dataclass(frozen=True)
class TrainingPictures:
    """Pictures that the models were trained on.

    Attributes:
        captions: n of them.
        pictures: (n, S, S, 3) uint8.
        total: how many training pictures there are, of which these are the first n.
    """

    captions: list[str]
    pictures: np.ndarray
    total: int


def read_encoded(shards: Path, keys: Iterable[str]) -> dict[str, bytes]:
    """The pictures with these keys, as they are stored; shards after the last of them are not read.

    Raises:
        UnclipError: a key has no picture.
    """
    wanted = set(keys)
    found: dict[str, bytes] = {}
    with progress("real", len(wanted), unit="picture") as bar:
        for path in sorted(shards.glob("*.tar")):
            if len(found) == len(wanted):
                break
            for sample in read_shard(path):
                if sample.key in wanted:
                    found[sample.key] = sample.image
                    bar.advance()
    if missing := sorted(wanted - found.keys()):
        raise UnclipError(f"{len(missing)} rows of the store have no picture in {shards}, the first is {missing[0]}; run `unclip download` and `unclip embed`")
    return found


def decode_all(encoded: Mapping[str, bytes], keys: Sequence[str], *, image_size: int) -> np.ndarray:
    """The pictures with these keys as the decoder is shown them, (c, H, H, 3) uint8."""
    return np.stack([decode(encoded[key], image_size) for key in keys])


def read_training_pictures(shards: Path, store: Path, *, image_size: int, side: int, limit: int) -> TrainingPictures:
    """The first `limit` training pictures, as the decoder was shown them (image_size), made smaller to `side` pixels."""
    trained = {str(key) for batch in iter_batches(store, ["key", "split"]) for key in batch["key"][batch["split"] == TRAIN]}
    captions: list[str] = []
    pictures: list[np.ndarray] = []
    num = min(limit, len(trained))
    with progress("training pictures", num, unit="picture") as bar:
        for path in sorted(shards.glob("*.tar")):
            if len(pictures) == num:
                break
            for sample in read_shard(path):
                if len(pictures) < num and sample.key in trained:
                    pictures.append(shrunk(decode(sample.image, image_size)[None], side)[0])
                    captions.append(sample.caption)
                    bar.advance()
    return TrainingPictures(captions, np.stack(pictures) if pictures else np.zeros((0, side, side, 3), np.uint8), len(trained))
