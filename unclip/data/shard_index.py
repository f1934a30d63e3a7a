"""Where each picture of a shard lies, so that any one of them is read by itself and known to be whole.

A tar has no table of contents. Ours is made once, after the tar's bytes were held against the shard's record, and lies
under the shards' `_cache/`, for CLIP is trained before there is an embedding store. It may be thrown away at any time:
whoever opens it makes it again where it is missing, broken, or of another tar.
"""

import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from webdataset.tariterators import base_plus_ext

from unclip.data.cache import only_builder
from unclip.data.manifest import read_part
from unclip.data.shards import IMAGE_SUFFIXES
from unclip.files import UnclipError, replacing, sha256_file

FOLDER = "_cache"
MADE_FROM = b"made_from"
VERSION = "1"
OPEN_TARS = 64  # at once in a process; systems allow 256 at the least
INDEX = pa.schema([
    pa.field("key", pa.string(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),  # of the encoded picture in the tar, bytes
    pa.field("size", pa.int32(), nullable=False),  # bytes
    pa.field("checksum", pa.uint32(), nullable=False),  # CRC-32 of them
])  # fmt: skip


def open_index(shards: Path, name: str) -> pa.Table:
    """The pictures of one shard in the order of its tar, with the columns of `INDEX`.

    Raises:
        UnclipError: the tar has no record, or is not what its record says.
    """
    tar, path = shards / f"{name}.tar", shards / FOLDER / f"{name}.parquet"
    part = read_part(shards, name)
    if part is None:
        raise UnclipError(f"{tar} has no record beside it, so it is not known to be whole; run `unclip download` again")
    size, sha256 = part.files[tar.name]
    if not tar.is_file() or tar.stat().st_size != size:
        came = f"has {tar.stat().st_size:,} bytes" if tar.is_file() else "is missing"
        raise UnclipError(f"{tar} {came}, its record says {size:,}; run `unclip repair`")
    made_from = {MADE_FROM: f"{VERSION} {sha256}".encode()}
    table = _read(path)
    if table is None or table.schema.metadata != made_from:
        if sha256_file(tar) != sha256:
            raise UnclipError(f"{tar} has its size, but other bytes than its record says; run `unclip repair`")
        table = _index(tar).replace_schema_metadata(made_from)
        with replacing(path) as aside:
            pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
    if len(table) != part.kept:
        raise UnclipError(f"{tar} holds {len(table):,} pictures, its record says {part.kept:,}; run `unclip repair`")
    return table


def _read(path: Path) -> pa.Table | None:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid):  # not there, cut, or written by somebody else: made again
        return None
    return table if table.schema.equals(INDEX) else None


def _index(path: Path) -> pa.Table:
    rows: dict[str, tuple[int, int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as content:
            for member in tar:
                key, suffix = base_plus_ext(member.name)
                if not member.isfile() or suffix is None or suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                if key in rows:
                    raise UnclipError(f"{path} holds two pictures of the key {key}; every key must be there once")
                content.seek(member.offset_data)
                rows[key] = (member.offset_data, member.size, zlib.crc32(content.read(member.size)))
    except (tarfile.ReadError, EOFError, OSError) as error:
        raise UnclipError(f"{path} is not a whole tar ({str(error)[:200]}); run `unclip repair`") from None
    places = np.array(list(rows.values()), np.int64).reshape(-1, 3)
    return pa.table([pa.array(rows, pa.string()), *(pa.array(places[:, column]).cast(INDEX.field(column + 1).type) for column in range(3))], schema=INDEX)


def find(index: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """(n,) the row of each key in an index, -1 where it is not there."""
    found: np.ndarray = pc.index_in(pa.array(keys, pa.string()), value_set=index["key"]).fill_null(-1).to_numpy(zero_copy_only=False)
    return found


@contextmanager
def indexing(shards: Path) -> Iterator[None]:
    """Holds the right to make indexes of these shards: of several processes that train together, one makes them.

    Raises:
        UnclipError: they can't be written.
    """
    try:
        with only_builder(shards / FOLDER):
            yield
    except OSError as error:
        raise UnclipError(f"the index of the shards in {shards / FOLDER} can't be made ({error}); make room for it") from None


@dataclass(frozen=True)
class Places:
    """Where n pictures lie, in any order and shards.

    Attributes:
        folder, names: of the shards.
        shards: (n,) the number of each picture's shard in `names`.
        offsets, sizes, checksums: (n,) as in `INDEX`.
    """

    folder: Path
    names: tuple[str, ...]
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray

    @classmethod
    def of(cls, folder: Path, chosen: Mapping[str, pa.Table]) -> Self:
        """The places of chosen rows of indexes, by name of the shard, one after the other."""
        numbers = [np.full(len(table), number, np.int32) for number, table in enumerate(chosen.values())]
        kinds = {"offset": np.int64, "size": np.int32, "checksum": np.uint32}
        columns = [np.concatenate([np.zeros(0, kind), *(table[name].to_numpy() for table in chosen.values())]) for name, kind in kinds.items()]
        return cls(folder, tuple(chosen), np.concatenate([np.zeros(0, np.int32), *numbers]), *columns)

    def __len__(self) -> int:
        return len(self.shards)

    def tar(self, row: int) -> Path:
        """The shard of a picture."""
        return self.folder / f"{self.names[self.shards[row]]}.tar"

    def key(self, row: int) -> str:
        """The key of a picture, for a message: its index is opened for it."""
        index = open_index(self.folder, self.names[self.shards[row]])
        at = index["offset"].to_numpy().tolist().index(self.offsets[row])
        return str(index["key"][at])

    def undecodable(self, row: int, error: Exception) -> UnclipError:
        """What to raise for a picture that is what was stored, but no picture."""
        return UnclipError(f"{self.tar(row)}: the picture {self.key(row)} can't be decoded ({str(error)[:200]}); remove its row from the source")


class PictureReader:
    """Reads encoded pictures by their row; the tars that were used last stay open. For one process and thread."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._open: OrderedDict[int, int] = OrderedDict()  # file descriptors by number of shard, the last used last

    def __call__(self, row: int) -> bytes:
        """The picture of a row.

        Raises:
            UnclipError: its bytes are not those that were stored, or can't be read.
        """
        places = self._places
        try:
            content = os.pread(self._descriptor(int(places.shards[row])), int(places.sizes[row]), int(places.offsets[row]))
        except OSError as error:
            raise UnclipError(f"{places.tar(row)} can't be read ({error}); run `unclip verify`") from None
        if zlib.crc32(content) != places.checksums[row]:
            raise UnclipError(f"{places.tar(row)}: the picture {places.key(row)} is not what was stored, its bytes have changed; run `unclip repair`")
        return content

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = os.open(self._places.folder / f"{self._places.names[shard]}.tar", os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > OPEN_TARS:
                os.close(self._open.popitem(last=False)[1])
        return self._open[shard]

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
