r"""What is counted of a column whose cells arrive in blocks, so that a table need not fit in memory.

A block is a fixed number of rows (`lowerbound.data.tables.files`), whatever way the file is read, so every sum is made
of the same parts in the same order and a file has one mean to the last bit. Means and central moments of two parts are
those of the whole (Chan, Golub and LeVeque, 1983, "Algorithms for computing the sample variance: analysis and
recommendations"; here with the third): with \(n = n_a + n_b\), \(\delta = m_b - m_a\) and \(M_k\) the sum of
\((v - m)^k\),

$$m = m_a + \delta \frac{n_b}{n}, \qquad M_2 = M_{2a} + M_{2b} + \delta^2 \frac{n_a n_b}{n}, \qquad
  M_3 = M_{3a} + M_{3b} + \delta^3 \frac{n_a n_b (n_a - n_b)}{n^2} + 3 \delta \frac{n_a M_{2b} - n_b M_{2a}}{n}.$$
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowerbound.data.tables import cells
from lowerbound.data.tables.columns import MAX_COUNT, Column, Kind

# What is told of a column: offenders by name, numbers that may be codes of classes, and labels one by one.
_LISTED = 5
FEW_LEVELS = 10
MOST_LABELS = 10_000


class Wrong:
    """Cells that cannot be taken: how many, and the first five of them in words.

    Example:
        >>> import pyarrow
        >>> wrong = Wrong()
        >>> wrong.add(np.array([False, True]), pyarrow.array(["a", "b"]), start=10)
        >>> str(wrong), wrong.count
        ("row 12: 'b'", 1)
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, wrong: np.ndarray, array: Any, start: int) -> None:
        """Adds the cells of a block that are wrong; `start` is the number of its first row, from 0."""
        places = np.flatnonzero(wrong)
        for place in places[: _LISTED - len(self._first)]:
            # Rows are counted from 1, without the header.
            self._first.append(f"row {start + place + 1}: {_cell(array[int(place)])}")
        self.count += len(places)

    def __str__(self) -> str:
        more = f" and {self.count - len(self._first):,} more" if self.count > len(self._first) else ""
        return f"{'; '.join(self._first)}{more}"


def _cell(scalar: Any) -> str:
    """Returns a cell of an Arrow array as it is shown in a message."""
    try:
        return short(scalar.as_py())
    except (ValueError, OverflowError):  # a moment that Python has not: too far off, or too fine without pandas
        return f"{scalar.value} as {scalar.type}"


def short(value: Any) -> str:
    """Returns a cell as it is shown in a message."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class Moments:
    """The mean of numbers, and their spread and skewness, from blocks of them.

    Sums of powers are kept in units of a power of two as large as the largest distance from the mean, so that no cube
    overflows and the change of units rounds nothing.

    Example:
        >>> moments = Moments()
        >>> for block in ([1.0, 2.0], [6.0]):
        ...     moments.add(np.array(block))
        >>> moments.mean, round(moments.std, 6), round(moments.skewness, 6)
        (3.0, 2.160247, 0.59517)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._unit = 0.0
        self._second = self._third = 0.0

    def add(self, values: np.ndarray) -> None:
        """Adds numbers, `[n]`, none of which is missing."""
        if not len(values):
            return
        mean = float(values.mean())
        away = values - mean
        unit = _power_of_two(float(np.abs(away).max()))
        if unit:
            away = away / unit
        squares = away * away
        self._join(len(values), mean, unit, float(squares.sum()), float((squares * away).sum()))

    def _join(self, count: int, mean: float, unit: float, second: float, third: float) -> None:
        if not self.count:
            self.count, self.mean, self._unit, self._second, self._third = count, mean, unit, second, third
            return
        before, total, apart = self.count, self.count + count, mean - self.mean
        common = max(self._unit, unit, _power_of_two(abs(apart)))
        if common:
            mine, theirs, delta = self._unit / common, unit / common, apart / common
            second_before, second_new = self._second * mine**2, second * theirs**2
            self._third = (
                self._third * mine**3
                + third * theirs**3
                + delta**3 * before * count * (before - count) / total**2
                + 3 * delta * (before * second_new - count * second_before) / total
            )
            self._second = second_before + second_new + delta**2 * before * count / total
        self.count, self.mean, self._unit = total, self.mean + apart * count / total, common

    @property
    def std(self) -> float:
        """The standard deviation; 0 where there is nothing."""
        return self._unit * math.sqrt(self._second / self.count) if self.count else 0.0

    @property
    def skewness(self) -> float:
        """The third central moment in standard deviations."""
        return (self._third / self.count) / max(math.sqrt(self._second / self.count) ** 3, 1e-300)


def _power_of_two(value: float) -> float:
    """Returns the least power of two above a number, 0 for 0; what is no finite number as it is."""
    if value == 0 or not math.isfinite(value):
        return value
    return math.ldexp(1.0, min(math.frexp(value)[1], 1023))


