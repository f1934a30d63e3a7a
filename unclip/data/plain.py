"""The vectors of a part of the store as they lie in its Parquet file, and half-precision numbers made single.

Parquet knows no list of fixed size, so a decoder spends most of its time on two levels for each number of a vector, and they
say nothing. Parts as `embed.write_part` writes them hold their vectors plain, so that less the levels a page is the vectors:
they are copied from there, after the page's checksum was held against them. Format: parquet.thrift and Encodings.md of
apache/parquet-format, and the compact protocol of Thrift.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.dlpack import from_dlpack

HEADER_BYTES = 256  # that are looked at for the header of a page; ours take some 40
DATA_PAGE, PLAIN = 0, 0  # of the enumerations PageType and Encoding
PAGE_TYPE, UNCOMPRESSED_SIZE, COMPRESSED_SIZE, CRC, DATA_HEADER = 1, 2, 3, 4, 5  # fields of PageHeader
NUM_VALUES, ENCODING = 1, 2  # fields of DataPageHeader
ROW_GROUPS, COLUMNS, META_DATA = 4, 1, 3  # fields of FileMetaData, RowGroup and ColumnChunk
TYPE, ENCODINGS, PATH, CODEC, TOTAL_COMPRESSED_SIZE, PAGE_OFFSET, DICTIONARY_OFFSET = 1, 2, 3, 4, 7, 9, 11  # fields of ColumnMetaData
FIXED_LEN_BYTE_ARRAY, UNCOMPRESSED, RLE = 7, 0, 3  # of the enumerations Type, CompressionCodec and Encoding
TAIL_BYTES, MAGIC = 8, b"PAR1"  # of a file: the length of its footer, and these letters
STOP, TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, STRUCT = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12  # types of the compact protocol
MOST_BITS = 70  # of a number, in groups of seven
DEEPEST = 16  # structs and lists inside each other
LEVELS = 2  # of repetition and of definition, each behind its length in four bytes


@dataclass(frozen=True)
class Chunk:
    """What a footer says of the values of a column in a row group.

    Attributes:
        begin, end: of its pages, in bytes from the beginning of the file.
        is_plain: whether it is laid out as `plain_vectors` reads it.
    """

    begin: int
    end: int
    is_plain: bool


def plain_columns(chunks: Mapping[str, Chunk], schema: pa.Schema, names: list[str]) -> dict[str, Chunk]:
    """Of the columns of these names those that `plain_vectors` reads: vectors of float16 that lie plain."""
    return {name: chunks[name] for name in names if _is_vector(schema.field(name)) and name in chunks and chunks[name].is_plain}


def read_chunks(source: pa.NativeFile) -> list[dict[str, Chunk]]:
    """Of each row group of a Parquet file what its footer says of its columns, by their names.

    The footer is read here because pyarrow ends the process when it is asked for a column that a damaged one describes.

    Raises:
        ValueError: the footer does not read.
    """
    size = source.size()
    source.seek(size - TAIL_BYTES)
    tail = source.read(TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or not 0 < length <= size - TAIL_BYTES:
        raise ValueError("the file does not end as a Parquet file does")
    source.seek(size - TAIL_BYTES - length)
    footer, _ = thrift_struct(memoryview(source.read(length)))
    return [_chunks_of(group) for group in _list(footer, ROW_GROUPS)]


def _chunks_of(group: object) -> dict[str, Chunk]:
    found: dict[str, Chunk] = {}
    for column in _list(group, COLUMNS):
        about = column.get(META_DATA) if isinstance(column, dict) else None
        if not isinstance(about, dict):
            raise ValueError("a footer says nothing of a column")
        begin, num_bytes = _number(about, PAGE_OFFSET), _number(about, TOTAL_COMPRESSED_SIZE)
        encodings, path = _list(about, ENCODINGS), _list(about, PATH)
        plain = about.get(CODEC) == UNCOMPRESSED and set(encodings) <= {PLAIN, RLE} and DICTIONARY_OFFSET not in about
        if path:
            found[bytes(path[0]).decode(errors="replace")] = Chunk(begin, begin + num_bytes, plain and about.get(TYPE) == FIXED_LEN_BYTE_ARRAY)
    return found


def _list(fields: object, name: int) -> list[Any]:
    value = fields.get(name) if isinstance(fields, dict) else None
    if not isinstance(value, list):
        raise ValueError("a footer does not read")
    return value


def _is_vector(field: pa.Field) -> bool:
    """Whether its values are vectors of float16 none of whose numbers may be missing."""
    kind = field.type
    return pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16() and not field.nullable and not kind.value_field.nullable


def plain_vectors(source: pa.NativeFile, column: Chunk, rows: int, width: int) -> np.ndarray:
    """(rows, width) float16 of a column chunk that is plain, bit for bit what pyarrow decodes.

    Raises:
        ValueError: a page does not match its checksum, or the pages do not hold just these vectors.
    """
    found = np.empty(rows * width, np.float16)
    if column.end > source.size():
        raise ValueError("a column does not end within its file")
    source.seek(column.begin)
    chunk, filled = memoryview(source.read_buffer(column.end - column.begin)).cast("B"), 0
    at = 0
    while at < len(chunk):
        header, size = thrift_struct(chunk[at : at + HEADER_BYTES])
        about = header.get(DATA_HEADER)
        if header.get(PAGE_TYPE) != DATA_PAGE or not isinstance(about, dict) or about.get(ENCODING) != PLAIN:
            raise ValueError("expected pages of plain values")
        num_bytes, at = _number(header, COMPRESSED_SIZE), at + size
        page, at = chunk[at : at + num_bytes], at + num_bytes
        if at > len(chunk) or num_bytes != header.get(UNCOMPRESSED_SIZE):
            raise ValueError("a page does not end where its column does")
        if CRC not in header or zlib.crc32(page) != _number(header, CRC) % 2**32:
            raise ValueError("a page does not match its checksum")
        for _ in range(LEVELS):
            page = page[4 + int.from_bytes(page[:4], "little") :]
        num = _number(about, NUM_VALUES)
        if len(page) != num * found.itemsize or filled + num > len(found):
            raise ValueError(f"expected {rows} vectors of {width} numbers, there are others")
        found[filled : filled + num] = np.frombuffer(page, np.float16)
        filled += num
    if filled != len(found):
        raise ValueError(f"expected {rows} vectors of {width} numbers, there are fewer")
    return found.reshape(rows, width)


def as_float32(vectors: np.ndarray) -> np.ndarray:
    """The same numbers as float32, copied. Of float16, torch's conversion takes a tenth of numpy's time."""
    if vectors.dtype != np.float16 or not vectors.flags.c_contiguous:
        return vectors.astype(np.float32)
    wide = np.empty(vectors.shape, np.float32)  # numpy's memory and not torch's: large arrays get large pages
    torch.from_numpy(wide).copy_(from_dlpack(vectors))
    return wide


def _number(fields: dict[int, Any], name: int) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or (name != CRC and value < 0):
        raise ValueError("a page has no header that reads")
    return value


def thrift_struct(content: memoryview, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a struct in Thrift's compact protocol, by number, and how many bytes it takes.

    Raises:
        ValueError: it is not one, or has fields of kinds that neither page headers nor footers have.
    """
    fields: dict[int, Any] = {}
    at, field = 0, 0
    while True:
        head, at = _byte(content, at), at + 1
        if head == STOP:
            return fields, at
        kind, delta = head & 15, head >> 4
        if delta:
            field += delta
        else:
            number, at = _varint(content, at)
            field = _zigzag(number)
        if kind in (TRUE, FALSE):
            fields[field] = kind == TRUE
        else:
            fields[field], at = _value(content, at, kind, depth)


