"""How files of one kind become x.

A reading is a small part that can be written down (`lowerbound.spec`). `fitted` decides what was left open by looking
at a file (the types of its columns, its alphabet, the size of its pictures), and from then on every file is read the
same way: a run keeps the fitted reading, so that a new file means the same as the one it was trained on.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lowerbound.data.order import generator
from lowerbound.data.source import Source
from lowerbound.errors import UsageError

# Told how much of a long job is done, and of how much.
Report = Callable[[int, int], None]
# A file without splits of its own is split 80/10/10 in an order drawn with this seed.
_FILE_SEED = 1


class Reading(ABC):
    """How files of one kind become x, and x a file again.

    Attributes:
        exports: The suffixes of the files that `write` makes; pictures and arrays need no reading to be written.
    """

    exports: ClassVar[tuple[str, ...]] = ()

    def told(self, options: Mapping[str, Any]) -> Self:
        """Returns this reading with some of its fields as a user wants them.

        Raises:
            UsageError: Files of this kind are read without such an option, or it cannot be that.
        """
        fields: list[str] = [field.name for field in dataclasses.fields(self)] if dataclasses.is_dataclass(self) else []
        for name in options:
            if name not in fields:
                kind = type(self).__name__
                raise UsageError(f"The option {name} says nothing about data that are read as {kind}; leave it out.")
        return dataclasses.replace(self, **options) if options else self  # type: ignore[type-var]

    def fitted(self, path: Path, report: Report | None = None) -> Self:
        """Returns this reading with everything decided that it left to the file; itself where nothing was.

        Args:
            path: The file.
            report: Told how far it is, where that takes long.

        Raises:
            DataError: The file cannot be had or read.
        """
        return self

    def prepare(self, path: Path, report: Report | None = None) -> None:  # noqa: B027  most need no time
        """Does what takes long before `open` can be quick, and tells how far it is.

        Raises:
            DataError: The file cannot be had or read.
            ResourceError: The disk is full or refuses.
        """

    @abstractmethod
    def open(self, path: Path) -> tuple[Source, Source]:
        """Reads a file: the examples to learn from (the last of them for validation) and those to test on.

        Raises:
            DataError: The file cannot be had or read, or does not mean what this reading was fitted to.
        """

    def has_splits(self, path: Path) -> bool:
        """Returns whether a file tells itself which of its examples are to be tested on.

        Raises:
            DataError: The file cannot be had or read.
        """
        return False

    def lines(self, x: Tensor) -> list[str]:
        """Returns examples, `[N, *event]`, as people read them, a line each; nothing where there is no such thing."""
        return []

    def class_name(self, label: int) -> str:
        """Returns what a label is called."""
        return str(label)

    def whole(self, path: Path) -> Source:
        """Reads all examples of a file in the order in which they stand there.

        Raises:
            DataError: The file cannot be had or read, or does not mean what this reading was fitted to.
            UsageError: Files of this kind are only read in splits.
        """
        raise UsageError(f"All of {path} in its own order cannot be had; use --split train, valid or test.")

    def write(self, x: Tensor, path: Path) -> None:
        """Writes examples, `[N, *event]`, as a file of this kind.

        Raises:
            UsageError: There are no such files.
        """
        raise UsageError(f"These examples cannot be written as {path.suffix}; use .npz.")


def shuffled(whole: Source) -> Source:
    """Returns examples in an order of their own, so that the last of them are of all kinds."""
    return whole.take(torch.randperm(len(whole), generator=generator(_FILE_SEED)))


def shuffled_split(whole: Source) -> tuple[Source, Source]:
    """Splits examples that have no split of their own: in an order of its own, the last tenth to test on."""
    mixed = shuffled(whole)
    cut = len(whole) - max(1, len(whole) // 10)
    return mixed.slice(0, cut), mixed.slice(cut, len(whole))
