r"""What is known of a column: its kind, and how its cells become numbers and back.

| kind | a cell is | as a number of x |
|---|---|---|
| real | any number | \((v - \text{loc})/\text{scale}\) |
| positive | a number above 0 | \((\log v - \text{loc})/\text{scale}\) |
| count | 0, 1, 2, ... up to 2^24 | itself |
| binary | one of two labels | 0 or 1, its place among the levels |
| categorical | one of L labels | its place |
| ordinal | one of L labels that have an order | its place |
| date | a day, or a moment | days since 1970, as a real number |
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np

from lowerbound.data.tables import cells
from lowerbound.errors import UsageError, did_you_mean

# Above it float32 has no longer every whole number.
MAX_COUNT = 1 << 24


class Kind(enum.StrEnum):
    """What a column holds."""

    REAL = "real"
    POSITIVE = "positive"
    COUNT = "count"
    BINARY = "binary"
    CATEGORICAL = "categorical"
    ORDINAL = "ordinal"
    DATE = "date"

    @property
    def has_levels(self) -> bool:
        """Whether a cell is one of finitely many labels."""
        return self in (Kind.BINARY, Kind.CATEGORICAL, Kind.ORDINAL)

    @property
    def is_measured(self) -> bool:
        """Whether a cell has a density."""
        return self in (Kind.REAL, Kind.POSITIVE, Kind.DATE)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    What a user gives is a name, a kind, and of an ordinal column its levels in order; `Table.fitted` finds the rest.

    Attributes:
        name: As in the file's header.
        kind: What it holds.
        loc: The mean of the cells: in the file's unit (days for dates); of a positive column that of log v, of counts
            that of log(1 + v).
        scale: Their standard deviation, likewise; 1 where they are all the same.
        levels: The labels, in the order in which they are numbered.
        shares: How often each label occurs, in fractions of the cells that are there.
        repeats: How many times training showed the rows with each label, on average (`lowerbound.data.tables.balance`);
            empty where it showed each row once.
        decimals: Digits after the point when a number is written; -1 for as many as float32 has.
        storage: The Arrow type that it is written with to Parquet; by its kind where that is empty.

    Raises:
        UsageError: A scale is not positive, a label is there twice or means a missing cell, there are
            as many shares or repeats as levels no more, or a repeat is below 1.

    Example:
        >>> Column.parsed("size=small<medium<large").levels
        ('small', 'medium', 'large')
    """

    name: str
    kind: Kind
    loc: float = 0.0
    scale: float = 1.0
    levels: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    repeats: tuple[float, ...] = ()
    decimals: int = -1
    storage: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.loc) and 0 < self.scale < math.inf):
            raise UsageError(
                f"The column {self.name!r} needs a finite loc and a scale above 0; got {self.loc} and {self.scale}."
            )
        if len(set(self.levels)) < len(self.levels) or not set(self.levels).isdisjoint(cells.MISSING):
            raise UsageError(
                f"The column {self.name!r} needs each of its labels once, and none that means a missing cell; got "
                f"{' < '.join(map(repr, self.levels[:20]))}."
            )
        if self.shares and len(self.shares) != len(self.levels):
            raise UsageError(f"The column {self.name!r} has {len(self.levels)} levels but {len(self.shares)} shares.")
        if self.repeats and (len(self.repeats) != len(self.levels) or not all(1 <= r < math.inf for r in self.repeats)):
            raise UsageError(
                f"The column {self.name!r} has {len(self.levels)} levels, so as many repeats, from 1 on; got "
                f"{self.repeats}."
            )

    @classmethod
    def parsed(cls, text: str) -> Column:
        """Returns what `name=kind` says, or `name=low<middle<high` of an ordinal column.

        Raises:
            UsageError: It says nothing of that kind.
        """
        name, equals, kind = text.rpartition("=")
        if "<" in kind and name:
            return cls(name, Kind.ORDINAL, levels=tuple(level.strip() for level in kind.split("<")))
        if not equals or not name or kind not in [k.value for k in Kind]:
            raise UsageError(
                f"A column's kind is given as NAME=KIND, or as NAME=low<middle<high for labels with an order; got "
                f"{text!r}. {did_you_mean(kind, [k.value for k in Kind])}"
            )
        return cls(name, Kind(kind))

    @property
    def num_levels(self) -> int:
        """How many labels there are; 0 for numbers and dates."""
        return len(self.levels)

    def encode(self, array: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the cells of an Arrow array as numbers of x, and what is wrong with them.

        Returns:
            float64 `[N]`, NaN where a cell is missing or wrong; where it cannot be read as what the column holds (text
            in a column of numbers); and where it can, but the column does not hold it (an unseen label, a negative
            count).
        """
        if self.kind.has_levels:
            return self._places(array)
        values, bad = self._numbers(array)
        strange = np.zeros(len(values), dtype=bool)
        with np.errstate(invalid="ignore"):
            if self.kind is Kind.COUNT:
                strange = (values < 0) | (values > MAX_COUNT) | (values != np.round(values))
            elif self.kind is Kind.POSITIVE:
                strange = values <= 0
        strange &= ~np.isnan(values)
        values[strange] = np.nan
        if self.kind is Kind.POSITIVE:
            values = np.log(values)
        return (values - self.loc) / self.scale if self.kind.is_measured else values, bad, strange

    def _numbers(self, array: Any) -> tuple[np.ndarray, np.ndarray]:
        if self.kind is Kind.DATE:
            return cells.days(array)[:2]
        return cells.numbers(array)

    def _places(self, array: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pa = cells.arrow()
        text = cells.labels(array)
        place = pa.compute.index_in(text, value_set=pa.array(self.levels, pa.string()))
        found = np.array(pa.compute.cast(place, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        there = np.array(text.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
        return found, np.zeros(len(found), dtype=bool), np.isnan(found) & there

    def decode(self, x: np.ndarray) -> list[Any]:
        """Returns numbers of x as cells: numbers, labels, dates; None where they are NaN.

        Example:
            >>> Column("age", Kind.COUNT).decode(np.array([3.2, np.nan]))
            [3, None]
            >>> Column("v", Kind.REAL, 5.0, 2.0, decimals=1).decode(np.array([0.26]))
            [5.5]
        """
        there = ~np.isnan(x)
        safe = np.where(there, x, 0.0).astype(np.float64)
        if self.kind.has_levels:
            place = np.clip(np.round(safe), 0, max(len(self.levels) - 1, 0)).astype(np.int64)
            values: list[Any] = [self.levels[p] for p in place]
        elif self.kind is Kind.COUNT:
            values = np.clip(np.round(safe), 0, MAX_COUNT).astype(np.int64).tolist()
        else:
            values = self._measured(safe)
        return [value if t else None for value, t in zip(values, there, strict=True)]

    def _measured(self, x: np.ndarray) -> list[Any]:
        values = self.loc + self.scale * x
        if self.kind is Kind.POSITIVE:
            values = np.exp(np.clip(values, -690.0, 690.0))
        if self.kind is Kind.DATE:
            return [self._date(day) for day in np.clip(values, cells.FIRST_DAY, cells.LAST_DAY).tolist()]
        values = np.clip(values, -cells.LARGEST, cells.LARGEST)
        if self.decimals < 0:
            if self.kind is Kind.REAL:
                # What float32 knows of a cell near 0, it knows in fractions of the scale.
                values = np.round(values, int(np.clip(6 - math.floor(math.log10(self.scale)), -290, 290)))
            return [float(f"{value:.7g}") + 0.0 for value in values.tolist()]
        # Adding 0 makes -0.0 a plain 0.
        rounded = (np.round(values, self.decimals) + 0.0).tolist()
        if self.kind is Kind.POSITIVE:
            # What is positive must not be rounded to 0.
            rounded = [r if r > 0 else 10.0**-self.decimals for r in rounded]
        return [int(v) for v in rounded] if self.decimals == 0 else rounded

    def _date(self, day: float) -> date | datetime:
        if self.decimals == 0:
            return date(1970, 1, 1) + timedelta(days=round(day))
        return datetime(1970, 1, 1) + timedelta(seconds=round(day * 86_400))

    def written(self, value: Any) -> str:
        """Returns a decoded cell as text; the empty text where it is missing.

        Example:
            >>> Column("v", Kind.REAL, decimals=2).written(3.5)
            '3.50'
        """
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:.{self.decimals}f}" if self.decimals >= 0 else repr(value)
        return value.isoformat() if isinstance(value, date) else str(value)
