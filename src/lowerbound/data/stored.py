"""Examples that stay in their file: for data larger than memory.

A row of an array file lies at a place that is known from its number, so a batch in any order is a few reads, one for
each run of neighbours. Nothing stays in memory but what the operating system keeps of the file, and gives up when it is
wanted: memory does not grow with the file, nor does the address space, because the file is read and not mapped. (A map
is faster by a microsecond an example, but a file that is cut short under it kills the process without a word.)

Access is as random as the order of an epoch is, a permutation of all examples. From memory and from solid-state disks
that costs little beside an update; a spinning disk has to seek for every example, for which there is no cure but to
copy the file.

Values have one of three types in memory, whatever they have in the file: uint8 as they are, other whole numbers int32,
and anything else float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowerbound.data import cache
from lowerbound.data.source import ArraySource, Batch, Factors, Source, Support, check_support, decoded
from lowerbound.errors import DataError

# What takes more bytes stays in a file.
HELD_BYTES = 256 << 20
# Largest count: float32 has no longer every whole number above that.
MAX_COUNT = 1 << 24
_CHUNK_BYTES = 4 << 20


def is_held(num_bytes: int) -> bool:
    """Returns whether values of that size are held in memory rather than read from their file as they are wanted."""
    return num_bytes <= HELD_BYTES


def as_held(array: np.ndarray) -> np.ndarray:
    """Returns values in the type that they have in memory."""
    if array.dtype == np.uint8:
        return array
    whole = array.dtype != np.bool_ and np.issubdtype(array.dtype, np.integer)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused with its place
        return array.astype(np.int32 if whole else np.float32, copy=False)


class Rows:
    """The rows of an array in a file, by number.

    Args:
        path: The file; it is opened at once, so what happens to its name afterwards does not matter.
        shape: The shape of the array, `(N, *event)`.
        dtype: The type of its values.
        offset: The bytes of the file before them.

    Raises:
        DataError: The file cannot be read, or is shorter than the array.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self.offset = offset
        self.row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. Check the path and its permissions.") from error
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        self.identity = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if status.st_size < offset + len(self) * self.row_bytes:
            raise self._cut_off(f"its header promises {len(self):,} examples of {self.row_bytes:,} bytes")

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, index: np.ndarray) -> np.ndarray:
        """Returns the rows at `index` (whole numbers, `[B]`), `[B, *event]`, in the file's type.

        Raises:
            IndexError: There is no such row.
            DataError: The file was cut short since it was opened, or cannot be read.
        """
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows are numbered from 0 to {len(self) - 1}; got {index.min()} to {index.max()}")
        starts = np.flatnonzero(np.diff(index, prepend=-2) != 1)
        lengths = np.diff(starts, append=len(index)) * self.row_bytes
        places = self.offset + index[starts].astype(np.int64) * self.row_bytes
        runs = [self._bytes(length, place) for length, place in zip(lengths.tolist(), places.tolist(), strict=True)]
        # Joined to a bytearray because an array of bytes could not be written to, which torch minds.
        return np.frombuffer(bytearray().join(runs), self.dtype).reshape(len(index), *self.shape[1:])

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields all rows in order, some at a time, each time with the number of the first."""
        step = max(1, _CHUNK_BYTES // max(1, self.row_bytes))
        for start in range(0, len(self), step):
            yield start, self.read(np.arange(start, min(start + step, len(self))))

    def _bytes(self, length: int, place: int) -> bytes:
        try:
            found = _read_at(self._descriptor, length, place)
            while len(found) < length:  # a read may stop early, and beyond the end there is nothing
                more = _read_at(self._descriptor, length - len(found), place + len(found))
                if not more:
                    raise self._cut_off("it was cut short while it was being read")
                found += more
        except OSError as error:
            raise DataError(f"{self.path} cannot be read any more: {error.strerror}. Check the disk.") from error
        return found

    def _cut_off(self, what: str) -> DataError:
        size = os.fstat(self._descriptor).st_size
        return DataError(f"{self.path} has {size:,} bytes, too few: {what}. Copy or save it again.")


def _seek_and_read(descriptor: int, length: int, place: int) -> bytes:
    os.lseek(descriptor, place, os.SEEK_SET)
    return os.read(descriptor, length)


# Windows has no call for both at once.
_read_at: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)


class StoredSource(Source):
    """Examples that are read from their file as they are wanted.

    Args:
        rows: The examples in their file.
        labels: int64 `[N]`, or None; held in memory.
        support: What x can be; not checked here (`scanned` does).
        scale: What uint8 values are multiplied by.
        name: Used in messages.
        log_correction: See `Source`.
        factors: The true causes, or None; held in memory.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(bytes([0, 255, 51, 0]))
        ...     file.flush()
        ...     source = StoredSource(Rows(Path(file.name), (2, 2), np.dtype(np.uint8)))
        >>> source.examples(torch.tensor([1])).x
        tensor([[0.2000, 0.0000]])
    """

    def __init__(
        self,
        rows: Rows,
        labels: Tensor | None = None,
        *,
        support: Support = Support.EIGHT_BIT,
        scale: float = 1 / 255,
        name: str = "the data",
        log_correction: float = 0.0,
        factors: Factors | None = None,
    ) -> None:
        if labels is not None and len(labels) != len(rows):
            raise DataError(f"{name} has {len(rows)} examples but {len(labels)} labels; give one label each.")
        self.rows = rows
        self.event_shape = rows.shape[1:]
        self.support = support
        self.scale = scale
        self.name = name
        self.log_correction = log_correction
        self._labels = labels
        self._factors = factors

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def factors(self) -> Factors | None:
        return self._factors

    @property
    def labels(self) -> Tensor | None:
        return self._labels

    def gather(self, index: Tensor) -> Batch:
        index = index.cpu()
        values = torch.from_numpy(as_held(self.rows.read(index.numpy())))
        labels = None if self._labels is None else self._labels[index]
        return Batch(values, labels, factors=None if self._factors is None else self._factors.values[index])

    def decode(self, raw: Tensor) -> Tensor:
        return decoded(raw, self.scale)

    def to(self, device: torch.device) -> StoredSource:
        return self

    @cached_property
    def fingerprint(self) -> str:
        digest = scanned(self.rows, self.name, self.support).sha256
        return hashlib.sha256(repr((self.event_shape, self.scale, digest)).encode()).hexdigest()


@dataclass(frozen=True)
class Scan:
    """What one pass over all values tells.

    Attributes:
        sha256: Of the values as they are in the file.
        support: The narrowest that holds all of them.
    """

    sha256: str
    support: Support


def scanned(rows: Rows, name: str, support: Support = Support.REAL) -> Scan:
    """Looks at every value of a file once, in bounded memory; what was found is kept while the file does not change.

    Args:
        rows: The file.
        name: Used in messages.
        support: That of a table, where a value may be missing.

    Raises:
        DataError: A value is not finite, or whole numbers are no counts; the message says where.
    """
    known = hashlib.sha256(repr((*rows.identity, rows.offset, rows.shape, rows.dtype.str)).encode()).hexdigest()
    if found := cache.remembered(known):
        with contextlib.suppress(KeyError, ValueError):
            return Scan(str(found["sha256"]), Support(found["support"]))
    scan = _scan(rows, name, Support.TABLE if support is Support.TABLE else Support.REAL)
    cache.remember(known, {"sha256": scan.sha256, "support": scan.support.value})
    return scan


def _scan(rows: Rows, name: str, floats: Support) -> Scan:
    digest = hashlib.sha256()
    support, lows, highs = Support.BINARY, [0], [0]
    for start, chunk in rows.chunks():
        digest.update(chunk.data)
        values = as_held(chunk)
        if values.dtype == np.float32:
            check_support(torch.from_numpy(values), floats, name, first=start)
        elif values.dtype == np.int32:
            lows.append(int(chunk.min()))
            highs.append(int(chunk.max()))
        support = widest(support, narrowest(torch.from_numpy(values)))
    if rows.dtype.kind in "iu" and rows.dtype != np.uint8:
        check_counts(rows.shape, rows.dtype, min(lows), max(highs), name)
    return Scan(digest.hexdigest(), support)


def widest(*supports: Support) -> Support:
    """Returns the one that holds the values of all."""
    order = list(Support)
    return max(supports, key=order.index)


def narrowest(values: Tensor) -> Support:
    """Returns the narrowest support of values as they are held in memory."""
    found = Support.BINARY
    for chunk in values.split(max(1, _CHUNK_BYTES // max(1, values[:1].nbytes))):
        found = widest(found, _narrowest(chunk))
    return found


def _narrowest(values: Tensor) -> Support:
    if bool(((values == 0) | (values == 1)).all()):
        return Support.BINARY
    if values.dtype == torch.uint8:
        return Support.EIGHT_BIT
    if values.dtype == torch.int32:
        return Support.COUNT
    if bool(((values >= 0) & (values <= 1)).all()):
        return Support.UNIT_INTERVAL
    return Support.REAL


def check_counts(shape: tuple[int, ...], dtype: np.dtype[Any], low: int, high: int, name: str) -> None:
    """Raises `DataError` when whole numbers from `low` to `high` cannot be counts, or may be pictures."""
    if low < 0 or high > MAX_COUNT:
        raise DataError(
            f"{name} has {dtype} values from {low:,} to {high:,}. Whole numbers are read as counts, from 0 to "
            f"{MAX_COUNT:,} (float32 has no longer every one above that). Save other values as float32."
        )
    if len(shape) > 2 and high > 1:
        # Taken for counts, pictures would be given a likelihood that is not theirs, and nobody would notice.
        raise DataError(
            f"{name} has {dtype} values up to {high} of shape {list(shape)}, which can be pictures or "
            "counts. Save pictures as uint8 (or as float32 in [0, 1]), and counts as [N, D]; or say what they are by "
            "lowerbound.ArraySource(values, support=...)."
        )


def kept(
    chunks: Iterable[Tensor],
    count: int,
    event_shape: tuple[int, ...],
    dtype: torch.dtype,
    labels: Tensor | None = None,
    **described: Any,
) -> Source:
    """Keeps values that are made once: in memory, or in a file without a name where they are large.

    Args:
        chunks: The values in order, some examples at a time.
        count: How many examples they are.
        event_shape: The shape of each.
        dtype: uint8 or float32.
        labels: int64 `[N]`, or None.
        **described: The other arguments of `ArraySource` and `StoredSource`.

    Raises:
        ResourceError: The disk is full or refuses.
    """
    shape, empty = (count, *event_shape), torch.zeros((0, *event_shape), dtype=dtype)
    if is_held(torch.Size(shape).numel() * dtype.itemsize):
        return ArraySource(torch.cat([empty, *chunks]), labels, **described)
    folder = cache.cache_dir() / "drawn"
    target = folder / f"{os.getpid()}-{next(_NUMBERS)}.npy"
    cache.pack(target, shape, empty.numpy().dtype, (chunk.numpy() for chunk in chunks))
    rows = rows_of(target)
    # Open files go on without a name, and nothing is left when the process ends, however it does.
    with contextlib.suppress(OSError):
        target.unlink()
    return StoredSource(rows, labels, **described)


_NUMBERS = itertools.count()


def rows_of(path: Path) -> Rows:
    """Opens the array in a `.npy` file without reading more than its header.

    Raises:
        DataError: It is no such file, holds Python objects, or lies in Fortran's order.
    """
    try:
        with path.open("rb") as file:
            major, _ = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except Exception as error:  # NumPy reads a header as Python, so a damaged one can end in anything
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a NumPy file ({reason}); save it again with numpy.save.") from error
    if dtype.hasobject or dtype.fields is not None:
        raise DataError(f"{path} has values of type {dtype}; save numbers alone.")
    if fortran and len(shape) > 1:
        raise DataError(
            f"{path} lies column by column (Fortran's order), so its examples cannot be read one by one. Save it "
            "again with numpy.save(path, numpy.ascontiguousarray(x))."
        )
    return Rows(path, tuple(shape), dtype, offset)
