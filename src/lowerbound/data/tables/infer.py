"""What a column holds, told by its cells.

In this order:

* what Parquet says is a Boolean is binary, a date or a time stamp a date;
* text of which every cell is a number is taken as numbers, and text of which every cell is an ISO date as dates;
* other text is binary with two labels, and categorical with more, up to half as many as there are cells and 1,000;
* whole numbers are binary where there are two of them, categorical where there are at most 10 and each occurs five
  times in the mean (codes of classes), and counts where none is negative or above 2^24;
* other numbers are positive where all are, they are skewed, and their logarithms are less so; else real.

Where that is not what they are, say it: `Table(columns=...)`, `--columns`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowerbound.data.tables import cells
from lowerbound.data.tables.columns import MAX_COUNT, Column, Kind
from lowerbound.errors import DataError

MAX_LEVELS = 1000
_MAX_LABEL = 1000
_FEW_LEVELS, _EACH = 10, 5
# Text that is this often a number was meant as one, and the rest are mistakes.
_MOSTLY = 0.9
_SKEWED = 1.0
_ALWAYS_ALLOWED = 20
_STORED = frozenset(
    {"bool", "float", "double", "date32[day]"}
    | {f"timestamp[{unit}]" for unit in ("s", "ms", "us", "ns")}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def infer(name: str, array: Any, where: str, declared: Column | None = None) -> Column:
    """Returns the column with everything decided.

    Args:
        name: Its name.
        array: Its cells, an Arrow array.
        where: The file's name, for messages.
        declared: What the user says it is.

    Raises:
        DataError: The cells are of no kind, or not of the declared one.
    """
    if cells.missing(array).all():
        raise DataError(f"{where}: the column {name!r} has no cell that is not missing. Leave it out: --ignore {name}.")
    kind = _kind(name, array, where) if declared is None else declared.kind
    if kind.has_levels:
        found = _with_levels(name, kind, array, where, declared.levels if declared is not None else ())
    else:
        found = _with_units(name, kind, array)
    refuse_bad(found, array, where, strange_too=True)
    return found


def refuse_bad(column: Column, array: Any, where: str, *, strange_too: bool) -> None:
    """Raises `DataError` naming the first five cells that the column cannot take."""
    _, bad, strange = column.encode(array)
    wrong = bad | strange if strange_too else bad
    if wrong.any():
        levels = f" ({', '.join(column.levels[:10])}{', ...' if column.num_levels > 10 else ''})"
        what = column.kind.value + (levels if column.levels else "")
        raise DataError(
            f"{where}: the column {column.name!r} should hold {what}, but {_cells(wrong, array)}. Mend the cells, or "
            f"say what the column is: --columns {column.name}=KIND, or --ignore {column.name}."
        )


def _cells(wrong: np.ndarray, array: Any) -> str:
    """Returns the first five wrong cells in words; rows are counted from 1, without the header."""
    places = np.flatnonzero(wrong)
    shown = "; ".join(f"row {p + 1}: {_short(array[int(p)].as_py())}" for p in places[:5])
    more = f" and {len(places) - 5:,} more" if len(places) > 5 else ""
    return f"not at {shown}{more}"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def offenders(column: Column, wrong: np.ndarray, array: Any) -> str:
    """Returns in words which cells of a column are taken as missing."""
    return f"column {column.name!r}: {_cells(wrong, array).removeprefix('not at ')}"


def _kind(name: str, array: Any, where: str) -> Kind:
    types = cells.arrow().types
    if types.is_boolean(array.type):
        return Kind.BINARY
    if types.is_temporal(array.type):
        return Kind.DATE
    there = ~cells.missing(array)
    values, bad = cells.numbers(array)
    if not bad.any():
        return _kind_of_numbers(values[there])
    if not cells.is_text(array):
        raise DataError(f"{where}: the column {name!r} should hold finite numbers, but {_cells(bad, array)}.")
    _, undated, _ = cells.days(array)
    if not undated.any():
        return Kind.DATE
    for what, wrong in (("a number", bad), ("an ISO date", undated)):
        if wrong.sum() < (1 - _MOSTLY) * there.sum():
            raise DataError(
                f"{where}: nearly every cell of the column {name!r} is {what}, but {_cells(wrong, array)}. Mend those "
                f"cells (leave them empty if they are not known), or say that they are labels: --columns "
                f"{name}=categorical."
            )
    distinct = _distinct(array)
    if len(distinct) > max(_ALWAYS_ALLOWED, min(MAX_LEVELS, there.sum() // 2)):
        raise DataError(
            f"{where}: the column {name!r} holds text, with {len(distinct):,} different values in {there.sum():,} "
            f"cells: too many for categories. Leave it out (--ignore {name}), or say that it is one all the same "
            f"(--columns {name}=categorical)."
        )
    return Kind.BINARY if len(distinct) == 2 else Kind.CATEGORICAL


def _kind_of_numbers(values: np.ndarray) -> Kind:
    distinct = np.unique(values)
    if (values == np.round(values)).all():
        if len(distinct) == 2:
            return Kind.BINARY
        if 2 < len(distinct) <= min(_FEW_LEVELS, len(values) / _EACH):
            return Kind.CATEGORICAL
        if distinct[0] >= 0 and distinct[-1] <= MAX_COUNT:
            return Kind.COUNT
    if distinct[0] > 0 and len(distinct) > 2:
        skew = _skewness(values)
        if skew > _SKEWED and abs(_skewness(np.log(values))) < skew:
            return Kind.POSITIVE
    return Kind.REAL


def _skewness(values: np.ndarray) -> float:
    # By the largest first, so that no cube overflows.
    away = (values - values.mean()) / max(np.abs(values - values.mean()).max(), np.finfo(np.float64).tiny)
    return float((away**3).mean() / max(away.std() ** 3, 1e-300))


def _with_units(name: str, kind: Kind, array: Any) -> Column:
    values = Column(name, kind).encode(array)[0]
    values = np.log1p(values) if kind is Kind.COUNT else values
    values = values[~np.isnan(values)]
    loc = float(values.mean()) if len(values) else 0.0
    spread = float(values.std()) if len(values) else 0.0
    # What is left of a constant column is rounding.
    scale = spread if spread > 1e-7 * max(abs(loc), 1e-30) else 1.0
    decimals = 0 if kind is Kind.COUNT else _decimals(kind, array)
    return Column(name, kind, loc, scale, decimals=decimals, storage=_storage(array))


def _decimals(kind: Kind, array: Any) -> int:
    """Returns how many digits stand after the point at most; -1 where that cannot be told (exponents, Parquet)."""
    pa = cells.arrow()
    if kind is Kind.DATE:
        return -1 if cells.days(array)[2] else 0
    if not cells.is_text(array):
        return 0 if pa.types.is_integer(array.type) else -1
    text = cells.trimmed(array)
    if pa.compute.any(pa.compute.match_substring_regex(text, "[eE]")).as_py():
        return -1
    after = pa.compute.utf8_length(pa.compute.replace_substring_regex(text, r"^[^.]*\.?", ""))
    return min(int(pa.compute.max(after).as_py() or 0), 17)


def _with_levels(name: str, kind: Kind, array: Any, where: str, given: tuple[str, ...]) -> Column:
    levels = given or tuple(_in_order(_distinct(array)))
    if kind is Kind.BINARY and len(levels) > 2:
        raise DataError(
            f"{where}: the column {name!r} should be binary, but has {len(levels)} different labels: "
            f"{', '.join(_short(level) for level in levels[:5])}, ... Call it categorical: --columns "
            f"{name}=categorical."
        )
    if len(levels) > MAX_LEVELS or max(map(len, levels)) > _MAX_LABEL:
        raise DataError(
            f"{where}: the column {name!r} can have at most {MAX_LEVELS:,} labels of at most {_MAX_LABEL:,} letters; "
            f"it has {len(levels):,}, the longest of {max(map(len, levels)):,}. Leave it out: --ignore {name}."
        )
    column = Column(name, kind, levels=levels, storage=_storage(array))
    places = column.encode(array)[0]
    counts = np.bincount(places[~np.isnan(places)].astype(np.int64), minlength=len(levels))
    shares = tuple(float(f"{share:.6g}") for share in (counts / max(counts.sum(), 1)).tolist())
    return Column(name, kind, levels=levels, shares=shares, storage=column.storage)


def _distinct(array: Any) -> list[str]:
    found = cells.labels(array).unique().drop_null().to_pylist()
    return [str(label) for label in found]


def _in_order(levels: list[str]) -> list[str]:
    """Returns labels sorted: numbers by size, text by its letters."""
    try:
        return sorted(levels, key=lambda level: (float(level), level))
    except ValueError:
        return sorted(levels)


def _storage(array: Any) -> str:
    # Text is how a text file has everything, so it says nothing.
    return str(array.type) if str(array.type) in _STORED and not cells.is_text(array) else ""
