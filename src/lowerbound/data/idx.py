"""The IDX format of MNIST: a big-endian header (type, rank, sizes), then the values.

A header is a claim. It is read only as far as the file bears it out: the bytes must be exactly as many as the sizes
say, and nothing larger than a bound is ever unpacked.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lowerbound.errors import DataError

MAX_BYTES = 1 << 30
_UINT8 = 0x08


def read_idx_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the uncompressed bytes of an IDX file, whether it is gzipped or not.

    Raises:
        DataError: The file cannot be read, its gzip stream is damaged, or it unpacks to over `max_bytes`.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = _read_up_to(gzip.GzipFile(fileobj=file) if zipped else file, max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} could not be read to its end ({error}). It is truncated or damaged: fetch it again."
        ) from error
    if len(content) > max_bytes:
        raise DataError(f"{path} unpacks to more than {max_bytes:,} bytes, which no data set here needs; refused.")
    return content


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Returns the array that IDX bytes describe, uint8, with the shape of the header.

    Args:
        content: The uncompressed file.
        name: Used in messages.

    Raises:
        DataError: The magic number is wrong, the values are not uint8, or the header's sizes do not fit the bytes.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), "three").tolist()
        [7, 8, 9]
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8 or not 1 <= content[3] <= 4:
        raise DataError(
            f"{name} should begin with the IDX magic number of uint8 values (00 00 08 and a rank from 1 to 4), "
            f"but begins with {content[:4].hex(' ') or 'nothing'}. It is not an IDX file: fetch it again."
        )
    rank = content[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(f"{name} ends inside its IDX header, after {len(content)} bytes. Fetch it again.")
    shape = struct.unpack(f">{rank}I", content[4:header])
    expected = math.prod(shape)
    if len(content) - header != expected:
        raise DataError(
            f"{name} promises {' x '.join(map(str, shape))} = {expected:,} values in its header, but holds "
            f"{len(content) - header:,}. It is truncated or its header is wrong: fetch it again."
        )
    try:
        return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    except ValueError as error:  # no values, but sizes beside the 0 that no array can have
        raise DataError(
            f"{name} promises {' x '.join(map(str, shape))} values in its header, which no array can have. "
            "Its header is wrong: fetch it again."
        ) from error


def _read_up_to(file: BinaryIO | gzip.GzipFile, size: int) -> bytes:
    # In pieces: one read(size) would set aside `size` bytes, however small the file is.
    pieces = []
    while size > 0 and (piece := file.read(min(size, 1 << 20))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
