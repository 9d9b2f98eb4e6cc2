"""Rows of a table, some of whose cells are missing, as numbers that a network can take."""

from __future__ import annotations

import torch
from torch import Tensor

from lowerbound.data import Column, Kind
from lowerbound.errors import UsageError
from lowerbound.nn.base import Network

# Cells further from the mean than so many standard deviations are taken as that far: nothing is known of them.
_FARTHEST = 30.0


class CellInput(Network):
    """A network before which a table's cells are spread out: `[B, D]`, NaN where a cell is missing.

    A number becomes itself, standardised (a count its logarithm), and 0 where it is missing; a label becomes a one-hot
    vector, all 0 where it is missing; and beside them stands for each column whether its cell is there.

    **Hiding.** A network that has seen whole rows alone knows nothing of rows with holes. In training each row is, with
    probability `hide`, shown with holes: a share of its cells, drawn anew from 0 to 1, is taken away, from this network
    alone. The bound on log p(x) still is one, because q(z|x) may be anything.

    Args:
        columns: What x is made of.
        network: It takes `(width_of(columns),)`.
        hide: The share of rows in training of which cells are hidden, from 0 to 1.

    Raises:
        UsageError: The network takes another width, there is no column, or `hide` is out of range.

    Example:
        >>> from lowerbound.nn import MLP
        >>> columns = (Column("age", Kind.COUNT), Column("size", Kind.ORDINAL, levels=("s", "m", "l")))
        >>> front = CellInput(columns, MLP((CellInput.width_of(columns),), (8,)))
        >>> front.spread(torch.tensor([[0.0, float("nan")], [float("nan"), 2.0]]))
        tensor([[0., 0., 0., 0., 1., 0.],
                [0., 0., 0., 1., 0., 1.]])
    """

    def __init__(self, columns: tuple[Column, ...], network: Network, hide: float = 0.0) -> None:
        super().__init__()
        width = self.width_of(columns)
        if not columns or network.in_shape != (width,):
            raise UsageError(
                f"The network behind {len(columns)} columns takes inputs of shape ({width},); this one takes "
                f"{network.in_shape}. Build it with in_shape=(CellInput.width_of(columns),)."
            )
        if not 0 <= hide <= 1:
            raise UsageError(f"The share of rows of which cells are hidden is from 0 to 1; got hide={hide}.")
        self.columns, self.network, self.hide = tuple(columns), network, hide
        self.in_shape, self.out_shape = (len(columns),), network.out_shape
        places = [(d, level) for d, c in enumerate(columns) for level in (range(c.num_levels) if c.levels else (-1,))]
        counts = [(c.loc, c.scale) if c.kind is Kind.COUNT else (0.0, 1.0) for c in columns]
        self.register_buffer("column", torch.tensor([d for d, _ in places]))
        self.register_buffer("level", torch.tensor([float(level) for _, level in places]))
        self.register_buffer("is_count", torch.tensor([c.kind is Kind.COUNT for c in columns]))
        self.register_buffer("count_unit", torch.tensor(counts).T.contiguous())

    column: Tensor
    level: Tensor
    is_count: Tensor
    count_unit: Tensor

    @staticmethod
    def width_of(columns: tuple[Column, ...]) -> int:
        """Returns how many numbers a row is spread out to."""
        return sum(max(c.num_levels, 1) for c in columns) + len(columns)

    def spread(self, x: Tensor) -> Tensor:
        """Spreads rows out, `[B, D]` to `[B, width_of(columns)]`."""
        there = ~torch.isnan(x)
        # Before any arithmetic: the gradient of a NaN is NaN even where it is not selected.
        cells = x.masked_fill(~there, 0.0)
        loc, scale = self.count_unit
        numbers = torch.where(self.is_count, (torch.log1p(cells.clamp_min(0)) - loc) / scale, cells)
        numbers = numbers.clamp(-_FARTHEST, _FARTHEST)
        one_hot = (cells[:, self.column] == self.level).to(x.dtype)
        spread = torch.where(self.level < 0, numbers[:, self.column], one_hot)
        return torch.cat([spread * there[:, self.column], there.to(x.dtype)], 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.hide > 0:
            share = torch.rand(len(x), 1, device=x.device) * (torch.rand(len(x), 1, device=x.device) < self.hide)
            x = x.masked_fill(torch.rand(x.shape, device=x.device) < share, torch.nan)
        features: Tensor = self.network(self.spread(x))
        return features