class Numbers:
    """What is to be known of numbers before their kind is decided.

    Attributes:
        whole: Whether all are whole.
        low: The least.
        high: The largest.
        distinct: How many there are; no more than `FEW_LEVELS` + 1 are counted.
        plain: Their moments.
        logs: Those of their logarithms, as long as all are positive.
        counts: Those of log(1 + v), as long as all are counts.
    """

    def __init__(self) -> None:
        self.whole = True
        self.low, self.high = math.inf, -math.inf
        self.plain, self.logs, self.counts = Moments(), Moments(), Moments()
        self._found = np.zeros(0)

    @property
    def distinct(self) -> int:
        return len(self._found)

    @property
    def may_be_codes(self) -> bool:
        """Whether they can be the numbers of classes."""
        return self.whole and self.distinct <= FEW_LEVELS

    @property
    def are_counts(self) -> bool:
        """Whether each is 0, 1, 2, ... and not too large."""
        return self.whole and self.low >= 0 and self.high <= MAX_COUNT

    def add(self, values: np.ndarray) -> None:
        """Adds numbers, `[n]`, none of which is missing."""
        if not len(values):
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.whole = self.whole and bool((values == np.round(values)).all())
        if self.distinct <= FEW_LEVELS:
            self._found = np.union1d(self._found, values)[: FEW_LEVELS + 1]
        self.plain.add(values)
        if self.low > 0:
            self.logs.add(np.log(values))
        if self.are_counts:
            self.counts.add(np.log1p(values))


class Labels:
    """Labels and how often each occurs; beyond `MOST_LABELS` of them, no more are told apart."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @property
    def are_many(self) -> bool:
        """Whether there are more than are told apart."""
        return len(self.counts) > MOST_LABELS

    def __str__(self) -> str:
        return f"more than {MOST_LABELS:,}" if self.are_many else f"{len(self.counts):,}"

    def add(self, array: Any) -> None:
        """Adds the cells of a block."""
        found = [] if self.are_many else cells.labels(array).drop_null().value_counts().to_pylist()
        for one in found:
            if len(self.counts) > MOST_LABELS:
                break
            self.counts[one["values"]] = self.counts.get(one["values"], 0) + one["counts"]


class Tally:
    """All that is counted of a column in one pass over a file.

    Args:
        name: The column's name.
        type_of: Its Arrow type.
        declared: What the user says it is.

    Attributes:
        there: Cells that are not missing.
        bad: Cells that are no numbers.
        nearly: Those of them that people write for numbers.
        undated: Cells that are no dates.
        refused: Cells that the declared column does not hold.
        numbers: The cells that are numbers.
        days: The moments of the cells that are dates.
        values: The moments of the cells as the declared column has them; of counts, of log(1 + v).
        labels: The cells as labels, where they may be some.
        timed: Whether a date has a time of day.
        digits: How many stand after the point at most; -1 where that cannot be told (exponents, Parquet).
    """

    def __init__(self, name: str, type_of: Any, declared: Column | None = None) -> None:
        types = cells.arrow().types
        self.name, self.type, self.declared = name, type_of, declared
        self.there = 0
        self.bad, self.nearly, self.undated, self.refused = Wrong(), Wrong(), Wrong(), Wrong()
        self.numbers, self.days, self.values, self.labels = Numbers(), Moments(), Moments(), Labels()
        self.timed = False
        self.is_text = bool(types.is_string(type_of) or types.is_large_string(type_of))
        self.is_boolean = bool(types.is_boolean(type_of))
        self.is_temporal = bool(types.is_temporal(type_of))
        self.digits = 0 if self.is_text or types.is_integer(type_of) else -1

    def add(self, array: Any, start: int) -> None:
        """Adds the cells of a block, an Arrow array; `start` is the number of its first row, from 0."""
        there = ~cells.missing(array)
        self.there += int(there.sum())
        if self.is_text:
            self._add_digits(array)
        if self.declared is not None:
            self._add_declared(self.declared, array, start)
        elif self.is_boolean:
            self.labels.add(array)
        elif self.is_temporal:
            self._add_days(array, there, start)
        else:
            self._add_unknown(array, there, start)

    def _add_declared(self, column: Column, array: Any, start: int) -> None:
        if column.kind.has_levels:
            self.labels.add(array)
            if not column.levels:
                return
        values, bad, strange = column.encode(array)
        self.refused.add(bad | strange, array, start)
        if column.kind is Kind.DATE:
            self.timed = self.timed or cells.days(array)[2]
        if not column.kind.has_levels:
            values = values[~np.isnan(values)]
            self.values.add(np.log1p(values) if column.kind is Kind.COUNT else values)

    def _add_unknown(self, array: Any, there: np.ndarray, start: int) -> None:
        values, bad = cells.numbers(array)
        self.numbers.add(values[~np.isnan(values)])
        self.bad.add(bad, array, start)
        if not self.is_text:
            if self.numbers.may_be_codes:
                self.labels.add(array)
            return
        self.labels.add(array)
        if bad.any():
            self.nearly.add(cells.nearly_numbers(array), array, start)
        if self.bad.count:
            self._add_days(array, there, start)
        else:
            # No number is a date in ISO's way, so there is nothing to look for.
            self.undated.add(there, array, start)

    def _add_days(self, array: Any, there: np.ndarray, start: int) -> None:
        values, bad, timed = cells.days(array)
        self.days.add(values[there & ~bad & ~np.isnan(values)])
        self.undated.add(bad, array, start)
        self.timed = self.timed or timed

    def _add_digits(self, array: Any) -> None:
        compute = cells.arrow().compute
        text = cells.trimmed(array)
        if self.digits < 0 or compute.any(compute.match_substring_regex(text, "[eE]")).as_py():
            self.digits = -1
            return
        after = compute.utf8_length(compute.replace_substring_regex(text, r"^[^.]*\.?", ""))
        self.digits = max(self.digits, min(int(compute.max(after).as_py() or 0), 17))
