"""CSV, TSV and Parquet files as named Arrow arrays, some rows at a time.

A text file must be UTF-8 (a byte-order mark at its start is left out), without NUL characters. Its first row names the
columns; a name stands there once and is not empty. Every row has as many cells as that. The separator is the one of
comma, semicolon and tab that the header has most of. Empty lines are no rows, but in a table of one column, where they
are missing cells.

Where a file cannot be read that way, the message names it, the row (counted from 1, without the header) and the column.

A file is read from its beginning to its end in blocks of as many rows as its number of columns says, so it need not fit
in memory: of Parquet some pages of each column are held, of text 16 MiB and what has been made of them.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowerbound.data.tables.cells import arrow
from lowerbound.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
MAX_COLUMNS = 1000
_HEADER = 1 << 22
_LARGEST_ROW = 1 << 24
_MARK = b"\xef\xbb\xbf"
# Bytes looked at together; cells of a block and its rows at most; and what is read ahead of a column of Parquet.
_SCANNED = 1 << 20
BLOCK_CELLS, _BLOCK_ROWS = 1 << 19, 1 << 16
_PARQUET_BUFFER = 1 << 16
_LISTED = 5


@dataclass(frozen=True)
class Raw:
    """Rows of a file as they are.

    Attributes:
        names: The columns' names.
        arrays: Their cells, an Arrow array each: text, of a text file.
        start: The number of the first row in the file, from 0.
    """

    names: tuple[str, ...]
    arrays: tuple[Any, ...]
    start: int = 0

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, name: str) -> Any:
        return self.arrays[self.names.index(name)]


class TableFile(ABC):
    """A file that was looked at, and is read as often as it is asked for.

    Attributes:
        path: Where it is.
        names: The columns' names.
        types: Their Arrow types, those of a dictionary's values.
        most_rows: As many rows as it can have at most.
    """

    path: Path
    names: tuple[str, ...]
    types: tuple[Any, ...]
    most_rows: int

    def blocks(self, used: Iterable[str] | None = None) -> Iterator[Raw]:
        """Yields all rows, some at a time.

        Args:
            used: The names of the columns to read; all by default.

        Raises:
            DataError: The file cannot be read as a table, or has no rows.
        """
        wanted = self.names if used is None else tuple(used)
        rows, start = max(1, min(_BLOCK_ROWS, BLOCK_CELLS // len(self.names))), 0
        with _as_data_errors(self.path):
            for table in _cut(self._tables(wanted), rows):
                yield Raw(wanted, tuple(_flat(column) for column in table.columns), start)
                start += len(table)
        if not start:
            raise DataError(f"{self.path} has the header of a table but no rows. Give it rows.")

    @abstractmethod
    def _tables(self, wanted: tuple[str, ...]) -> Iterator[Any]:
        """Yields Arrow tables of these columns, of any number of rows."""

    @abstractmethod
    def share(self) -> float:
        """How much of the file the reading that was begun last is through with, from 0 to 1."""


def opened(path: Path) -> TableFile:
    """Opens a file by its suffix.

    Raises:
        DataError: It is not there, or no table.
        ResourceError: pyarrow is not installed.
    """
    arrow()
    with _as_data_errors(path):
        return _ParquetFile(path) if path.suffix.lower() == ".parquet" else _TextFile(path)


def read(path: Path) -> Raw:
    """Reads a whole file; see `opened`."""
    pa = arrow()
    file = opened(path)
    blocks = list(file.blocks())
    return Raw(file.names, tuple(pa.concat_arrays(parts) for parts in zip(*(b.arrays for b in blocks), strict=True)))


@contextlib.contextmanager
def _as_data_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error


def _cut(tables: Iterator[Any], rows: int) -> Iterator[Any]:
    """Cuts tables of any number of rows into tables of so many; only the last may be shorter."""
    pa = arrow()
    kept: list[Any] = []
    there = 0
    for table in tables:
        kept.append(table)
        there += len(table)
        if there < rows:
            continue
        joined = pa.concat_tables(kept)
        whole = there // rows * rows
        for start in range(0, whole, rows):
            yield joined.slice(start, rows)
        kept, there = [joined.slice(whole)], there - whole
    if there:
        yield pa.concat_tables(kept)


def separator_of(header: str, suffix: str) -> str:
    r"""Returns the one of , ; and tab that a header has most of outside quotation marks.

    Example:
        >>> separator_of('a;"b, and c";d', ".csv"), separator_of("only", ".tsv")
        (';', '\t')
    """
    outside = "".join(header.split('"')[::2])
    default = SEPARATORS.get(suffix.lower(), ",")
    return max((default, ",", ";", "\t"), key=lambda mark: (outside.count(mark), mark == default))


class _TextFile(TableFile):
    def __init__(self, path: Path) -> None:
        self.path = path
        self._quotes, self._ended, self._size = _scan(path)
        with path.open("rb") as file:
            beginning = file.read(_HEADER + len(_MARK))
        self._offset = len(_MARK) if beginning.startswith(_MARK) else 0
        # In a table of one column an empty line is a row, but not before the header.
        self._offset += len(beginning) - self._offset - len(beginning[self._offset :].lstrip(b"\r\n"))
        first = beginning[self._offset :].decode("utf-8", "ignore")
        self._separator = separator_of(first.partition("\n")[0], path.suffix)
        try:
            header = next(csv.reader(io.StringIO(first, newline=""), delimiter=self._separator), [])
        except csv.Error as error:
            raise DataError(f"{path}: the header, its first row, cannot be read ({error}).") from error
        self.names = tuple(name.strip() for name in header)
        _check_names(self.names, path)
        self.types = (arrow().string(),) * len(self.names)
        # A cell takes at least one byte, with its separator or line's end.
        self.most_rows = self._size // len(self.names)
        self._done = 0

    def share(self) -> float:
        return min(1.0, self._done / max(1, self._size))

    def _tables(self, wanted: tuple[str, ...]) -> Iterator[Any]:
        pa, ragged = arrow(), _Ragged(len(self.names))
        last: Any = None
        places, rows = [self.names.index(name) for name in wanted], -1  # the first is the header
        with self.path.open("rb") as file:
            file.seek(self._offset)
            self._done = 0
            try:
                for batch in self._reader(_Body(file, ended=self._ended), ragged):
                    # Arrow reads far ahead of what it has taken apart, so it is the cells that tell: their letters, and
                    # for each a separator, where memory has four bytes to say where it begins. Quotes are left out.
                    self._done += batch.nbytes - 3 * len(batch) * batch.num_columns
                    table = pa.Table.from_batches([batch.slice(1) if rows < 0 and len(batch) else batch])
                    rows, last = rows + len(batch), batch if len(batch) else last
                    yield table.select(places)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{self.path} cannot be read as a table: {str(error).splitlines()[0][:200]} (a row can have at "
                    f"most {_LARGEST_ROW >> 20} MiB)."
                ) from error
        ragged.check(self.path)
        self._done = self._size
        if self._quotes % 2 and rows > 0 and any("\n" in (cell[-1].as_py() or "") for cell in last.columns):
            raise DataError(f'{self.path}: row {rows} has a quotation mark (") that is opened and not closed.')

    def _reader(self, body: _Body, ragged: _Ragged) -> Any:
        from pyarrow import csv as arrow_csv

        width = len(self.names)
        return arrow_csv.open_csv(
            body,
            read_options=arrow_csv.ReadOptions(
                autogenerate_column_names=True, use_threads=False, block_size=_LARGEST_ROW
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=self._separator,
                newlines_in_values=True,
                invalid_row_handler=ragged,
                ignore_empty_lines=width > 1,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={f"f{i}": arrow().string() for i in range(width)}, strings_can_be_null=False
            ),
        )


class _Body(io.RawIOBase):
    """A text file from where it stands, whose last line ends even where it does not."""

    def __init__(self, file: io.BufferedReader, *, ended: bool) -> None:
        self._file = file
        self._missing = not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        # In the same read as what stands before it: a first block without a line's end would be none to Arrow.
        if self._missing and count < len(buffer):
            buffer[count : count + 1] = b"\n"
            self._missing, count = False, count + 1
        return count


class _Ragged:
    """Counts the rows with another number of cells than the header, and passes over them."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.count = 0
        self._first: list[str] = []

    def __call__(self, row: Any) -> str:
        if len(self._first) < _LISTED:
            self._first.append(f"row {row.number - 1} has {row.actual_columns}")
        self.count += 1
        return "skip"

    def check(self, path: Path) -> None:
        """Raises `DataError` where there are any."""
        if self.count:
            more = f"; and {self.count - _LISTED:,} more" if self.count > _LISTED else ""
            raise DataError(
                f"{path}: each row should have {self.width} cells as the header does, but {'; '.join(self._first)}"
                f'{more}. Put cells that hold the separator or a line break between quotation marks (").'
            )


