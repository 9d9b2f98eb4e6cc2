r"""Rows of a table: cells of several kinds, some of them missing.

Given z the cells of a row are independent, each with a distribution of its column's kind, and only those that were
observed count (Mattei and Frellsen, 2019, "MIWAE: deep generative modelling and imputation of incomplete data sets"):

$$\log p(x_o|z) = \sum_{d \in o} \log p_d(x_d|z)$$

A missing cell is NaN. Where cells are missing at random, that is, whether one is missing depends on nothing but what
was observed, this is all of the likelihood that speaks of the table, and a bound on \(\log p(x_o)\) is what to
maximise.

**Units.** What x holds of a measured column is \(u = (v - \text{loc})/\text{scale}\), or that of \(\log v\). The
density is that of v, in the file's own unit, so it does not depend on how x was scaled:

$$\log p(v) = \log p(u) - \log\Big|\frac{dv}{du}\Big|, \qquad
  \log\Big|\frac{dv}{du}\Big| = \log \text{scale} \quad\text{or}\quad \log \text{scale} + \log v$$

Counts and labels have probabilities, so log p(x) of a row is of both: a sum that says which of two models of the same
table is better, and nothing about two tables.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import Distribution, constraints

from lowerbound.discrete import NegativeBinomial

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# A cell can be so many scales away before its distance is cut off: its square is still a float32.
_FARTHEST = 1e15


class Cells(ABC):
    """Independent cells of one kind, `[*batch, C]`."""

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density or log-probability of each cell, nats, for values `[..., C]` without NaN."""

    @abstractmethod
    def sample(self, shape: torch.Size) -> Tensor:
        """Draws cells, `[*shape, *batch, C]`."""

    @abstractmethod
    def expected(self, weights: Tensor | None) -> Tensor:
        """Returns what the best guess at each cell follows from: its mean, or the probability of each label.

        Args:
            weights: Of a mixture over the first axis of the batch, `[K, *rest]`, with sum 1; None for no mixture.

        Returns:
            `[*batch, C]` of numbers and `[*batch, C, L]` of labels, or with `rest` for the batch of a mixture.
        """

    def guess(self, expected: Tensor) -> Tensor:
        """Returns the best guess at each cell, `[*batch, C]`: the mean, the nearest count, the likeliest label."""
        return expected


