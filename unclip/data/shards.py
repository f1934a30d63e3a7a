"""Reading finished shards with webdataset: pictures as the bytes they were stored as, in the order of the tar.

Once `curate` has been over the shards, whoever reads them here gets the rows that it kept.
"""

import dataclasses
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import webdataset
from PIL import Image

from unclip.data.contracts import CURATED, SHARD, read_table
from unclip.data.manifest import Part, finished_manifest, read_manifest
from unclip.files import UnclipError, fingerprint
from unclip.layout import CURATED as CURATED_FOLDER

IMAGE_SUFFIXES = ("png", "jpg", "webp")


@dataclass(frozen=True)
class Sample:
    """One pair of a shard: its key, the encoded picture, its caption."""

    key: str
    image: bytes
    caption: str


def read_shard(path: Path, *, curated: bool = True) -> Iterator[Sample]:
    """The samples of a tar that `curate` kept; all of them where nothing was curated, or with `curated` False.

    Raises:
        UnclipError: it is cut short, a sample lacks its picture or caption, or the shard came after the last `curate`.
    """
    verdicts = curated_rows(path) if curated else None
    kept = None if verdicts is None else set(verdicts.filter(pc.equal(verdicts["status"], "kept"))["key"].to_pylist())
    try:
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, handler=webdataset.reraise_exception, empty_check=False, nodesplitter=None):
            if kept is not None and sample["__key__"] not in kept:
                continue
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


def curated_rows(path: Path) -> pa.Table | None:
    """What `curate` says of the rows of a tar (see contracts.CURATED), None where no shard of the folder was curated.

    Raises:
        UnclipError: others were, but not this one.
    """
    folder = path.parent / CURATED_FOLDER
    if not folder.is_dir():
        return None
    if not (folder / f"{path.stem}.parquet").is_file():
        raise UnclipError(f"{path} came after the last `unclip curate`; run it again")
    return read_table(folder / f"{path.stem}.parquet", CURATED)


def kept_rows(path: Path, *, curated: bool = True) -> pa.Table:
    """The rows of a tar with their facts (see contracts.SHARD), in its order: those that `read_shard` gives.

    Raises:
        UnclipError: see `read_shard`.
    """
    listed = read_table(path.with_suffix(".parquet"), SHARD)
    kept = listed.filter(pc.equal(listed["status"], "kept"))
    verdicts = curated_rows(path) if curated else None
    if verdicts is None:
        return kept
    stays = verdicts.filter(pc.equal(verdicts["status"], "kept"))["key"]
    return kept.filter(pc.is_in(kept["key"], value_set=stays.combine_chunks()))


def curated_part(shards: Path, downloaded: Part) -> Part:
    """The record of a shard as its readers see it: of another digest, and fewer rows, where `curate` dropped some.

    Raises:
        UnclipError: see `curated_rows`.
    """
    verdicts = curated_rows(shards / f"{downloaded.name}.tar")
    dropped = [] if verdicts is None else verdicts.filter(pc.not_equal(verdicts["status"], "kept"))["key"].to_pylist()
    if not dropped:
        return downloaded
    kept = downloaded.kept - len(dropped)
    return dataclasses.replace(downloaded, made_from=fingerprint([downloaded.made_from, dropped]), rows_in=kept, kept=kept, rejected={})


def shards_digest(shards: Path) -> str:
    """Stands for what readers of the shards get today: what was downloaded, less what `curate` dropped.

    Raises:
        UnclipError: `download` or `curate` has not finished, or there are shards that `curate` has not seen.
    """
    downloaded, folder = finished_manifest(shards, "download").digest, shards / CURATED_FOLDER
    if read_manifest(folder) is None:
        return downloaded
    curated = finished_manifest(folder, "curate")
    if curated.inputs["shards"] != downloaded:
        raise UnclipError(f"the shards in {shards} have changed since `unclip curate`; run it again")
    return curated.digest


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
