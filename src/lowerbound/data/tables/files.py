"""CSV, TSV and Parquet files as named Arrow arrays, and back.

A text file must be UTF-8 (a byte-order mark at its start is left out), without NUL characters. Its first row names the
columns; a name stands there once and is not empty. Every row has as many cells as that. The separator is the one of
comma, semicolon and tab that the header has most of. Empty lines are no rows, but in a table of one column, where they
are missing cells.

Where a file cannot be read that way, the message names it, the row (counted from 1, without the header) and the column.

**Text that a spreadsheet would run.** A cell that begins with =, +, -, @, a tab or a carriage return is a formula to a
spreadsheet. Where this package writes such text (numbers and dates are never touched), it puts ' before it, as the
OWASP's page on CSV injection says. Cells that were copied from a file are as they were.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowerbound.data.tables.cells import arrow
from lowerbound.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
MAX_COLUMNS = 1000
_HEADER = 1 << 22
_LARGEST_ROW = 1 << 24
_RUNS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Raw:
    """A file as it is.

    Attributes:
        names: The columns' names.
        arrays: Their cells, an Arrow array each: text, of a text file.
    """

    names: tuple[str, ...]
    arrays: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, name: str) -> Any:
        return self.arrays[self.names.index(name)]


def read(path: Path) -> Raw:
    """Reads a file by its suffix.

    Raises:
        DataError: It is not there, or no table.
        ResourceError: pyarrow is not installed.
    """
    arrow()
    try:
        raw = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
    if len(raw) == 0:
        raise DataError(f"{path} has the header of a table but no rows. Give it rows.")
    return raw


def separator_of(header: str, suffix: str) -> str:
    r"""Returns the one of , ; and tab that a header has most of outside quotation marks.

    Example:
        >>> separator_of('a;"b, and c";d', ".csv"), separator_of("only", ".tsv")
        (';', '\t')
    """
    outside = "".join(header.split('"')[::2])
    default = SEPARATORS.get(suffix.lower(), ",")
    return max((default, ",", ";", "\t"), key=lambda mark: (outside.count(mark), mark == default))


def _read_text(path: Path) -> Raw:
    content = path.read_bytes()
    _check_text(content, path)
    body = content.removeprefix(b"\xef\xbb\xbf")
    first = body[:_HEADER].decode("utf-8", "ignore").lstrip("\r\n")
    separator = separator_of(first.partition("\n")[0], path.suffix)
    try:
        header = next(csv.reader(io.StringIO(first, newline=""), delimiter=separator), [])
    except csv.Error as error:
        raise DataError(f"{path}: the header, its first row, cannot be read ({error}).") from error
    names = tuple(name.strip() for name in header)
    _check_names(names, path)
    return Raw(names, _parsed(body, len(names), separator, path))


def _check_text(content: bytes, path: Path) -> None:
    if not content.strip(b"\xef\xbb\xbf \r\n\t"):
        raise DataError(f"{path} is empty; a table has a header and rows.")
    nul = content.find(b"\0")
    if nul >= 0:
        line = content.count(b"\n", 0, nul) + 1
        raise DataError(f"{path} should be text, but line {line:,} has a NUL character. Save it as CSV in UTF-8.")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} should be text in UTF-8, but line {line:,} has the byte 0x{content[error.start]:02x}, which is "
            "none. Save it again in UTF-8."
        ) from error


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


def _parsed(body: bytes, width: int, separator: str, path: Path) -> tuple[Any, ...]:
    from pyarrow import csv as arrow_csv

    pa = arrow()
    ragged: list[tuple[int, int]] = []

    def handle(row: Any) -> str:
        ragged.append((row.number - 1, row.actual_columns))
        return "skip"

    body = body if body.endswith((b"\n", b"\r")) else body + b"\n"
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(body),
            read_options=arrow_csv.ReadOptions(
                autogenerate_column_names=True, use_threads=False, block_size=max(_LARGEST_ROW, 1)
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=handle, ignore_empty_lines=width > 1
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={f"f{i}": pa.string() for i in range(width)}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} cannot be read as a table: {str(error).splitlines()[0][:200]} (a row can have at most "
            f"{_LARGEST_ROW >> 20} MiB)."
        ) from error
    if ragged:
        shown = "; ".join(f"row {number} has {found}" for number, found in ragged[:5])
        more = f"; and {len(ragged) - 5:,} more" if len(ragged) > 5 else ""
        raise DataError(
            f"{path}: each row should have {width} cells as the header does, but {shown}{more}. Put cells that hold "
            'the separator or a line break between quotation marks (").'
        )
    arrays = tuple(column.combine_chunks().slice(1) for column in table.columns)
    if body.count(b'"') % 2 and any("\n" in (a[-1].as_py() or "") for a in arrays if len(a)):
        raise DataError(f'{path}: row {len(arrays[0])} has a quotation mark (") that is opened and not closed.')
    return arrays


def _read_parquet(path: Path) -> Raw:
    from pyarrow import parquet

    pa = arrow()
    try:
        table = parquet.read_table(path, partitioning=None)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{path} cannot be read as a Parquet file: {str(error).splitlines()[0][:200]}") from error
    _check_names(table.column_names, path)
    return Raw(tuple(table.column_names), tuple(_flat(column) for column in table.columns))


def _flat(column: Any) -> Any:
    """Returns a column as one array, its dictionary decoded."""
    pa = arrow()
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def check_types(raw: Raw, used: Iterable[str], path: Path) -> None:
    """Raises `DataError` for columns of a Parquet file that hold neither numbers, text nor dates."""
    types = arrow().types
    known = (
        types.is_boolean, types.is_integer, types.is_floating, types.is_decimal,
        types.is_string, types.is_large_string, types.is_date, types.is_timestamp,
    )  # fmt: skip
    wrong = [f"{name} ({raw[name].type})" for name in used if not any(is_one(raw[name].type) for is_one in known)]
    if wrong:
        raise DataError(
            f"{path}: a column should hold numbers, text, Booleans or dates, but not {', '.join(wrong[:5])}. Flatten "
            f"them, or leave them out: --ignore {wrong[0].split(' (')[0]}."
        )


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


def text_of(names: Sequence[str], columns: Sequence[Sequence[str]], separator: str) -> bytes:
    """Returns the bytes of a text file: its header and its rows, in UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def parquet_of(names: Sequence[str], arrays: Sequence[Any]) -> bytes:
    """Returns the bytes of a Parquet file."""
    from pyarrow import parquet

    content = io.BytesIO()
    parquet.write_table(arrow().table(list(arrays), names=list(names)), content)
    return content.getvalue()
