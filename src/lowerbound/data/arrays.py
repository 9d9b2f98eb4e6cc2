"""Files of NumPy arrays: `.npy` with the examples, `.npz` with `x` and `y`, or with `x_train`, `y_train` and so on.

What the values can be follows from their type: uint8 are 8-bit levels, other integers are counts, and floats are real
numbers, or grey values where all lie in [0, 1]; zeros and ones are binary in any type.

A large `.npy` file is not held in memory (`lowerbound.data.stored`). Its values are looked at once, and what was found
is remembered while the file does not change.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowerbound.data.reading import Reading, shuffled_split
from lowerbound.data.source import ArraySource, Source, Support
from lowerbound.data.stored import (
    Rows,
    StoredSource,
    as_held,
    check_counts,
    is_held,
    narrowest,
    rows_of,
    scanned,
    widest,
)
from lowerbound.errors import DataError


@dataclass(frozen=True)
class Arrays(Reading):
    """Examples as NumPy keeps them."""

    def open(self, path: Path) -> tuple[Source, Source]:
        parts = _parts(path, fewest=3)
        return (parts[0], parts[1]) if len(parts) > 1 else shuffled_split(parts[0])

    def whole(self, path: Path) -> Source:
        """Reads all examples in their order; where the file has splits, those to test on come last."""
        first, *rest = _parts(path, fewest=1)
        return first.joined(rest[0]) if rest else first

    def has_splits(self, path: Path) -> bool:
        return path.suffix.lower() == ".npz" and len(_parts(path, fewest=1)) > 1


def _parts(path: Path, fewest: int) -> tuple[Source, ...]:
    """Returns all examples of a file, or those to learn from and those to test on, where it has both.

    Args:
        path: The file.
        fewest: The fewest examples that a file without splits can have.
    """
    source = str(path)
    if path.suffix == ".npy" and os.path.isfile(path) and not is_held(path.stat().st_size):
        return (_stored(path, fewest),)
    try:
        arrays = _load_arrays(path)
    except MemoryError as error:
        raise DataError(
            f"{source} does not fit in memory ({error}). Save its examples alone as a .npy file, which can be "
            "larger than memory."
        ) from error
    except Exception as error:  # NumPy reads a header as Python, so a damaged one can end in anything
        reason = " ".join(str(error).split())
        if "pickle" in reason:  # NumPy takes for one whatever it does not know, and says how to load it all the same
            reason = "it is none, or holds Python objects, which may be programs and are not loaded"
        raise DataError(
            f"{source} cannot be read as a NumPy file ({reason}); save it again with numpy.save."
        ) from error
    if "x_train" in arrays:
        return _as_sources(arrays, (("x_train", "y_train"), ("x_test", "y_test")), source, 2, 1)
    return _as_sources(arrays, (("x", "y"),), source, fewest)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            _check_memory(sum(entry.file_size for entry in loaded.zip.infolist()))
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{key} is no array")
    return arrays


def _check_memory(needed: int) -> None:
    """Raises `MemoryError` when arrays would take more than half of the machine's memory."""
    if hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there // 2:
            raise MemoryError(f"its arrays take {needed / 1e9:,.1f} GB, and there are {there / 1e9:,.1f} GB")


def _stored(path: Path, fewest: int) -> StoredSource:
    found, name = rows_of(path), f"{path}, array x"
    _check_kind(found.shape, found.dtype, name, fewest)
    rows = Rows(path, _as_pictures(found.shape), found.dtype, found.offset)
    support = scanned(rows, name).support
    return StoredSource(rows, support=support, scale=_scale(support), name=str(path))


def _as_sources(
    arrays: dict[str, np.ndarray], keys: tuple[tuple[str, str], ...], name: str, *fewest: int
) -> tuple[ArraySource, ...]:
    for x, _ in keys:
        if x not in arrays:
            raise DataError(
                f"{name} should hold an array {x!r}, but has {', '.join(sorted(arrays)) or 'nothing'}. Name the "
                "examples 'x' (and their labels 'y'), or 'x_train' and 'x_test'."
            )
    values = [_as_tensor(arrays[x], f"{name}, array {x}", n) for (x, _), n in zip(keys, fewest, strict=True)]
    first = values[0]
    for other, (x, _) in zip(values, keys, strict=True):
        if other.shape[1:] != first.shape[1:] or other.dtype != first.dtype:
            raise DataError(
                f"{name} should hold training and test examples alike, but {keys[0][0]} has {first.dtype} of "
                f"shape {list(first.shape[1:])}, and {x} {other.dtype} of shape {list(other.shape[1:])}."
            )
    support = widest(*(narrowest(v) for v in values))
    scale = _scale(support)
    labels = [_as_labels(arrays[y], f"{name}, array {y}") if y in arrays else None for _, y in keys]
    return tuple(
        ArraySource(v, label, support=support, scale=scale, name=name) for v, label in zip(values, labels, strict=True)
    )


def _as_labels(array: np.ndarray, name: str) -> Tensor:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{name} should hold one whole number for each example, [N], but has {array.dtype} of shape "
            f"{list(array.shape)}. Number the classes from 0."
        )
    return torch.from_numpy(array.astype(np.int64))


def _scale(support: Support) -> float:
    # Zeros and ones as bytes are not nearly black pictures.
    return 1.0 if support in (Support.BINARY, Support.COUNT) else 1 / 255


def _as_tensor(array: np.ndarray, name: str, fewest: int) -> Tensor:
    _check_kind(array.shape, array.dtype, name, fewest)
    if array.dtype != np.uint8 and np.issubdtype(array.dtype, np.integer):
        check_counts(array.shape, array.dtype, int(array.min()), int(array.max()), name)
    return torch.from_numpy(as_held(array).reshape(_as_pictures(array.shape)))


def _check_kind(shape: tuple[int, ...], dtype: np.dtype[Any], name: str, fewest: int) -> None:
    if len(shape) < 2 or shape[0] < fewest or 0 in shape:
        raise DataError(
            f"{name} should be [N, ...], with N at least {fewest} and values in each example, but has shape "
            f"{list(shape)}."
        )
    if dtype != np.bool_ and not np.issubdtype(dtype, np.integer) and not np.issubdtype(dtype, np.floating):
        raise DataError(
            f"{name} has values of type {dtype}. Save 8-bit images as uint8, counts as int32, and anything else "
            "as float32."
        )


def _as_pictures(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the examples as they are read: `[N, H, W]` are grey images, `[N, 1, H, W]`."""
    return (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape
