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
    except (tarfile.ReadError, EOFError, OSError) as error:
        raise UnclipError(f"{path} is not a whole tar ({str(error)[:200]}); remove it and its .json, and run `unclip download` again") from None


@dataclass(frozen=True)
class Window:
    """A square of a scaled picture: its corner and its side, in pixels of the scaled picture."""

    left: int
    top: int
    side: int


def decode(image: bytes, size: int, window: Window | None = None) -> np.ndarray:
    """A picture cut to its middle square and scaled to (size, size, 3) uint8, with antialiasing; of that the window (side, side, 3), if one is given."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    side, seen = min(picture.size), window or Window(0, 0, size)
    begin = (picture.width - side) // 2, (picture.height - side) // 2
    left, top, right, bottom = (at * side / size for at in (seen.left, seen.top, seen.left + seen.side, seen.top + seen.side))
    method = Image.Resampling.BOX if side % size == 0 else Image.Resampling.BICUBIC
    box = (begin[0] + left, begin[1] + top, begin[0] + right, begin[1] + bottom)
    return np.asarray(picture.resize((seen.side, seen.side), method, box=box))
