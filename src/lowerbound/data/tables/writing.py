"""Tables as files again, some rows at a time: CSV, TSV and Parquet.

**Text that a spreadsheet would run.** A cell that begins with =, +, -, @, a tab or a carriage return is a formula to a
spreadsheet. Where this package writes such text (numbers and dates are never touched), it puts ' before it, as the
OWASP's page on CSV injection says. Cells that were copied from a file are as they were.
"""

from __future__ import annotations

import csv
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lowerbound.data.tables.cells import arrow
from lowerbound.data.tables.columns import Column, Kind
from lowerbound.data.tables.files import SEPARATORS
from lowerbound.errors import DataError, ResourceError, UsageError

SUFFIXES = (*SEPARATORS, ".parquet")
_RUNS = ("=", "+", "-", "@", "\t", "\r")
_ARROW_OF = {
    Kind.REAL: "double", Kind.POSITIVE: "double", Kind.COUNT: "int64", Kind.BINARY: "string",
    Kind.CATEGORICAL: "string", Kind.ORDINAL: "string",
}  # fmt: skip


def guarded(text: str) -> str:
    """Returns text that no spreadsheet takes for a formula; numbers are none.

    Example:
        >>> guarded("=1+1"), guarded("-1.5"), guarded("plain")
        ("'=1+1", '-1.5', 'plain')
    """
    if not text.startswith(_RUNS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text if text[0] in "+-" else f"'{text}"


@dataclass(frozen=True)
class Made:
    """The cells of a column that were made here.

    Attributes:
        column: What they are.
        values: Decoded, `[N]`; None where there is none.
    """

    column: Column
    values: list[Any]

    def texts(self) -> list[str]:
        """Returns them as text that is safe for spreadsheets."""
        written = [self.column.written(value) for value in self.values]
        return [guarded(text) for text in written] if self.column.kind.has_levels else written

    def array(self) -> Any:
        """Returns them as an Arrow array of the column's type."""
        return as_type(self.values, _type_of(self.column))


@dataclass(frozen=True)
class Copied:
    """The cells of a column as they were in a file, with some of its holes filled.

    Attributes:
        cells: As they were, an Arrow array `[N]`.
        made: What is put where it has holes; None where nothing is.
        holes: Where that is, bool `[N]`.
    """

    cells: Any
    made: Made | None = None
    holes: np.ndarray | None = None

    def texts(self) -> list[str]:
        """Returns them as text: those that were there as they were."""
        try:
            text = self.cells.cast(arrow().string())
        except arrow().ArrowException as error:
            raise UsageError(
                f"The file has a column of the Arrow type {self.cells.type}, which cannot be written as text. Use "
                "--out FILE.parquet, or leave that column out of the file."
            ) from error
        old = [value or "" for value in text.to_pylist()]
        if self.made is None or self.holes is None:
            return old
        return [new if hole else kept for kept, new, hole in zip(old, self.made.texts(), self.holes, strict=True)]

    def array(self) -> Any:
        """Returns them as an Arrow array of the type that they had."""
        if self.made is None or self.holes is None or not self.holes.any():
            return self.cells
        pa = arrow()
        if pa.types.is_null(self.cells.type):  # without any cell, so there was no type to keep
            return self.made.array()
        try:
            made = as_type(self.made.values, self.cells.type)
        except (pa.ArrowException, TypeError) as error:
            column = self.made.column
            raise DataError(
                f"The column {column.name!r} has the Arrow type {self.cells.type} in the file, which cannot hold the "
                f"{column.kind.value} that is put into its holes. Give it the type that it had in training, or use "
                "--out FILE.csv."
            ) from error
        return pa.compute.if_else(pa.array(self.holes), made, self.cells)


class Writer(ABC):
    """A table that is being written; `written` makes one."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self.file = file
        self.names = tuple(names)

    @abstractmethod
    def add(self, columns: Sequence[Made | Copied]) -> None:
        """Adds rows, given by columns in the order of the names."""

    @abstractmethod
    def end(self) -> None:
        """Writes what stands behind the last row."""


class _TextWriter(Writer):
    def __init__(self, file: BinaryIO, names: Sequence[str], separator: str) -> None:
        super().__init__(file, names)
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._rows = csv.writer(self._text, delimiter=separator, lineterminator="\n")
        self._rows.writerow(names)

    def add(self, columns: Sequence[Made | Copied]) -> None:
        self._rows.writerows(zip(*(column.texts() for column in columns), strict=True))

    def end(self) -> None:
        self._text.detach()  # or it would close the file


class _ParquetWriter(Writer):
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        super().__init__(file, names)
        self._parquet: Any = None

    def add(self, columns: Sequence[Made | Copied]) -> None:
        from pyarrow import parquet

        table = arrow().table([column.array() for column in columns], names=list(self.names))
        if self._parquet is None:
            self._parquet = parquet.ParquetWriter(self.file, table.schema)
        self._parquet.write_table(table.cast(self._parquet.schema))

    def end(self) -> None:
        if self._parquet is not None:
            self._parquet.close()


def check_suffix(path: Path) -> None:
    """Raises `UsageError` where a table cannot be written to a file of that name."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"A table is written as {', '.join(SUFFIXES)}; got {path}.")


@contextmanager
def written(path: Path, names: Sequence[str]) -> Iterator[Writer]:
    """Opens a table to be written, which takes its name when the body ends well and leaves nothing behind otherwise.

    Args:
        path: .csv, .tsv or .parquet.
        names: The columns' names.

    Raises:
        UsageError: The suffix is another, or a name stands there twice.
        ResourceError: The disk is full or refuses; what was there before is intact.
    """
    check_suffix(path)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{path} would have the column {', '.join(map(repr, twice[:5]))} twice: it is in the file already. Rename "
            "it there."
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            separator = SEPARATORS.get(path.suffix.lower())
            writer = _ParquetWriter(file, names) if separator is None else _TextWriter(file, names, separator)
            yield writer
            writer.end()
        beside.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what could not be made cannot be taken away
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ResourceError(
                f"{path} could not be written: {error.strerror or error}. Check that it can be."
            ) from error
        raise


def _type_of(column: Column) -> Any:
    pa = arrow()
    if column.storage:
        return pa.type_for_alias(column.storage)
    if column.kind is Kind.DATE:
        return pa.date32() if column.decimals == 0 else pa.timestamp("s")
    whole = column.kind.is_measured and column.decimals == 0
    return pa.type_for_alias("int64" if whole else _ARROW_OF[column.kind])


def as_type(made: list[Any], to: Any) -> Any:
    """Returns decoded cells as an Arrow array of a type; numbers are rounded and cut off where it has no room."""
    pa = arrow()
    if pa.types.is_integer(to) and any(isinstance(value, float) for value in made):
        made = [None if value is None else round(value) for value in made]
    if pa.types.is_integer(to) and not any(isinstance(value, str) for value in made):
        width = to.bit_width - (0 if pa.types.is_unsigned_integer(to) else 1)
        low = 0 if pa.types.is_unsigned_integer(to) else -(1 << width)
        made = [None if value is None else min(max(value, low), (1 << width) - 1) for value in made]
    if pa.types.is_floating(to) or pa.types.is_decimal(to):
        made = [value if value is None or isinstance(value, str) else float(value) for value in made]
    return pa.array(made).cast(to, safe=False)
