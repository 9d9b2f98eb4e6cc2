"""Cells as they stand in a file, taken as numbers, as dates or as labels.

A cell is **missing** when it is null, empty, or one of the texts in `MISSING`, with or without quotation marks and
spaces around it. ("None" and "-" are not among them: both are often categories.) What is there but cannot be taken as
asked is *bad*: whoever asks decides what that means.
"""

from __future__ import annotations

from datetime import date, datetime
from types import ModuleType
from typing import Any

import numpy as np

from lowerbound.errors import ResourceError

MISSING = ("", "NA", "N/A", "n/a", "na", "#N/A", "<NA>", "NaN", "nan", "NULL", "Null", "null", "?")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
# 1,5 and 1,234.50 and 1.234,50
_OTHER_NUMBER = r"^[+-]?(\d+,\d+|\d{1,3}(,\d{3})+(\.\d+)?|\d{1,3}([.' ]\d{3})+,\d+)$"
# Of numbers up to that, as many as there can be have a sum, and a distance from their mean.
LARGEST = 1e300
FIRST_DAY, LAST_DAY = -719_162.0, 2_932_896.0  # of the years 1 and 9999
_SECONDS = 86_400.0
_EPOCH = datetime(1970, 1, 1)


def arrow() -> ModuleType:
    """Returns pyarrow.

    Raises:
        ResourceError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
    except ImportError as error:
        raise ResourceError(
            "Tables are read and written with pyarrow, which is not installed here. Install it: "
            "pip install 'lowerbound[tables]'."
        ) from error
    module: ModuleType = pyarrow
    return module


def is_text(array: Any) -> bool:
    """Whether an Arrow array holds text."""
    pa = arrow()
    return bool(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))


def trimmed(array: Any) -> Any:
    """Returns text without spaces around it, and null where it is missing."""
    pa = arrow()
    text = pa.compute.utf8_trim_whitespace(array)
    gone = pa.compute.is_in(text, value_set=pa.array(MISSING, text.type))
    return pa.compute.if_else(gone, pa.scalar(None, text.type), text)


def missing(array: Any) -> np.ndarray:
    """Returns where cells are missing, bool `[N]`."""
    pa = arrow()
    cells = trimmed(array) if is_text(array) else array
    return _numpy(pa.compute.is_null(cells, nan_is_null=pa.types.is_floating(array.type)))


def labels(array: Any) -> Any:
    """Returns cells as an Arrow array of text, null where they are missing."""
    pa = arrow()
    if is_text(array):
        return trimmed(array).cast(pa.string())
    text = array.cast(pa.string())
    return pa.compute.if_else(pa.array(missing(array)), pa.scalar(None, pa.string()), text)


def numbers(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns cells as numbers, float64 `[N]` with NaN where there is none, and where they are bad.

    Infinities, and what is beyond `LARGEST`, are bad; so are dates.

    Example:
        >>> import pyarrow
        >>> values, bad = numbers(pyarrow.array(["1e3", " -.5", "NA", "1,5", "1e999"]))
        >>> values.tolist(), bad.tolist()
        ([1000.0, -0.5, nan, nan, nan], [False, False, False, True, True])
    """
    pa = arrow()
    bad = np.zeros(len(array), dtype=bool)
    if pa.types.is_temporal(array.type):
        return _none_of(array)
    if is_text(array):
        text = trimmed(array)
        fits = pa.compute.match_substring_regex(text, _NUMBER)
        bad = _numpy(pa.compute.fill_null(pa.compute.invert(fits), False))
        array = pa.compute.if_else(fits, text, pa.scalar(None, text.type))
    values = np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        endless = np.abs(values) > LARGEST
    values[endless] = np.nan
    return values, bad | endless


def nearly_numbers(array: Any) -> np.ndarray:
    """Returns where text is what people write for a number, but none here: with commas, or too large; bool `[N]`.

    Example:
        >>> import pyarrow
        >>> nearly_numbers(pyarrow.array(["1,5", "1,234.50", "1e999", "1.5", "a, b", ""])).tolist()
        [True, True, True, False, False, False]
    """
    pa = arrow()
    text = trimmed(array)
    other = [pa.compute.match_substring_regex(text, pattern) for pattern in (_OTHER_NUMBER, _NUMBER)]
    commas, plain = (_numpy(pa.compute.fill_null(one, False)) for one in other)
    found: np.ndarray = commas | (plain & numbers(array)[1])
    return found


def days(array: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Returns dates as days since 1970, float64 `[N]`, where they are bad, and whether they have a time of day.

    Text is a date in the ways of ISO 8601: 2024-03-01, 2024-03-01T12:30, 2024-03-01 12:30:15. A time zone is taken into
    account and the result is in UTC. Numbers and Booleans are bad, and so is what is in no year from 1 to 9999.

    Example:
        >>> import pyarrow
        >>> days(pyarrow.array(["1970-01-02", "", "2024-02-30"]))
        (array([ 1., nan, nan]), array([False, False,  True]), False)
    """
    pa = arrow()
    if not (is_text(array) or pa.types.is_temporal(array.type) or pa.types.is_null(array.type)):
        # Since when a number counts, and what, is not said.
        return (*_none_of(array), False)
    if not is_text(array):
        timed = bool(pa.types.is_timestamp(array.type))
        stamps = array.cast(pa.timestamp("us", tz=array.type.tz) if timed else pa.timestamp("us"), safe=False)
        micro = np.array(stamps.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        found = micro / (1e6 * _SECONDS)
        with np.errstate(invalid="ignore"):
            bad = (found < FIRST_DAY) | (found >= LAST_DAY + 1)
        found[bad] = np.nan
        return found, bad, timed
    encoded = trimmed(array).dictionary_encode()
    read = [_day(text) for text in encoded.dictionary.to_pylist()]
    values = np.array([np.nan if r is None else r[0] for r in read] + [np.nan])
    place = np.array(pa.compute.fill_null(encoded.indices, len(read)).to_numpy(zero_copy_only=False))
    found = values[place]
    bad = np.isnan(found) & (place < len(read))
    return found, bad, any(r is not None and r[1] for r in read)


def _none_of(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns cells of a type that is not asked for: all that are there are bad."""
    return np.full(len(array), np.nan), ~missing(array)


def _day(text: str) -> tuple[float, bool] | None:
    if len(text) < 10 or text[4] != "-":
        return None
    try:
        if len(text) == 10:
            return float((date.fromisoformat(text) - _EPOCH.date()).days), False
        stamp = datetime.fromisoformat(text)
        local = stamp.replace(tzinfo=None) - (stamp.utcoffset() or _EPOCH - _EPOCH)
    except (ValueError, OverflowError):  # the latter where UTC is in another year than there are
        return None
    return (local - _EPOCH).total_seconds() / _SECONDS, True


def _numpy(array: Any) -> np.ndarray:
    found: np.ndarray = np.array(array.to_numpy(zero_copy_only=False), dtype=bool)
    return found
