r"""Rare classes seen more often.

A model that sees a class in one row of a hundred may do without it, so the rows of a class of n can be drawn in
proportion to \(\sqrt n\) instead of n: a class with a hundredth of the rows then makes up about a tenth. Rows of rare
classes are repeated, none is left out; which rows follows from the table alone, so the order of an epoch stays a
function of (seed, epoch).

**What the model then learns.** Where a row of class c is there \(r(c)\) times, it is the density of such a table,

$$\tilde p(x) = p(x)\,r(c(x))\,/\,\textstyle\sum_c \pi_c r(c)$$

with \(\pi_c\) the natural shares, and log p(x) on a test table is of that other distribution. What is said of x *given*
its class is not changed. So the table's own distribution is found again exactly: keep what is drawn from
\(\tilde p\) with probability \(1/r(c)\), which is at most 1. What is generated and what is filled in are of p in this
way (`lowerbound.heads.Columns.restored`); the repeats r are kept with the column (`Column.repeats`).

To weigh the repeated rows by \(1/r\) in training would keep log p(x) that of the table too. But that is the objective
of a training without repeats, with less noisy gradients: a class that the one may do without, so may the other.
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
    classes = _column(source, column)
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


def mean_repeats(source: Source, column: int, index: Tensor, num_levels: int) -> tuple[float, ...]:
    """Returns how many times an index has a row of each class, on average; 1 of classes that have no row.

    Args:
        source: The table.
        column: The place in x of the column of classes.
        index: Rows, as `balanced_index` gives them.
        num_levels: The number of classes.

    Example:
        >>> from lowerbound.data import ArraySource, Support
        >>> source = ArraySource(torch.tensor([[0.0]] * 16 + [[1.0]] * 4), support=Support.TABLE)
        >>> mean_repeats(source, 0, balanced_index(source, 0), 3)
        (1.0, 2.0, 1.0)
    """
    classes = _column(source, column)
    times = torch.bincount(index, minlength=len(classes)).double()
    there = ~torch.isnan(classes)
    place = classes[there].long()
    rows = torch.bincount(place, minlength=num_levels)
    shown = torch.bincount(place, times[there], minlength=num_levels)
    return tuple(torch.where(rows > 0, shown / rows.clamp_min(1), 1.0).tolist())


def _column(source: Source, column: int) -> Tensor:
    parts = torch.arange(len(source)).split(4096)
    return torch.cat([source.examples(part).x[:, column].cpu() for part in parts])
