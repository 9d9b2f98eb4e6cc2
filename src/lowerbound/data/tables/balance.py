r"""Rare classes seen more often.

A model that sees a class in one row of a hundred may do without it, so the rows of a class of n can be drawn in
proportion to \(\sqrt n\) instead of n: a class with a hundredth of the rows then makes up about a tenth. Rows of rare
classes are repeated, none is left out; which rows follows from the table alone, so the order of an epoch stays a
function of (seed, epoch).

**What p(x) then means.** It is the density of a table with those shares, \(\tilde p(x) \propto p(x) / \sqrt{p(c(x))}\):
what is generated has them too, and log p(x) on a test table with the natural shares is of that other distribution. What
is said of x *given* its class (filled cells where the class is there, `sample --where`) is not changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowerbound.data.source import Source


def balanced_index(source: Source, column: int) -> Tensor:
    """Returns the rows of a balanced source, int64 `[M]`, M >= N: all of them, those of rare classes more than once.

    Rows whose class is missing are there once.

    Args:
        source: The table.
        column: The place in x of the column of classes.

    Example:
        >>> from lowerbound.data import ArraySource, Support
        >>> classes = torch.tensor([[0.0]] * 16 + [[1.0]] * 4)
        >>> index = balanced_index(ArraySource(classes, support=Support.TABLE), 0)
        >>> len(index), index[16:].tolist()
        (24, [16, 16, 17, 17, 18, 18, 19, 19])
    """
    parts = torch.arange(len(source)).split(4096)
    classes = torch.cat([source.examples(part).x[:, column].cpu() for part in parts])
    there = ~torch.isnan(classes)
    found, place, counts = classes[there].unique(return_inverse=True, return_counts=True)
    repeats = torch.ones(len(classes), dtype=torch.int64)
    factor = (counts.max() / counts).sqrt() if len(found) else torch.ones(0)
    wanted = (counts * factor).round().long()
    # The k-th row of a class of n is there floor((k+1) w / n) - floor(k w / n) times: w in all, evenly spread.
    rank = torch.zeros_like(place)
    for one in range(len(found)):
        rank[place == one] = torch.arange(int(counts[one]))
    total, size = wanted[place], counts[place]
    repeats[there] = (rank + 1) * total // size - rank * total // size
    return torch.arange(len(classes)).repeat_interleave(repeats)
