"""Reading finished shards with webdataset: pictures as the bytes they were stored as, in the order of the tar."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from unclip.files import UnclipError

IMAGE_SUFFIXES = ("png", "jpg", "webp")


@dataclass(frozen=True)
class Sample:
    """One pair of a shard: its key, the encoded picture, its caption."""

    key: str
    image: bytes
    caption: str


def read_shard(path: Path) -> Iterator[Sample]:
    """All samples of a tar.

    Raises:
        UnclipError: it is cut short, or a sample lacks its picture or caption.
    """
    try:
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, handler=webdataset.reraise_exception, empty_check=False, nodesplitter=None):
            suffix = next((name for name in IMAGE_SUFFIXES if name in sample), None)
            if suffix is None or "txt" not in sample:
                raise UnclipError(
                    f"{path}: the sample {sample['__key__']} holds {sorted(k for k in sample if not k.startswith('__'))}, expected a picture and txt"
                )
            yield Sample(sample["__key__"], sample[suffix], sample["txt"].decode())
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:  # ValueError: a name twice, or a caption that is not UTF-8
        raise UnclipError(
            f"{path} is not a whole tar ({' '.join(str(error).split())[:200]}); remove it and its .json, and run `unclip download` again"
        ) from None


def decode(image: bytes, size: int) -> np.ndarray:
    """A picture cut to its middle square and scaled to (size, size, 3) uint8, with antialiasing."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    resized = picture.resize((size, size), Image.Resampling.BOX if side % size == 0 else Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(resized)
