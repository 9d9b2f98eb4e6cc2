"""How files of one kind become x.

A reading is a small part that can be written down (`lowerbound.spec`). `fitted` decides what was left open by looking
at a file (the types of its columns, its alphabet, the size of its pictures), and from then on every file is read the
same way: a run keeps the fitted reading, so that a new file means the same as the one it was trained on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from lowerbound.data.order import generator
from lowerbound.data.source import Source
from lowerbound.errors import UsageError

# A file without splits of its own is split 80/10/10 in an order drawn with this seed.
_FILE_SEED = 1


class Reading(ABC):
    """How files of one kind become x, and x a file again.

    Attributes:
        exports: The suffixes of the files that `write` makes; pictures and arrays need no reading to be written.
    """

    exports: ClassVar[tuple[str, ...]] = ()

    def fitted(self, path: Path) -> Self:
        """Returns this reading with everything decided that it left to the file; itself where nothing was.

        Raises:
            DataError: The file cannot be had or read.
        """
        return self

    @abstractmethod
    def open(self, path: Path) -> tuple[Source, Source]:
        """Reads a file: the examples to learn from (the last of them for validation) and those to test on.

        Raises:
            DataError: The file cannot be had or read, or does not mean what this reading was fitted to.
        """

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


def shuffled_split(whole: Source) -> tuple[Source, Source]:
    """Splits examples that have no split of their own: in an order of its own, the last tenth to test on."""
    shuffled = whole.take(torch.randperm(len(whole), generator=generator(_FILE_SEED)))
    cut = len(whole) - max(1, len(whole) // 10)
    return shuffled.slice(0, cut), shuffled.slice(cut, len(whole))
