"""From a source's name or path to its three splits.

`train` is learned from, `valid` selects (early stopping, hyperparameters), and `test` is looked at once, at the end.
Validation is the tail of the training examples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowerbound.data.arrays import Arrays
from lowerbound.data.binarise import Binarise
from lowerbound.data.dequantise import Dequantised, fixed_noise
from lowerbound.data.named import NAMED
from lowerbound.data.pictures import Pictures
from lowerbound.data.reading import Reading, Report
from lowerbound.data.source import Source, Support
from lowerbound.data.tables import Table, balanced_index, mean_repeats
from lowerbound.data.text import Text
from lowerbound.errors import DataError, UsageError, did_you_mean

SPLITS = ("train", "valid", "test")
_READINGS: dict[str, type[Reading]] = {
    ".npy": Arrays,
    ".npz": Arrays,
    ".txt": Text,
    **dict.fromkeys(Table.exports, Table),
}
# As messages have it. What has lines is not known by its suffix, so any file may be read as text.
_KINDS: dict[type[Reading], str] = {
    Arrays: "NumPy files, .npy or .npz",
    Table: "tables, .csv, .tsv or .parquet files",
    Pictures: "folders of pictures",
    Text: "files of text",
}
_NAMES = f"{', '.join(list(_READINGS)[:-1])} or {list(_READINGS)[-1]}"


@dataclass(frozen=True)
class View:
    """How a source is looked at: what was asked of its splits, so that it can be asked again.

    Attributes:
        num_valid: Validation examples asked for; None for the source's own number.
        joined: Whether validation was given back to training.
        binarise: How grey values become binary.
        seed: Seeds the fixed draws of a binarisation or dequantisation.
        dequantise: Whether 8-bit levels are spread over [0, 1].
        reading: How the file was read, so that other files are read the same way; None of a named source.
        balance: The column of a table whose rare classes are repeated in training; none where it is empty.
    """

    num_valid: int | None = None
    joined: bool = False
    binarise: Binarise = Binarise.NONE
    seed: int = 0
    dequantise: bool = False
    reading: Reading | None = None
    balance: str = ""

    def of(self, source: str, data_dir: Path | None = None, on_progress: Report | None = None) -> Data:
        """Opens a source and looks at it this way.

        Raises:
            DataError: The source cannot be had, or is of another kind than the one that was looked at first.
        """
        self._check_kind(source)
        data = open_data(
            source, data_dir=data_dir, num_valid=self.num_valid, reading=self.reading, on_progress=on_progress
        )
        if self.joined:
            data = data.joined()
        if self.balance:
            data = data.balanced(self.balance)
        data = data.binarised(self.binarise, self.seed)
        return data.dequantised(self.seed) if self.dequantise else data

    def whole(self, source: str, data_dir: Path | None = None, on_progress: Report | None = None) -> Source:
        """Returns all examples of a source in the order in which they stand there, looked at this way.

        What is drawn of each, grey values made binary and levels spread, is drawn once, apart from the splits' draws.

        Raises:
            DataError: The source is unknown, broken or cannot be had, or of another kind than the one that was looked
                at first.
        """
        self._check_kind(source)
        if source in NAMED:
            learned, test = NAMED[source].load(data_dir)
            whole = learned.joined(test)
        else:
            whole = _prepared(source, self.reading, None, on_progress).whole(Path(source))
        seed = self.seed + len(SPLITS)
        if self.binarise is not Binarise.NONE:
            whole = self.binarise.for_judging(whole, seed)
        return fixed_noise(whole, seed) if self.dequantise else whole

    def has_splits(self, source: str) -> bool:
        """Returns whether a source tells itself which of its examples are to be tested on.

        Raises:
            DataError: The source is unknown, broken or cannot be had, or of another kind than the one that was looked
                at first.
        """
        self._check_kind(source)
        return source in NAMED or (self.reading or reading_of(source)).has_splits(Path(source))

    def _check_kind(self, source: str) -> None:
        kind = type(self.reading)
        if source in NAMED or kind not in _KINDS or not os.path.exists(source):
            return
        found = Pictures if os.path.isdir(source) else _READINGS.get(Path(source).suffix.lower())
        if Pictures in (kind, found) and kind is not found:
            what = "a folder" if found is Pictures else "a file"
        elif kind is not Text and found is not None and kind is not found:
            what = f"a {Path(source).suffix.lower()} file"
        else:
            return
        raise DataError(
            f"{source} is {what}, but this run learned from {_KINDS[kind]}, so it reads nothing else. Give --data of "
            "that kind, or train a run on what you have."
        )


@dataclass(frozen=True)
class Data:
    """A data set in its three splits.

    Attributes:
        name: The source's name, or its path.
        train: What is learned from.
        valid: What selects; None when every training example is learned from.
        test: What is measured on, in the end.
        view: How the splits were made from the source.

    Raises:
        UsageError: A split is empty.
    """

    name: str
    train: Source
    valid: Source | None
    test: Source
    view: View = View()

    def __post_init__(self) -> None:
        for name in SPLITS:
            source: Source | None = getattr(self, name)
            if source is not None and len(source) == 0:
                raise UsageError(
                    f"Each split of the data needs at least one example, but {name} of {self.name!r} is empty. Give it "
                    "some, or, to learn from all training examples, valid=None."
                )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        return self.train.event_shape

    @property
    def support(self) -> Support:
        """The values that x can take."""
        return self.train.support

    def split(self, name: str) -> Source:
        """Returns the split called `name`.

        Raises:
            UsageError: There is no such split.
        """
        if name not in SPLITS:
            raise UsageError(f"There is no split {name!r}. {did_you_mean(name, SPLITS)}")
        source: Source | None = getattr(self, name)
        if source is None:
            raise UsageError(
                f"This run learned from all training examples, so there is no {name} split to look at; "
                "use --split test or --split train."
            )
        return source

    def joined(self) -> Data:
        """Returns the data with validation given back to training: nothing is left to select on."""
        view = replace(self.view, joined=True)
        if self.valid is None:
            return replace(self, view=view)
        if self.view.dequantise or self.view.binarise is not Binarise.NONE:
            raise UsageError("Join the splits before they are binarised or dequantised.")
        return replace(self, train=self.train.joined(self.valid), valid=None, view=view)

    def balanced(self, column: str) -> Data:
        """Returns the data of a table with the rows of rare classes repeated in training (`lowerbound.data.tables`).

        Args:
            column: The name of a column of labels.

        Raises:
            UsageError: There is no such column of labels.
        """
        table = self.view.reading if isinstance(self.view.reading, Table) else Table()
        named = {c.name: place for place, c in enumerate(table.columns) if c.kind.has_levels}
        if column not in named or self.view.balance:
            raise UsageError(
                f"A table is balanced once, by a column of labels; got {column!r}. {did_you_mean(column, named)}"
            )
        place = named[column]
        index = balanced_index(self.train, place)
        repeats = mean_repeats(self.train, place, index, table.columns[place].num_levels)
        reading = table.with_repeats(column, repeats)
        return replace(self, train=self.train.take(index), view=replace(self.view, reading=reading, balance=column))

    def binarised(self, how: Binarise, seed: int = 0) -> Data:
        """Returns the data binarised: for training as asked, for validation and test by one fixed draw.

        Args:
            how: `NONE` returns the data unchanged.
            seed: Seeds the fixed draws, each split with its own.

        Raises:
            UsageError: The values are no probabilities, or were dequantised.
        """
        if how is Binarise.NONE:
            return self
        if self.view.binarise is not Binarise.NONE:
            raise UsageError(f"The data are binarised already ({self.view.binarise.value}); open them again.")
        if self.view.dequantise:
            raise UsageError(
                "These data were dequantised, and what is binarised after that is noise in part. Binarise the data as "
                "they were opened, or use binarise none."
            )
        return replace(
            self,
            view=replace(self.view, binarise=how, seed=seed),
            train=how.for_training(self.train, seed),
            valid=None if self.valid is None else how.for_judging(self.valid, seed + 1),
            test=how.for_judging(self.test, seed + 2),
        )

    def dequantised(self, seed: int = 0) -> Data:
        """Returns 8-bit data spread over [0, 1]: afresh at each look in training, by one fixed draw to judge on.

        Args:
            seed: Seeds the fixed draws, each split with its own.

        Raises:
            UsageError: The values are not 8-bit levels.
        """
        return replace(
            self,
            view=replace(self.view, dequantise=True, seed=seed),
            train=Dequantised(self.train),
            valid=None if self.valid is None else fixed_noise(self.valid, seed + 1),
            test=fixed_noise(self.test, seed + 2),
        )


def open_data(
    source: str,
    *,
    data_dir: Path | None = None,
    num_valid: int | None = None,
    reading: Reading | None = None,
    options: Mapping[str, Any] | None = None,
    on_progress: Report | None = None,
) -> Data:
    """Opens a data set by name or path.

    What the values of a file can be is told by the file (`lowerbound.data.arrays`). Where that is not what they are,
    build the source by hand: `ArraySource(values, support=...)`.

    Args:
        source: A name (`mnist`, `fashion-mnist`, `mnist-5k`, `digits`, `camera`), or the path of a `.npy`, `.npz`,
            `.csv`, `.tsv`, `.parquet` or `.txt` file or of a folder of pictures.
        data_dir: A folder in which named data sets are looked for first.
        num_valid: How many of the last training examples are for validation; by default 5,000 of MNIST's 60,000, and
            about a tenth elsewhere.
        reading: How a file is read; by its suffix, and what it holds, unless given. A named source needs none.
        options: Fields of the reading that are not to be decided by what the file holds, `{"size": 32}` for one.
        on_progress: Told how much of a long preparation is done, and of how much; from the beginning again where a
            table is looked at twice, to find its columns and to pack it.

    Raises:
        DataError: The source is unknown, broken or cannot be had.
        UsageError: `num_valid` leaves nothing to train on, or the source is read without such an option.
        ResourceError: The disk is full or refuses.
    """
    learned: Source
    test: Source
    if source in NAMED:
        if options:
            said = ", ".join(options)
            raise UsageError(f"{source} is as it is: options for how files are read ({said}) mean nothing to it.")
        named = NAMED[source]
        learned, test = named.load(data_dir)
        default, reading = named.valid, None
    else:
        reading = _prepared(source, reading, options, on_progress)
        learned, test = reading.open(Path(source))
        default = min(max(1, len(learned) // 9), len(learned) - 1)
    held_out = default if num_valid is None else num_valid
    if not 0 <= held_out < len(learned):
        raise UsageError(
            f"Validation takes the last of {len(learned):,} training examples, so it can have 0 to "
            f"{len(learned) - 1:,}; got {held_out:,}."
        )
    cut = len(learned) - held_out
    valid = learned.slice(cut, len(learned)) if held_out else None
    name = source if source in NAMED else str(Path(source).resolve())
    return Data(name, learned.slice(0, cut), valid, test, View(num_valid, reading=reading))


def _prepared(
    source: str, reading: Reading | None, options: Mapping[str, Any] | None, on_progress: Report | None
) -> Reading:
    """Returns how a file is read, with nothing left open and nothing left to do that takes long."""
    asked = (reading_of(source) if reading is None else reading).told(options or {})
    found = asked.fitted(Path(source), on_progress)
    found.prepare(Path(source), on_progress)
    return found


def reading_of(source: str) -> Reading:
    """Returns how a path is read unless told otherwise, by its suffix.

    Raises:
        DataError: Nothing here reads such files, or there is no such file.
    """
    path = Path(source)
    if os.path.isdir(source):  # unlike Path.is_dir, it raises nothing for a name that is too long, and "" is none
        return Pictures()
    kind = path.suffix.lower()
    # A file without a suffix is text, as /usr/share/dict/words is.
    if kind not in _READINGS and (kind or not os.path.isfile(path)):
        raise DataError(
            f"There is no data source {source!r}: it is neither a known name nor the path of a {_NAMES} file or of a "
            f"folder of pictures. {did_you_mean(source, NAMED)}"
        )
    if not os.path.isfile(path):
        raise DataError(f"There is no file {source}. Check the path; it is taken from {Path.cwd()}.")
    return _READINGS.get(kind, Text)()
