"""`Table`: how the rows of a CSV, TSV or Parquet file become x, and x rows again.

The units of the columns (`Column.loc`, `Column.scale`) and their labels are taken from the whole file, test rows
included: they are the language that x is written in, and densities are given in the file's own units, so no number
depends on them.

A table may be larger than memory. Whatever its size, its columns are found in one pass over blocks of its rows, and a
second makes x of them. Where x can take more than `lowerbound.data.stored.HELD_BYTES` (four bytes a cell; a text file
has at most one cell a byte), it is packed into a file in the user's cache, whose name follows from the columns and from
the file's place, size and time, and is read from there; else it is made anew by each command and held.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lowerbound.data import cache
from lowerbound.data.reading import Reading, Report, shuffled_split
from lowerbound.data.source import ArraySource, Source, Support
from lowerbound.data.stored import Rows, StoredSource, is_held, rows_of
from lowerbound.data.tables import files
from lowerbound.data.tables.cells import missing
from lowerbound.data.tables.columns import Column
from lowerbound.data.tables.infer import infer, refusal
from lowerbound.data.tables.tally import Tally, Wrong
from lowerbound.data.tables.writing import SUFFIXES, Copied, Made, Writer, check_suffix, guarded, written
from lowerbound.errors import DataError, UsageError, did_you_mean

_FEWEST_ROWS = 3
_MAX_LEVELS_IN_ALL = 20_000
_LISTED = 5
# Changes when the same file and columns become other x.
_POLICY = 1
# The steps that progress is told in.
_STEPS = 10_000


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
        >>> from lowerbound.data.tables import Kind
        >>> Table(columns=(Column("age", Kind.COUNT), Column("size", Kind.ORDINAL, levels=("s", "m", "l")))).columns[0]
        Column(name='age', kind=<Kind.COUNT: 'count'>, ...)
    """

    columns: tuple[Column, ...] = ()
    ignore: tuple[str, ...] = ()
    is_fitted: bool = False

    exports: ClassVar[tuple[str, ...]] = SUFFIXES

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        twice = {name for name in names if names.count(name) > 1} | (set(names) & set(self.ignore))
        if twice:
            raise UsageError(f"Say of each column once what it is; {', '.join(sorted(twice))} is there twice.")

    def with_repeats(self, name: str, repeats: tuple[float, ...]) -> Table:
        """Returns the same table, of which training repeats rows by the label in a column (`Column.repeats`)."""
        columns = tuple(replace(c, repeats=repeats) if c.name == name else c for c in self.columns)
        return replace(self, columns=columns)

    def fitted(self, path: Path, report: Report | None = None) -> Table:
        if self.is_fitted:
            return self
        file = files.opened(path)
        declared = {column.name: column for column in self.columns}
        for name in (*declared, *self.ignore):
            if name not in file.names:
                raise UsageError(f"{path} has no column {name!r}. {did_you_mean(name, file.names)}")
        used = [name for name in file.names if name not in self.ignore]
        if not used:
            raise UsageError(f"All columns of {path} are ignored; leave at least one.")
        files.check_types(file, used)
        type_of = dict(zip(file.names, file.types, strict=True))
        tallies = [Tally(name, type_of[name], declared.get(name)) for name in used]
        for raw in _told(file, used, report):
            for tally, array in zip(tallies, raw.arrays, strict=True):
                tally.add(array, raw.start)
        columns = tuple(infer(tally, str(path)) for tally in tallies)
        if sum(column.num_levels for column in columns) > _MAX_LEVELS_IN_ALL:
            raise DataError(
                f"{path} has more than {_MAX_LEVELS_IN_ALL:,} labels in all its columns together; ignore some columns."
            )
        return Table(columns, self.ignore, is_fitted=True)

    def prepare(self, path: Path, report: Report | None = None) -> None:
        """Packs a table whose x can be too large to be held, unless that was done before.

        Raises:
            DataError: The file cannot be had or read, a column is missing, or its cells cannot be read as its kind.
            ResourceError: The disk is full or refuses.
        """
        fitted = self.fitted(path)
        if not fitted._is_held(file := files.opened(path)):
            fitted._packed(file, report)

    def open(self, path: Path) -> tuple[Source, Source]:
        whole = self.whole(path)
        if len(whole) < _FEWEST_ROWS:
            raise DataError(
                f"{path} has {len(whole)} rows; {_FEWEST_ROWS} are the fewest to train, validate and test on."
            )
        return shuffled_split(whole)

    def whole(self, path: Path) -> Source:
        fitted = self.fitted(path)
        file = files.opened(path)
        rows, notes = fitted._made(file) if fitted._is_held(file) else fitted._packed(file)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        if isinstance(rows, Rows) and not is_held(len(rows) * rows.row_bytes):
            return StoredSource(rows, support=Support.TABLE, name=str(path))
        values = rows.read(np.arange(len(rows))) if isinstance(rows, Rows) else rows
        return ArraySource(torch.from_numpy(values), support=Support.TABLE, name=str(path))

    def read(self, path: Path) -> Sheet:
        """Reads a file's rows in their order, with all of the file at hand.

        Raises:
            DataError: The file cannot be had or read, a column is missing, or its cells cannot be read as its kind.
        """
        fitted = self.fitted(path)
        encoder = _Encoder(fitted.columns, files.opened(path))
        raw = files.read(path)
        x = encoder.encode(raw)
        return Sheet(raw, fitted.columns, torch.from_numpy(x), encoder.notes())

    def look(self, path: Path) -> Look:
        """Looks at all rows of a file once, without keeping them.

        Raises:
            DataError: The file cannot be had or read, a column is missing, or its cells cannot be read as its kind.
        """
        fitted = self.fitted(path)
        file = files.opened(path)
        encoder, found = _Encoder(fitted.columns, file), Look(file.names, (), 0, (0,) * len(fitted.columns))
        for raw in file.blocks():
            encoder.encode(raw)
            holes = [int(missing(raw[column.name]).sum()) for column in fitted.columns]
            added = tuple(a + b for a, b in zip(found.holes, holes, strict=True))
            found = replace(found, rows=found.rows + len(raw), holes=added)
        return replace(found, notes=encoder.notes())

    def sheets(self, path: Path) -> Iterator[Sheet]:
        """Yields a file's rows in their order, some at a time; `look` says beforehand what is to be said of them.

        Raises:
            DataError: See `look`.
        """
        fitted = self.fitted(path)
        file = files.opened(path)
        encoder = _Encoder(fitted.columns, file)
        for raw in file.blocks():
            yield Sheet(raw, fitted.columns, torch.from_numpy(encoder.encode(raw)))

    def write(self, x: Tensor, path: Path) -> None:
        """Writes rows, `[N, D]`, as .csv, .tsv or .parquet; NaN becomes an empty or null cell.

        Text is made safe for spreadsheets, see `lowerbound.data.tables.writing`.

        Raises:
            UsageError: The file's suffix is another, or x is not of these columns.
        """
        check_suffix(path)
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise UsageError(f"These rows have {len(self.columns)} cells each; got x of shape {tuple(x.shape)}.")
        made = [Made(c, c.decode(values)) for c, values in zip(self.columns, x.double().numpy().T, strict=True)]
        names = [column.name for column in self.columns]
        with written(path, names if path.suffix.lower() == ".parquet" else [guarded(name) for name in names]) as out:
            out.add(made)

    def _is_held(self, file: files.TableFile) -> bool:
        return is_held(4 * file.most_rows * len(self.columns))

    def _made(self, file: files.TableFile) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns x, float32 `[N, D]`, and what is to be said of it."""
        encoder, count = _Encoder(self.columns, file), 0
        # Of rows that turn out not to be there, no memory is used.
        x = np.empty((file.most_rows, len(self.columns)), np.float32)
        for raw in file.blocks(encoder.used):
            x[raw.start : raw.start + len(raw)] = encoder.encode(raw)
            count += len(raw)
        return x[:count], encoder.notes()

    def _packed(self, file: files.TableFile, report: Report | None = None) -> tuple[Rows, tuple[str, ...]]:
        """Returns the same from a file in the cache; makes it if it is not there."""
        status = os.stat(file.path)
        # What training repeats is no matter of x.
        columns = tuple(replace(column, repeats=()) for column in self.columns)
        identity = (_POLICY, str(file.path.resolve()), status.st_size, status.st_mtime_ns, columns)
        name = hashlib.sha256(repr(identity).encode()).hexdigest()
        target = cache.cache_dir() / "tables" / f"{name}.npy"
        known = cache.remembered(name)
        if known is None or not target.exists():
            encoder = _Encoder(self.columns, file)
            cache.pack(target, (None, len(self.columns)), np.dtype(np.float32), _chunks(encoder, file, report))
            known = {"notes": list(encoder.notes())}
            cache.remember(name, known)
        return rows_of(target), tuple(known["notes"])


def _chunks(encoder: _Encoder, file: files.TableFile, report: Report | None) -> Iterator[np.ndarray]:
    for raw in _told(file, encoder.used, report):
        yield encoder.encode(raw)
    encoder.notes()  # refuses, before the file has its name


def _told(file: files.TableFile, used: Sequence[str], report: Report | None) -> Iterator[files.Raw]:
    """Yields the blocks of a file, and tells after each how far it is."""
    for raw in file.blocks(used):
        yield raw
        if report is not None:
            report(int(_STEPS * file.share()), _STEPS)


class _Encoder:
    """Makes x of blocks of a file's rows, and gathers what is wrong with their cells.

    Raises:
        DataError: A column is not there, or holds what no column can.
    """

    def __init__(self, columns: tuple[Column, ...], file: files.TableFile) -> None:
        self.columns = columns
        self.path = file.path
        self.used = tuple(column.name for column in columns)
        self._bad = [Wrong() for _ in columns]
        self._strange = [Wrong() for _ in columns]
        lacking = [name for name in self.used if name not in file.names]
        if lacking:
            raise DataError(
                f"{file.path} should have the columns of the training table, but {', '.join(lacking[:5])} is not "
                f"there; it has {', '.join(file.names[:20])}. Where nothing is known of a column, give it with empty "
                "cells."
            )
        files.check_types(file, self.used)

    def encode(self, raw: files.Raw) -> np.ndarray:
        """Returns the rows as x, float32 `[n, D]`; NaN where a cell is missing or cannot be held by its column."""
        x = np.empty((len(raw), len(self.columns)), np.float32)
        for place, column in enumerate(self.columns):
            array = raw[column.name]
            values, bad, strange = column.encode(array)
            with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
                x[:, place] = values
            self._bad[place].add(bad | np.isinf(x[:, place]), array, raw.start)
            self._strange[place].add(strange, array, raw.start)
        return x

    def notes(self) -> tuple[str, ...]:
        """Returns what was taken as missing although it was there, in words.

        Raises:
            DataError: A cell cannot be read as what its column holds; the first five of the column are named.
        """
        for column, wrong in zip(self.columns, self._bad, strict=True):
            if wrong.count:
                raise refusal(column, wrong, str(self.path), is_new=True)
        strange = [
            f"column {column.name!r}: {wrong}"
            for column, wrong in zip(self.columns, self._strange, strict=True)
            if wrong.count
        ]
        if not strange:
            return ()
        listed = "; ".join(strange[:_LISTED])
        return (f"{self.path} has cells that their columns cannot hold, which are taken as missing: {listed}",)


@dataclass(frozen=True)
class Look:
    """What one look at a file tells.

    Attributes:
        names: The columns of the file, those too that the model does not know.
        notes: What is taken as missing although it is there, in words.
        rows: How many there are.
        holes: Missing cells of each column of x.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]
    rows: int
    holes: tuple[int, ...]


