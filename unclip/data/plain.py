"""The vectors of a part of the store as they lie in its Parquet file, and half-precision numbers made single.

Parquet knows no list of fixed size, so a decoder spends most of its time on two levels for each number of a vector, and they
say nothing. Parts as `embed.write_part` writes them hold their vectors plain, so that less the levels a page is the vectors:
they are copied from there, after the page's checksum was held against them. Format: parquet.thrift and Encodings.md of
apache/parquet-format, and the compact protocol of Thrift.
"""

import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.dlpack import from_dlpack

HEADER_BYTES = 256  # that are looked at for the header of a page; ours take some 40
DATA_PAGE, PLAIN = 0, 0  # of the enumerations PageType and Encoding
PAGE_TYPE, UNCOMPRESSED_SIZE, COMPRESSED_SIZE, CRC, DATA_HEADER = 1, 2, 3, 4, 5  # fields of PageHeader
NUM_VALUES, ENCODING = 1, 2  # fields of DataPageHeader
STOP, TRUE, FALSE, I32, I64, BINARY, STRUCT = 0, 1, 2, 5, 6, 8, 12  # types of the compact protocol
LEVELS = 2  # of repetition and of definition, each behind its length in four bytes


def plain_columns(chunks: Any, schema: pa.Schema, names: list[str]) -> dict[str, Any]:
    """Of the columns of these names those that `plain_vectors` reads: vectors of float16 that lie plain, each with its metadata.

    Args:
        chunks: the metadata of a row group.
    """
    by_name = {chunks.column(number).path_in_schema.split(".")[0]: chunks.column(number) for number in range(chunks.num_columns)}
    return {name: by_name[name] for name in names if _is_vector(schema.field(name)) and lies_plain(by_name[name])}


def _is_vector(field: pa.Field) -> bool:
    """Whether its values are vectors of float16 none of whose numbers may be missing."""
    kind = field.type
    return pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16() and not field.nullable and not kind.value_field.nullable


def lies_plain(column: Any) -> bool:
    """Whether a column chunk (its metadata as pyarrow has it) is laid out as `plain_vectors` reads it."""
    plain = column.compression == "UNCOMPRESSED" and set(column.encodings) <= {"RLE", "PLAIN"} and not column.has_dictionary_page
    return plain and column.physical_type == "FIXED_LEN_BYTE_ARRAY"


def plain_vectors(source: pa.NativeFile, column: Any, rows: int, width: int) -> np.ndarray:
    """(rows, width) float16 of a column chunk that `lies_plain`, bit for bit what pyarrow decodes.

    Raises:
        ValueError: a page does not match its checksum, or the pages do not hold just these vectors.
    """
    found = np.empty(rows * width, np.float16)
    begin, end, filled = column.data_page_offset, column.data_page_offset + column.total_compressed_size, 0
    source.seek(begin)
    chunk = memoryview(source.read_buffer(end - begin)).cast("B")
    at = 0
    while at < len(chunk):
        header, size = page_header(chunk[at : at + HEADER_BYTES])
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


def page_header(content: memoryview) -> tuple[dict[int, Any], int]:
    """The fields of a struct in Thrift's compact protocol, by number, and how many bytes it takes.

    Raises:
        ValueError: it is not one, or has fields of kinds that no page header has.
    """
    fields: dict[int, Any] = {}
    at, field = 0, 0
    while True:
        head, at = _byte(content, at), at + 1
        if head == STOP:
            return fields, at
        kind, delta = head & 15, head >> 4
        if not delta:
            raise ValueError("a page header has fields that it should not have")
        field += delta
        if kind in (TRUE, FALSE):
            fields[field] = kind == TRUE
        elif kind in (I32, I64):
            number, at = _varint(content, at)
            fields[field] = (number >> 1) ^ -(number & 1)  # zigzag
        elif kind == BINARY:
            size, at = _varint(content, at)
            at += size
        elif kind == STRUCT:
            fields[field], size = page_header(content[at:])
            at += size
        else:
            raise ValueError("a page header has fields that it should not have")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where the next begins."""
    number = shift = 0
    while True:
        byte, at = _byte(content, at), at + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7


def _byte(content: memoryview, at: int) -> int:
    if at >= len(content):
        raise ValueError("a page header is cut short")
    return int(content[at])