class Measured(Cells):
    """Cells with a density: normal, or Student's t.

    Args:
        loc: In units of x, `[*batch, C]`.
        log_scale: The logarithm of the scale, in units of x.
        degrees: Degrees of freedom of Student's t, `[C]`, above 2; None for the normal density.
        log_unit: log |dv/du| is log_unit + slope * u, `[C]` each.
        slope: 0 of a real column; of a positive one its scale.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, degrees: Tensor | None, log_unit: Tensor, slope: Tensor) -> None:
        self.loc, self.log_scale, self.degrees = loc, log_scale, degrees
        self.log_unit, self.slope = log_unit, slope

    def log_prob(self, value: Tensor) -> Tensor:
        away = ((value - self.loc) * torch.exp(-self.log_scale)).clamp(-_FARTHEST, _FARTHEST)
        to_unit = self.log_scale + self.log_unit + self.slope * value
        if self.degrees is None:
            return -0.5 * away.square() - _HALF_LOG_2PI - to_unit
        half = 0.5 * self.degrees
        constant = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * torch.log(2 * math.pi * half)
        return constant - (half + 0.5) * torch.log1p(away.square() / self.degrees) - to_unit

    def sample(self, shape: torch.Size) -> Tensor:
        if self.degrees is None:
            each: td.Distribution = td.Normal(self.loc, self.log_scale.exp(), validate_args=False)
        else:
            each = td.StudentT(self.degrees, self.loc, self.log_scale.exp(), validate_args=False)
        drawn: Tensor = each.sample(shape)
        return drawn

    def expected(self, weights: Tensor | None) -> Tensor:
        return _weighted(self.loc, weights)


class Counts(Cells):
    """Cells that are counts: negative binomial.

    Args:
        log_mean: `[*batch, C]`.
        log_total: The logarithm of r; the variance is mean + mean^2 / r.
    """

    def __init__(self, log_mean: Tensor, log_total: Tensor) -> None:
        self.each = NegativeBinomial(log_mean, log_total, event_ndim=0)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.each.log_prob(value)

    def sample(self, shape: torch.Size) -> Tensor:
        return self.each.sample(shape)

    def expected(self, weights: Tensor | None) -> Tensor:
        return _weighted(self.each.mean, weights)

    def guess(self, expected: Tensor) -> Tensor:
        return expected.round()


class Levels(Cells):
    """Cells that are labels: the place of one among L.

    Args:
        log_probs: `[*batch, C, L]`; minus infinity for places that a column with fewer labels does not have.
    """

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.log_probs.shape[:-1])
        place = value.long().clamp(0, self.log_probs.shape[-1] - 1).expand(shape)
        return self.log_probs.expand(*shape, -1).gather(-1, place.unsqueeze(-1)).squeeze(-1)

    def sample(self, shape: torch.Size) -> Tensor:
        exponential = torch.empty(
            shape + self.log_probs.shape, dtype=self.log_probs.dtype, device=self.log_probs.device
        ).exponential_()
        # The first to ring of L clocks with those rates.
        return (self.log_probs - exponential.log()).argmax(-1).to(self.log_probs.dtype)

    def expected(self, weights: Tensor | None) -> Tensor:
        probs = self.log_probs.exp()
        return probs if weights is None else (weights[..., None, None] * probs).sum(0)

    def guess(self, expected: Tensor) -> Tensor:
        return expected.argmax(-1).to(expected.dtype)

    def weighed(self, log_weights: Tensor) -> tuple[Levels, Tensor]:
        """Returns the labels with probabilities in proportion to p(l) w(l), and log sum_l p(l) w(l), `[*batch, C]`.

        Args:
            log_weights: log w of each label, `[C, L]`.
        """
        product = self.log_probs + log_weights
        total = product.logsumexp(-1)
        return Levels(product - total.unsqueeze(-1)), total


class Row(Distribution):
    """Rows of mixed columns (module docstring).

    Args:
        parts: The cells of each kind, and which columns they are, int64 `[C]`; together all D columns.
        width: D.

    Example:
        >>> sick = Levels(torch.tensor([[0.5, 0.25, 0.25]]).log())
        >>> age = Counts(torch.tensor([3.0]), torch.tensor([0.0]))
        >>> row = Row(((torch.tensor([0]), age), (torch.tensor([1]), sick)), 2)
        >>> row.mean, row.log_prob(torch.tensor([float("nan"), 2.0])).exp()
        (tensor([20.,  0.]), tensor(0.2500))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  torch's own convention

    def __init__(self, parts: tuple[tuple[Tensor, Cells], ...], width: int) -> None:
        self.parts = parts
        cells = parts[0][1]
        guess = cells.guess(cells.expected(None))
        super().__init__(guess.shape[:-1], torch.Size([width]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The best guess at each cell, `[*batch, D]` (`Cells.guess`); of a positive column decoded, the median."""
        return self.guess(self.expected(None))

    def expected(self, weights: Tensor | None) -> tuple[Tensor, ...]:
        """Returns of each part what `guess` takes, under a mixture over the first axis of the batch; see `Cells`."""
        return tuple(cells.expected(weights) for _, cells in self.parts)

    def guess(self, expected: Sequence[Tensor]) -> Tensor:
        """Returns the best guess at each cell, `[*rest, D]`, from `expected`, or from a mean of several of them."""
        return self._joined([cells.guess(part) for (_, cells), part in zip(self.parts, expected, strict=True)])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws rows without holes, `[*sample, *batch, D]`."""
        with torch.no_grad():
            return self._joined([cells.sample(torch.Size(sample_shape)) for _, cells in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of the cells that are there, nats, `[*sample, *batch]`; 0 of a row without any."""
        return sum((self._observed(index, cells, value) for index, cells in self.parts), torch.zeros(()).to(value))

    def _observed(self, index: Tensor, cells: Cells, value: Tensor) -> Tensor:
        part = value.index_select(-1, index)
        missing = torch.isnan(part)
        # Before any arithmetic: the gradient of a NaN is NaN even where it is not selected.
        log_prob = cells.log_prob(part.masked_fill(missing, 0.0))
        return log_prob.masked_fill(missing, 0.0).sum(-1)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        places = torch.cat([index for index, _ in self.parts])
        return torch.cat(parts, -1).index_select(-1, places.argsort())


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    return values if weights is None else (weights[..., None] * values).sum(0)