def _scan(path: Path) -> tuple[int, bool, int]:
    """Looks at all bytes of a text file.

    Returns:
        How many quotation marks it has, whether its last line ends, and its size.

    Raises:
        DataError: It is empty, has a NUL character, or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = quotes = size = 0
    some, last, broken = False, b"", ""
    with path.open("rb") as file:
        while block := file.read(_SCANNED):
            nul = block.find(b"\0")
            if nul >= 0:
                line = lines + block.count(b"\n", 0, nul) + 1
                raise DataError(
                    f"{path} should be text, but line {line:,} has a NUL character. Save it as CSV in UTF-8."
                )
            broken = broken or _wrong_byte(decoder, block, lines)
            some = some or bool(block.strip(_MARK + b" \r\n\t"))
            lines, quotes, size, last = lines + block.count(b"\n"), quotes + block.count(b'"'), size + len(block), block
    if not some:
        raise DataError(f"{path} is empty; a table has a header and rows.")
    if broken := broken or _wrong_byte(decoder, b"", lines):
        raise DataError(f"{path} should be text in UTF-8, but {broken}, which is none. Save it again in UTF-8.")
    return quotes, last.endswith((b"\n", b"\r")), size


def _wrong_byte(decoder: codecs.IncrementalDecoder, block: bytes, lines: int) -> str:
    """Returns which byte of a block is no UTF-8, in words; the empty text where all are, or its last may become so."""
    try:
        decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        # What the decoder kept of the block before has no line's end in it.
        line = lines + error.object.count(b"\n", 0, error.start) + 1
        return f"line {line:,} has the byte 0x{error.object[error.start]:02x}"
    return ""


def _check_names(names: Sequence[str], path: Path) -> None:
    empty = [str(place + 1) for place, name in enumerate(names) if not name]
    if empty:
        raise DataError(f"{path}: the header has no name for column {', '.join(empty[:5])}. Name every column.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: the header has {', '.join(repr(n) for n in twice[:5])} more than once. Each column needs a name "
            "of its own."
        )
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{path} has {len(names):,} columns; a table here has at most {MAX_COLUMNS:,}.")


class _ParquetFile(TableFile):
    def __init__(self, path: Path) -> None:
        self.path = path
        with _as_parquet(path), contextlib.closing(self._open()) as file:
            schema, self.most_rows = file.schema_arrow, file.metadata.num_rows
        self.names = tuple(schema.names)
        _check_names(self.names, path)
        is_dictionary = arrow().types.is_dictionary
        self.types = tuple(one.value_type if is_dictionary(one) else one for one in schema.types)
        self._done = 0

    def share(self) -> float:
        return self._done / max(1, self.most_rows)

    def _open(self) -> Any:
        from pyarrow import parquet

        # Read ahead as little as can be: else a row group is held whole, and a file may be a single one.
        return parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=_PARQUET_BUFFER)

    def _tables(self, wanted: tuple[str, ...]) -> Iterator[Any]:
        pa, self._done = arrow(), 0
        rows = max(1, min(_BLOCK_ROWS, BLOCK_CELLS // len(self.names)))
        with _as_parquet(self.path), contextlib.closing(self._open()) as file:
            for batch in file.iter_batches(batch_size=rows, columns=list(wanted), use_threads=False):
                self._done += len(batch)
                # In the order asked for; a name may also be the beginning of another's.
                yield pa.Table.from_batches([batch]).select(list(wanted))


@contextlib.contextmanager
def _as_parquet(path: Path) -> Iterator[None]:
    try:
        yield
    except (arrow().ArrowException, ValueError) as error:
        raise DataError(f"{path} cannot be read as a Parquet file: {str(error).splitlines()[0][:200]}") from error


def _flat(column: Any) -> Any:
    """Returns a column as one array, its dictionary decoded."""
    pa = arrow()
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def check_types(file: TableFile, used: Iterable[str]) -> None:
    """Raises `DataError` for columns of a Parquet file that hold neither numbers, text nor dates."""
    types, type_of = arrow().types, dict(zip(file.names, file.types, strict=True))
    known = (
        types.is_boolean, types.is_integer, types.is_floating, types.is_decimal,
        types.is_string, types.is_large_string, types.is_date, types.is_timestamp,
        types.is_null,  # a column without any cell, of which no type is known
    )  # fmt: skip
    wrong = [f"{name} ({type_of[name]})" for name in used if not any(is_one(type_of[name]) for is_one in known)]
    if wrong:
        raise DataError(
            f"{file.path}: a column should hold numbers, text, Booleans or dates, but not {', '.join(wrong[:5])}. "
            f"Flatten them, or leave them out: --ignore {wrong[0].split(' (')[0]}."
        )
