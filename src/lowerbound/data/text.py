"""Files of text: a line is an example, and x is a row of token numbers.

| number | what it stands for |
|---|---|
| 0 | the end of the line, and all places after it |
| 1 | a symbol that is not in the vocabulary |
| 2, 3, ... | the symbols, the most frequent first |

A symbol is a byte, a character or a word. One line is one row and one row is one line: whatever follows the first 0 is
0 as well, and says nothing more. So the length of a line is part of x, and is modelled with it. A line that is longer
than a row stands for all lines that begin like it: its row has no 0, because its end was not seen.

The vocabulary and the length of a row are decided on the whole file, the test lines included: that an alphabet is
closed is taken for granted, as in published results on characters.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lowerbound.data.reading import Reading, Report, shuffled_split
from lowerbound.data.source import ArraySource, Source, Support
from lowerbound.errors import DataError, UsageError

END, UNKNOWN = 0, 1
_FIRST_SYMBOL = 2
# Bytes of a file that are looked at together, cut at the end of a line.
_BLOCK = 1 << 24
_FEWEST = 3
_OFFENDERS = 5
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
# Token numbers are kept as int16 where they are no bytes.
_MOST_TOKENS = 1 << 15


class Unit(enum.StrEnum):
    """What a token is."""

    BYTES = "bytes"
    CHARACTERS = "characters"
    WORDS = "words"

    @property
    def piece(self) -> str:
        """What is counted: a word leaves out the white space, so of words one counts tokens."""
        return "token" if self is Unit.WORDS else self.value.removesuffix("s")


@dataclass(frozen=True)
class Text(Reading):
    r"""Lines of text.

    A line ends in \n, \r\n or \r, and in nothing else. A line without a symbol is no example and is passed over. The
    file is UTF-8, with or without a byte order mark, and has no NUL, unless bytes are what is asked for: then it may be
    anything. Words are what stands between white space; how much white space stood there is not kept.

    Attributes:
        unit: What a token is.
        most: Symbols in the vocabulary, at most, the most frequent ones (of equally frequent ones the first in order);
            the others are read as unknown.
        longest: Tokens in a row, at most.
        symbols: The vocabulary, most frequent first: a string of characters (bytes as Latin-1), or words with spaces
            between them. None until it is fitted.
        length: T, tokens in a row: enough for the longest line and its end, if `longest` allows. None until fitted.

    Raises:
        UsageError: `most` or `longest` is below 1, or `most` above 32,766.

    Example:
        >>> reading = Text(symbols="etaoins", length=6)
        >>> reading.rows(["tea", "stone", "to sit"])
        array([[3, 2, 4, 0, 0, 0],
               [8, 3, 5, 7, 2, 0],
               [3, 5, 1, 8, 6, 3]], dtype=uint8)
        >>> reading.lines(torch.tensor([[3, 2, 4, 0, 0, 0], [3, 5, 1, 8, 6, 3]]))
        ['tea', 'to\ufffdsit']
    """

    unit: Unit = Unit.CHARACTERS
    most: int = 10_000
    longest: int = 256
    symbols: str | None = None
    length: int | None = None

    exports = (".txt",)

    def __post_init__(self) -> None:
        if not 1 <= self.most <= _MOST_TOKENS - _FIRST_SYMBOL or self.longest < 1:
            raise UsageError(
                f"A vocabulary has 1 to {_MOST_TOKENS - _FIRST_SYMBOL:,} symbols and a row at least 1 token; got "
                f"{self.most:,} symbols and {self.longest:,} tokens."
            )

    @property
    def vocabulary(self) -> Sequence[str]:
        """The symbols in order; the first has number 2."""
        symbols = self.symbols or ""
        return symbols.split(" ") if self.unit is Unit.WORDS and symbols else symbols

    @property
    def num_tokens(self) -> int:
        """How many numbers there are: the symbols, the end and the unknown."""
        return len(self.vocabulary) + _FIRST_SYMBOL

    def fitted(self, path: Path, report: Report | None = None) -> Self:
        if self.symbols is not None and self.length is not None:
            return self
        counts: Counter[str] = Counter()
        longest = 0
        for lines in self._read(path):
            counts.update(chain.from_iterable(lines))
            longest = max(longest, *map(len, lines))
        ordered = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))[: self.most]
        joined = (" " if self.unit is Unit.WORDS else "").join(ordered)
        return replace(
            self,
            symbols=joined if self.symbols is None else self.symbols,
            length=min(longest + 1, self.longest) if self.length is None else self.length,
        )

    def open(self, path: Path) -> tuple[Source, Source]:
        whole = self.whole(path)
        if len(whole) < _FEWEST:
            raise DataError(
                f"{path} should have at least {_FEWEST} lines of text, to train, select and test on, but has "
                f"{len(whole)}. Give a file with more lines, each of which is an example."
            )
        return shuffled_split(whole)

    def whole(self, path: Path) -> Source:
        rows = np.concatenate([self.rows(lines) for lines in self._read(path)])
        if (rows <= UNKNOWN).all():
            raise DataError(
                f"{path} has none of the {len(self.vocabulary):,} {self.unit.value} that this run knows, such as "
                f"{', '.join(map(repr, self.vocabulary[:_OFFENDERS]))}. Give text like that of its training."
            )
        whole = ArraySource(torch.from_numpy(rows), support=Support.TOKENS, scale=1.0, name=str(path))
        whole.notes = self._notes(rows)
        return whole

    def write(self, x: Tensor, path: Path) -> None:
        r"""Writes examples, `[N, T]`, a line each.

        An unknown symbol becomes the replacement character (U+FFFD), `<unk>` where symbols are words, and `?` where
        they are bytes; a line that was cut ends where the row does.
        """
        text = "".join(f"{line}\n" for line in self.lines(x))
        path.write_bytes(text.encode("latin-1" if self.unit is Unit.BYTES else "utf-8"))

    def lines(self, x: Tensor) -> list[str]:
        """Returns examples, `[N, T]`, as strings; bytes as Latin-1."""
        unknown = {Unit.BYTES: "?", Unit.CHARACTERS: "\ufffd", Unit.WORDS: "<unk>"}[self.unit]
        names = ["", unknown, *self.vocabulary]
        rows = x.long()
        lengths = (rows == END).cumsum(1).eq(0).sum(1).tolist()
        between = " " if self.unit is Unit.WORDS else ""
        return [
            between.join(names[token] for token in row[:length])
            for row, length in zip(rows.tolist(), lengths, strict=True)
        ]

    def rows(self, lines: Sequence[Sequence[str]]) -> np.ndarray:
        """Returns lines, each a string or a list of words, as rows of token numbers, `[N, T]`, as small as they go."""
        assert self.length is not None
        numbers = _Numbers(zip(self.vocabulary, range(_FIRST_SYMBOL, self.num_tokens), strict=True))
        kept = [line[: self.length] for line in lines]
        lengths = np.fromiter(map(len, kept), np.int64, len(kept))
        flat = np.fromiter(map(numbers.__getitem__, chain.from_iterable(kept)), np.int64, lengths.sum())
        rows = np.zeros((len(kept), self.length), np.uint8 if self.num_tokens <= 256 else np.int16)
        rows[np.arange(self.length) < lengths[:, None]] = flat
        return rows

    def _notes(self, rows: np.ndarray) -> tuple[str, ...]:
        units, said = self.unit.value, []
        if cut := int((rows[:, -1] != END).sum()):
            said.append(
                f"{cut:,} of the file's {len(rows):,} lines have {self.length} {units} or more and are cut to so many: "
                "their log p is that of all lines that begin so"
            )
        if unknown := int((rows == UNKNOWN).sum()):
            tokens, known = int((rows != END).sum()), len(self.vocabulary)
            said.append(
                f"{unknown:,} of the file's {tokens:,} {units} are not in the vocabulary of {known:,} and were read as "
                "unknown: log p is of the text with these left open"
            )
        return tuple(said)

    def _read(self, path: Path) -> Iterator[Sequence[Sequence[str]]]:
        """Yields the lines that have a symbol, many at a time, each as a sequence of its symbols."""
        some = False
        for number, block in _blocks(path):
            text = block.decode("latin-1") if self.unit is Unit.BYTES else _decoded(block, path, number)
            split = text.split("\n")
            lines = [line.split() for line in split] if self.unit is Unit.WORDS else split
            if found := [line for line in lines if line]:
                some = True
                yield found
        if not some:
            raise DataError(f"{path} should have a line of text for each example, but has none. Is it the right file?")


class _Numbers(dict[str, int]):
    def __missing__(self, symbol: str) -> int:
        return UNKNOWN


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    r"""Yields the number of the first line, and whole lines that end in \n only."""
    try:
        with path.open("rb") as file:
            number, first = 1, True
            while block := file.read(_BLOCK):
                block += file.readline()
                block = (block.removeprefix(_UTF8_MARK) if first else block).replace(b"\r\n", b"\n")
                block = block.replace(b"\r", b"\n")
                yield number, block
                number, first = number + block.count(b"\n"), False
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as text ({error.strerror}). Check the path; it is taken from {Path.cwd()}."
        ) from error


def _decoded(block: bytes, path: Path, number: int) -> str:
    if number == 1 and block.startswith(_UTF16):
        raise DataError(f"{path} should be UTF-8, but begins as UTF-16 does. Convert it, with iconv or an editor.")
    if b"\0" in block:
        raise _unreadable(path, "has a NUL byte", [n for n, line in _numbered(block, number) if b"\0" in line])
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x}"
        lines = [n for n, line in _numbered(block, number) if not _is_utf8(line)]
        raise _unreadable(path, f"is no UTF-8 ({byte} first)", lines) from error


def _numbered(block: bytes, number: int) -> Iterator[tuple[int, bytes]]:
    return enumerate(block.split(b"\n"), number)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unreadable(path: Path, what: str, lines: list[int]) -> DataError:
    listed = ", ".join(f"{n:,}" for n in lines[:_OFFENDERS])
    more = "" if len(lines) <= _OFFENDERS else " and more"
    return DataError(
        f"{path} should be text in UTF-8, but {what} in line {listed}{more}. Convert the file to UTF-8, or, if it is "
        "no text, read it as bytes (--unit bytes)."
    )
