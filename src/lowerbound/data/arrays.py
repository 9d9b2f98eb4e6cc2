"""Files of NumPy arrays: `.npy` with the examples, `.npz` with `x` and `y`, or with `x_train`, `y_train` and so on.

What the values can be follows from their type: uint8 are 8-bit levels, other integers are counts, and floats are real
numbers, or grey values where all lie in [0, 1]; zeros and ones are binary in any type.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowerbound.data.reading import Reading, shuffled_split
from lowerbound.data.source import ArraySource, Source, Support
from lowerbound.errors import DataError

_MAX_COUNT = 1 << 24


@dataclass(frozen=True)
class Arrays(Reading):
    """Examples as NumPy keeps them."""

    def open(self, path: Path) -> tuple[Source, Source]:
        source = str(path)
        try:
            arrays = _load_arrays(path)
        except Exception as error:  # NumPy reads a header as Python, so a damaged one can end in anything
            reason = " ".join(str(error).split())
            raise DataError(
                f"{source} cannot be read as a NumPy file ({reason}); save it again with numpy.save."
            ) from error
        if "x_train" in arrays:
            learned, test = _as_sources(arrays, (("x_train", "y_train"), ("x_test", "y_test")), source, 2, 1)
            return learned, test
        (whole,) = _as_sources(arrays, (("x", "y"),), source, 3)
        return shuffled_split(whole)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{key} is no array")
    return arrays


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
    order = list(Support)
    support = max((_narrowest(v) for v in values), key=order.index)
    # Zeros and ones as bytes are not nearly black pictures.
    scale = 1.0 if support in (Support.BINARY, Support.COUNT) else 1 / 255
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


def _as_tensor(array: np.ndarray, name: str, fewest: int) -> Tensor:
    if array.ndim < 2 or len(array) < fewest or array.size == 0:
        raise DataError(
            f"{name} should be [N, ...], with N at least {fewest} and values in each example, but has shape "
            f"{list(array.shape)}."
        )
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if array.dtype != np.uint8 and np.issubdtype(array.dtype, np.integer):
        _check_counts(array, name)
        array = array.astype(np.int32)
    elif array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{name} has values of type {array.dtype}. Save 8-bit images as uint8, counts as int32, and anything else "
            "as float32."
        )
    elif array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused with its place
            array = array.astype(np.float32)
    if array.ndim == 3:
        array = array[:, None]  # [N, H, W] is read as grey images, [N, 1, H, W]
    return torch.from_numpy(np.array(array))


def _check_counts(array: np.ndarray, name: str) -> None:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > _MAX_COUNT:
        raise DataError(
            f"{name} has {array.dtype} values from {low:,} to {high:,}. Whole numbers are read as counts, from 0 to "
            f"{_MAX_COUNT:,} (float32 has no longer every one above that). Save other values as float32."
        )
    if array.ndim > 2 and high > 1:
        # Taken for counts, pictures would be given a likelihood that is not theirs, and nobody would notice.
        raise DataError(
            f"{name} has {array.dtype} values up to {high} of shape {list(array.shape)}, which can be pictures or "
            "counts. Save pictures as uint8 (or as float32 in [0, 1]), and counts as [N, D]; or say what they are by "
            "lowerbound.ArraySource(values, support=...)."
        )


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
