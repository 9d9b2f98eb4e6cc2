"""The user's cache: what is made of data once and kept, or too large to be held in memory.

A file takes its name only once it is whole: it is written beside its place, brought to the disk, and renamed. What the
disk refuses is a `ResourceError`, and leaves nothing behind.

Environment:

* `LOWERBOUND_CACHE`: the folder to keep such files in, instead of the user's own cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs

from lowerbound.errors import ResourceError, disk_errors

_RESCUE = "run the same command again, or name a folder with more space by LOWERBOUND_CACHE"
_SUFFIX = ".part"
# What a process that was killed left behind is nobody's after a day.
_STALE_SECONDS = 86_400


def cache_dir() -> Path:
    """Returns the folder where downloaded data sets, packed pictures and the like are kept."""
    given = os.environ.get("LOWERBOUND_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("lowerbound", appauthor=False))


def pack(target: Path, shape: tuple[int | None, ...], dtype: np.dtype[Any], chunks: Iterable[np.ndarray]) -> None:
    """Writes an array that need not fit in memory as a `.npy` file, whole or not at all.

    Args:
        target: The file.
        shape: The array's shape; the first number may be None, for as many rows as the chunks turn out to have.
        dtype: Its type.
        chunks: The array in order, some rows at a time.

    Raises:
        ResourceError: The disk is full or refuses; nothing is left of what was written.
        ValueError: The chunks are not the rows of such an array.
    """
    event = tuple(int(size or 0) for size in shape[1:])
    needed = int(shape[0] or 0) * int(np.prod(event, dtype=np.int64)) * dtype.itemsize
    with disk_errors(target, _RESCUE):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        _check_space(target, needed)
        with written(target) as file:
            _write_header(file, (shape[0] or 0, *event), dtype)
            count = _write_rows(file, event, dtype, chunks)
            if shape[0] is None:
                # NumPy leaves room in a header for the array to grow, so it takes as many bytes again.
                file.seek(0)
                _write_header(file, (count, *event), dtype)
            elif count != shape[0]:
                raise ValueError(f"expected {shape[0]} rows, got {count}")


@contextlib.contextmanager
def written(target: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes its name when the body has ended well and all is on the disk; else nothing is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f"{target.name}.", suffix=_SUFFIX, dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_rows(file: BinaryIO, event: tuple[int, ...], dtype: np.dtype[Any], chunks: Iterable[np.ndarray]) -> int:
    written = 0
    for chunk in chunks:
        if chunk.dtype != dtype or chunk.shape[1:] != event:
            raise ValueError(f"expected {dtype} of shape {event}, got {chunk.dtype} of shape {chunk.shape[1:]}")
        file.write(np.ascontiguousarray(chunk).data)
        written += len(chunk)
    return written


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ResourceError(
            f"{target.parent} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are needed to keep these "
            "examples in the form that they are read in. Free some space, or name another folder by LOWERBOUND_CACHE."
        )


def _sweep(folder: Path) -> None:
    """Removes what killed processes left behind."""
    for part in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()


def remembered(name: str) -> dict[str, Any] | None:
    """Returns what was kept under a name, or None; a damaged note is none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_note(name).read_text())
        return found if isinstance(found, dict) else None
    return None


def remember(name: str, facts: dict[str, Any]) -> None:
    """Keeps a few facts under a name; where they cannot be kept, they are found out again next time."""
    with contextlib.suppress(OSError), written(_note(name)) as file:
        file.write(json.dumps(facts).encode())


def _note(name: str) -> Path:
    return cache_dir() / "facts" / f"{name}.json"