def _value(content: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """A value of a kind that begins at a place, and where it ends."""
    if depth > DEEPEST:
        raise ValueError("a header is nested too deep")
    if kind in (I16, I32, I64):
        number, at = _varint(content, at)
        return _zigzag(number), at
    if kind in (I8, TRUE, FALSE):  # the latter two in lists, where each takes a byte
        return _byte(content, at), at + 1
    if kind in (BINARY, DOUBLE):
        size, at = _varint(content, at) if kind == BINARY else (8, at)
        if at + size > len(content):
            raise ValueError("a header is cut short")
        return content[at : at + size], at + size
    if kind == STRUCT:
        fields, size = thrift_struct(content[at:], depth + 1)
        return fields, at + size
    if kind == LIST:
        head, at = _byte(content, at), at + 1
        num, of = head >> 4, head & 15
        if num == 15:
            num, at = _varint(content, at)
        values = []
        for _ in range(num):  # each takes a byte at least, so a number that is too large ends soon
            value, at = _value(content, at, of, depth + 1)
            values.append(value)
        return values, at
    raise ValueError("a header has fields that it should not have")


def _zigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where the next begins."""
    number = shift = 0
    while shift < MOST_BITS:
        byte, at = _byte(content, at), at + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise ValueError("a header has a number that is too long")


def _byte(content: memoryview, at: int) -> int:
    if at >= len(content):
        raise ValueError("a page header is cut short")
    return int(content[at])
