"""`Table`: how the rows of a CSV, TSV or Parquet file become x, and x rows again.

The units of the columns (`Column.loc`, `Column.scale`) and their labels are taken from the whole file, test rows
included: they are the language that x is written in, and densities are given in the file's own units, so no number
depends on them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lowerbound.data.reading import Reading, shuffled_split
from lowerbound.data.source import ArraySource, Source, Support
from lowerbound.data.tables import files
from lowerbound.data.tables.cells import arrow, missing
from lowerbound.data.tables.columns import Column, Kind
from lowerbound.data.tables.infer import infer, offenders, refuse_bad
from lowerbound.errors import DataError, ResourceError, UsageError, did_you_mean

_FEWEST_ROWS = 3
_MAX_LEVELS_IN_ALL = 20_000
_ARROW_OF = {
    Kind.REAL: "double", Kind.POSITIVE: "double", Kind.COUNT: "int64", Kind.BINARY: "string",
    Kind.CATEGORICAL: "string", Kind.ORDINAL: "string",
}  # fmt: skip


@dataclass(frozen=True)
class Table(Reading):
    """Rows of a table.

    Attributes:
        columns: What is known of the columns beforehand; after `fitted`, all that x is made of, in x's order.
        ignore: Names of columns that are left out.
        is_fitted: Whether nothing is left open.

    Raises:
        UsageError: A column is named twice, or is both described and ignored.

    Example:
        >>> Table(columns=(Column("age", Kind.COUNT), Column("size", Kind.ORDINAL, levels=("s", "m", "l")))).columns[0]
        Column(name='age', kind=<Kind.COUNT: 'count'>, ...)
    """

    columns: tuple[Column, ...] = ()
    ignore: tuple[str, ...] = ()
    is_fitted: bool = False

    exports: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".parquet")

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        twice = {name for name in names if names.count(name) > 1} | (set(names) & set(self.ignore))
        if twice:
            raise UsageError(f"Say of each column once what it is; {', '.join(sorted(twice))} is there twice.")

    def with_repeats(self, name: str, repeats: tuple[float, ...]) -> Table:
        """Returns the same table, of which training repeats rows by the label in a column (`Column.repeats`)."""
        columns = tuple(replace(c, repeats=repeats) if c.name == name else c for c in self.columns)
        return replace(self, columns=columns)

    def fitted(self, path: Path) -> Table:
        if self.is_fitted:
            return self
        raw = files.read(path)
        declared = {column.name: column for column in self.columns}
        for name in (*declared, *self.ignore):
            if name not in raw.names:
                raise UsageError(f"{path} has no column {name!r}. {did_you_mean(name, raw.names)}")
        used = [name for name in raw.names if name not in self.ignore]
        if not used:
            raise UsageError(f"All columns of {path} are ignored; leave at least one.")
        files.check_types(raw, used, path)
        columns = tuple(infer(name, raw[name], str(path), declared.get(name)) for name in used)
        if sum(column.num_levels for column in columns) > _MAX_LEVELS_IN_ALL:
            raise DataError(
                f"{path} has more than {_MAX_LEVELS_IN_ALL:,} labels in all its columns together; ignore some columns."
            )
        return Table(columns, self.ignore, is_fitted=True)

    def open(self, path: Path) -> tuple[Source, Source]:
        whole = self.whole(path)
        if len(whole) < _FEWEST_ROWS:
            raise DataError(
                f"{path} has {len(whole)} rows; {_FEWEST_ROWS} are the fewest to train, validate and test on."
            )
        return shuffled_split(whole)

    def whole(self, path: Path) -> ArraySource:
        sheet = self.read(path)
        for note in sheet.notes:
            warnings.warn(note, stacklevel=2)
        return ArraySource(sheet.x, support=Support.TABLE, name=str(path))

    def read(self, path: Path) -> Sheet:
        """Reads a file's rows in their order, with all of the file at hand.

        Raises:
            DataError: The file cannot be had or read, a column is missing, or its cells cannot be read as its kind.
        """
        fitted = self.fitted(path)
        raw = files.read(path)
        lacking = [column.name for column in fitted.columns if column.name not in raw.names]
        if lacking:
            raise DataError(
                f"{path} should have the columns of the training table, but {', '.join(lacking[:5])} is not there; it "
                f"has {', '.join(raw.names[:20])}. Where nothing is known of a column, give it with empty cells."
            )
        files.check_types(raw, [column.name for column in fitted.columns], path)
        cells, notes = [], []
        for column in fitted.columns:
            array = raw[column.name]
            refuse_bad(column, array, str(path), strange_too=False)
            values, _, strange = column.encode(array)
            cells.append(values)
            if strange.any():
                notes.append(offenders(column, strange, array))
        said = (
            [f"{path} has cells that their columns cannot hold, which are taken as missing: {'; '.join(notes[:5])}"]
            if notes
            else []
        )
        x = torch.from_numpy(np.stack(cells, 1).astype(np.float32))
        return Sheet(raw, fitted.columns, x, tuple(said))

    def write(self, x: Tensor, path: Path) -> None:
        """Writes rows, `[N, D]`, as .csv, .tsv or .parquet; NaN becomes an empty or null cell.

        Text is made safe for spreadsheets, see `lowerbound.data.tables.files`.

        Raises:
            UsageError: The file's suffix is another, or x is not of these columns.
        """
        self._check(x, path)
        decoded = [column.decode(values) for column, values in zip(self.columns, x.double().numpy().T, strict=True)]
        names = [column.name for column in self.columns]
        _write(path, names, list(zip(self.columns, decoded, strict=True)))

    def _check(self, x: Tensor, path: Path) -> None:
        if path.suffix.lower() not in self.exports:
            raise UsageError(f"A table is written as {', '.join(self.exports)}; got {path}.")
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise UsageError(f"These rows have {len(self.columns)} cells each; got x of shape {tuple(x.shape)}.")


@dataclass(frozen=True)
class Sheet:
    """A file that was read: its rows as x, and all that is needed to write it again with its holes filled.

    Attributes:
        raw: The file as it is.
        columns: What x is made of.
        x: The rows, float32 `[N, D]`, NaN where a cell is missing or cannot be held by its column.
        notes: What was taken as missing although it was there, in words.
    """

    raw: files.Raw
    columns: tuple[Column, ...]
    x: Tensor
    notes: tuple[str, ...] = ()

    @property
    def holes(self) -> Tensor:
        """Where a cell of the file is missing, bool `[N, D]`: not where one is there but unseen."""
        gone = [missing(self.raw[column.name]) for column in self.columns]
        return torch.from_numpy(np.stack(gone, 1))

    def write(self, x: Tensor, path: Path, beside: Sequence[tuple[Column, list[Any]]] = ()) -> None:
        """Writes the file again, its columns, its order and its cells as they were, with the holes filled from x.

        Args:
            x: `[N, D]`; only what stands where the file has holes is used.
            path: .csv, .tsv or .parquet.
            beside: More columns with their decoded cells, put behind the file's own.

        Raises:
            UsageError: The suffix is another.
        """
        if path.suffix.lower() not in Table.exports:
            raise UsageError(f"A table is written as {', '.join(Table.exports)}; got {path}.")
        holes = self.holes.numpy()
        filled = {}
        for place, column in enumerate(self.columns):
            made = column.decode(np.where(holes[:, place], x[:, place].double().numpy(), np.nan))
            filled[column.name] = (column, made, holes[:, place])
        names = [*self.raw.names, *(column.name for column, _ in beside)]
        own = zip(self.raw.names, self.raw.arrays, strict=True)
        if path.suffix.lower() == ".parquet":
            arrays = [_patched(array, *filled[name]) if name in filled else array for name, array in own]
            content = files.parquet_of(names, arrays + [_as_type(made, _type_of(column)) for column, made in beside])
        else:
            texts = [_retold(array, filled.get(name)) for name, array in own]
            texts += [[_safe(column, value) for value in made] for column, made in beside]
            content = files.text_of(names, texts, files.SEPARATORS[path.suffix.lower()])
        _save(path, content)


def _patched(array: Any, column: Column, made: list[Any], holes: np.ndarray) -> Any:
    """Returns an Arrow array with its holes filled, of the same type."""
    pa = arrow()
    if not holes.any():
        return array
    return pa.compute.if_else(pa.array(holes), _as_type(made, array.type), array)


def _retold(array: Any, filled: tuple[Column, list[Any], np.ndarray] | None) -> list[str]:
    """Returns the cells of a column as text: those that were there as they were, the others made."""
    text = array if str(array.type) in ("string", "large_string") else array.cast(arrow().string())
    old = [value or "" for value in text.to_pylist()]
    if filled is None:
        return old
    column, made, holes = filled
    return [_safe(column, value) if hole else kept for kept, value, hole in zip(old, made, holes, strict=True)]


def _safe(column: Column, value: Any) -> str:
    text = column.written(value)
    return files.guarded(text) if column.kind.has_levels else text


def _write(path: Path, names: list[str], columns: list[tuple[Column, list[Any]]]) -> None:
    if path.suffix.lower() == ".parquet":
        content = files.parquet_of(names, [_as_type(made, _type_of(column)) for column, made in columns])
    else:
        texts = [[_safe(column, value) for value in made] for column, made in columns]
        header = [files.guarded(name) for name in names]
        content = files.text_of(header, texts, files.SEPARATORS[path.suffix.lower()])
    _save(path, content)


def _type_of(column: Column) -> Any:
    pa = arrow()
    if column.storage:
        return pa.type_for_alias(column.storage)
    if column.kind is Kind.DATE:
        return pa.date32() if column.decimals == 0 else pa.timestamp("s")
    whole = column.kind.is_measured and column.decimals == 0
    return pa.type_for_alias("int64" if whole else _ARROW_OF[column.kind])


def _as_type(made: list[Any], to: Any) -> Any:
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


def _save(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ResourceError(f"{path} could not be written: {error.strerror or error}. Check that it can be.") from error