@dataclass(frozen=True)
class Sheet:
    """Rows that were read: as x, and all that is needed to write them again with their holes filled.

    Attributes:
        raw: The rows as they are.
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
        """Writes the rows again, their columns, their order and their cells as they were, with holes filled from x.

        Args:
            x: `[N, D]`; only what stands where the file has holes is used.
            path: .csv, .tsv or .parquet.
            beside: More columns with their decoded cells, put behind the file's own.

        Raises:
            UsageError: The suffix is another.
        """
        with written(path, [*self.raw.names, *(column.name for column, _ in beside)]) as out:
            self.add_to(out, x, beside)

    def add_to(self, out: Writer, x: Tensor, beside: Sequence[tuple[Column, list[Any]]] = ()) -> None:
        """Adds the rows to a table that is being written (`lowerbound.data.tables.writing`); see `write`."""
        holes, filled = self.holes.numpy(), {}
        for place, column in enumerate(self.columns):
            made = column.decode(np.where(holes[:, place], x[:, place].double().numpy(), np.nan))
            filled[column.name] = (Made(column, made), holes[:, place])
        own = zip(self.raw.names, self.raw.arrays, strict=True)
        columns: list[Made | Copied] = [Copied(array, *filled.get(name, ())) for name, array in own]
        out.add([*columns, *(Made(column, made) for column, made in beside)])
