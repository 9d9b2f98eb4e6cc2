"""The likelihood head of tables: mixed columns, of which only the observed cells count."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.data import Column, Kind, Support
from lowerbound.errors import UsageError
from lowerbound.heads.base import LOG_SCALE_BOUND
from lowerbound.heads.levels import log_count
from lowerbound.heads.likelihoods import RARE, Likelihood
from lowerbound.mixed import Cells, Counts, Levels, Measured, Row
from lowerbound.nn import Linear

# Of Student's t: with 3 the variance is finite, and with 100 it is a normal density, while lgamma is still exact.
_LEAST_DEGREES, _MOST_DEGREES = 3.0, 100.0
_LEAST_STEP = 1e-3
_OF_CELLS = (
    "log p(x) is of the observed cells of a row: densities per unit of the file for measured columns, probabilities "
    "for counts and labels; it compares models on the same table with the same holes, and nothing else"
)


class Columns(Likelihood):
    r"""A distribution over rows of mixed columns (`lowerbound.mixed`), from features of z.

    Of real columns and dates it is Student's t (or normal), of positive ones log-normal, of counts negative binomial,
    of binary and categorical ones a probability of each label, and of ordinal ones with thresholds
    \(t_1 < t_2 < \dots\) that all rows share

    $$P(x \le l\,|\,z) = \sigma(t_l - \eta(z))$$

    (cumulative logits; McCullagh, 1980, "Regression models for ordinal data"). It begins at each column's own
    frequencies, whatever z is.

    Scales cannot fall below `least_scale` of the column's standard deviation: without a limit the density of a column
    that is constant, or rounded, grows without bound.

    Args:
        in_shape: The shape of the features.
        columns: What x is made of.
        heavy_tails: Give real columns and dates Student's t, with degrees of freedom above 3 learned for each; else the
            normal density.
        least_scale: In units of x, in which a column has a standard deviation of 1.

    Raises:
        UsageError: There is no column, one of labels has none, or `least_scale` is not in (0, 1].
    """

    exact = frozenset({Support.TABLE})
    caveats: Mapping[Support, str] = {Support.TABLE: _OF_CELLS}
    unit: Tensor

    def __init__(
        self,
        in_shape: tuple[int, ...],
        columns: tuple[Column, ...],
        heavy_tails: bool = True,
        least_scale: float = 0.01,
    ) -> None:
        _check(columns, least_scale)
        super().__init__(in_shape, (len(columns),))
        self.columns, self.heavy_tails, self.least_scale = tuple(columns), heavy_tails, least_scale
        sizes = [sum(_parameters_of(columns[d]) for d in part) for part in self._parts()]
        self.sizes = [size for size in sizes if size]
        self.project = Linear(math.prod(in_shape), sum(self.sizes))
        for number, part in enumerate(self._parts()):
            self.register_buffer(f"places_{number}", torch.tensor(part, dtype=torch.int64))
        measured = [columns[d] for part in self._parts()[:2] for d in part]
        # log |dv/du| = log_unit + slope u, of a positive column log scale + loc + scale u.
        positive = [c.kind is Kind.POSITIVE for c in measured]
        log_unit = [math.log(c.scale) + (c.loc if p else 0.0) for c, p in zip(measured, positive, strict=True)]
        slope = [c.scale if p else 0.0 for c, p in zip(measured, positive, strict=True)]
        self.register_buffer("unit", torch.tensor([log_unit, slope]).reshape(2, -1))
        real, _, _, _, categorical, ordinal = self._parts()
        self.log_degrees = nn.Parameter(torch.zeros(len(real))) if heavy_tails and real else None
        self.register_buffer("logit_places", _padded([columns[d].num_levels for d in categorical]))
        self.steps = nn.Parameter(_thresholds([columns[d] for d in ordinal])) if ordinal else None
        self.register_buffer("ordinal_levels", torch.tensor([columns[d].num_levels for d in ordinal]))
        with torch.no_grad():
            bias = self.project.bias
            bias.copy_(torch.tensor([v for part in self._parts() for v in _start([columns[d] for d in part])]).to(bias))

    logit_places: Tensor
    ordinal_levels: Tensor

    def _parts(self) -> tuple[list[int], ...]:
        kinds = (
            (Kind.REAL, Kind.DATE), (Kind.POSITIVE,), (Kind.COUNT,),
            (Kind.BINARY,), (Kind.CATEGORICAL,), (Kind.ORDINAL,),
        )  # fmt: skip
        return tuple([d for d, c in enumerate(self.columns) if c.kind in kind] for kind in kinds)

    def natural_mean(self, mean: Tensor) -> Tensor:
        """Returns the bias as it is: it begins at the columns' own frequencies, and a mean of labels says nothing."""
        bias = self.project.bias
        assert isinstance(bias, Tensor)
        return bias.detach().clone()

    def forward(self, features: Tensor, batch: torch.Size) -> Row:
        raw: Tensor = self.project(features.flatten(1))
        if raw.dtype in (torch.bfloat16, torch.float16):
            raw = raw.float()
        blocks = iter(raw.reshape(*batch, -1).split(self.sizes, -1))
        made = [self._cells(number, next(blocks)) for number in range(6) if self._there(number)]
        places = [self._buffer(number) for number in range(6) if self._there(number)]
        return Row(tuple(zip(places, made, strict=True)), len(self.columns))

    def restored(self, p: Distribution) -> tuple[Distribution, Tensor | None]:
        assert isinstance(p, Row)
        parts: list[tuple[Tensor, Cells]] = []
        log_kept: Tensor | None = None
        for index, cells in p.parts:
            columns = [self.columns[d] for d in index.tolist()]
            if not isinstance(cells, Levels) or not any(column.repeats for column in columns):
                parts.append((index, cells))
                continue
            weighed, total = cells.weighed(_log_kept(columns).to(cells.log_probs))
            parts.append((index, weighed))
            if log_kept is None:
                log_kept = total.new_zeros(*p.batch_shape, len(self.columns))
            log_kept[..., index] = total
        return Row(tuple(parts), len(self.columns)), log_kept

    def _buffer(self, number: int) -> Tensor:
        found = self.get_buffer(f"places_{number}")
        assert isinstance(found, Tensor)
        return found

    def _there(self, number: int) -> bool:
        return len(self._buffer(number)) > 0

    def _cells(self, number: int, raw: Tensor) -> Cells:
        makers = (self._real, self._positive, self._counts, self._binary, self._categorical, self._ordinal)
        return makers[number](raw)

    def _real(self, raw: Tensor) -> Cells:
        degrees = None
        if self.log_degrees is not None:
            degrees = _LEAST_DEGREES + self.log_degrees.clamp(-LOG_SCALE_BOUND, math.log(_MOST_DEGREES)).exp()
            degrees = degrees.to(raw.dtype)
        return self._measured(raw, degrees, self.unit[:, : raw.shape[-1] // 2])

    def _positive(self, raw: Tensor) -> Cells:
        return self._measured(raw, None, self.unit[:, self.unit.shape[1] - raw.shape[-1] // 2 :])

    def _measured(self, raw: Tensor, degrees: Tensor | None, unit: Tensor) -> Cells:
        loc, log_scale = raw.chunk(2, -1)
        bounded = log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        # A soft limit: at a hard one a scale would have no gradient to come back by.
        limited = torch.logaddexp(bounded, torch.full_like(bounded, math.log(self.least_scale)))
        log_unit, slope = unit.to(raw.dtype)
        return Measured(loc, limited, degrees, log_unit, slope)

    def _counts(self, raw: Tensor) -> Cells:
        log_mean, log_total = raw.chunk(2, -1)
        return Counts(log_count(log_mean), log_total.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND))

    def _binary(self, raw: Tensor) -> Cells:
        return Levels(torch.stack([F.logsigmoid(-raw), F.logsigmoid(raw)], -1))

    def _categorical(self, raw: Tensor) -> Cells:
        logits = raw[..., self.logit_places.clamp_min(0)].masked_fill(self.logit_places < 0, -math.inf)
        return Levels(logits.log_softmax(-1))

    def _ordinal(self, raw: Tensor) -> Cells:
        assert self.steps is not None
        steps = self.steps.to(raw.dtype)
        rises = F.softplus(steps[:, 1:]) + _LEAST_STEP
        above = torch.cat([steps[:, :1], rises], 1).cumsum(1) - raw.unsqueeze(-1)
        level = torch.arange(steps.shape[1] + 1, device=raw.device)
        last = level == self.ordinal_levels[:, None] - 1
        # As for discretised logistics: log of a difference of sigmoids, without taking it.
        upper = F.logsigmoid(F.pad(above, (0, 1))).masked_fill(last, 0.0)
        lower = F.logsigmoid(-F.pad(above, (1, 0))).masked_fill(level == 0, 0.0)
        width = F.pad(torch.log(-torch.expm1(-rises)), (1, 1)).masked_fill(last, 0.0)
        return Levels((upper + lower + width).masked_fill(level >= self.ordinal_levels[:, None], -math.inf))


def _check(columns: tuple[Column, ...], least_scale: float) -> None:
    bad = [
        c.name for c in columns if c.kind.has_levels and (not c.levels or (len(c.levels) > 2 and c.kind is Kind.BINARY))
    ]
    if not columns or bad or not 0 < least_scale <= 1:
        raise UsageError(
            "A Columns likelihood needs at least one column, labels for each that has some (two at most for a "
            f"binary one), and a least_scale above 0 and at most 1; got {len(columns)} columns, {bad[:5]} without such "
            f"labels, and least_scale={least_scale}. Table().fitted(path).columns finds the labels."
        )


def _parameters_of(column: Column) -> int:
    if column.kind is Kind.CATEGORICAL:
        return column.num_levels
    return 1 if column.kind.has_levels else 2


def _start(columns: list[Column]) -> list[float]:
    """Returns the bias of the columns of one kind: where the likelihood is that of the columns by themselves."""
    if not columns or columns[0].kind is Kind.ORDINAL:
        return [0.0] * len(columns)
    kind = columns[0].kind
    if kind is Kind.CATEGORICAL:
        return [math.log(max(share, RARE)) for c in columns for share in _shares(c)]
    if kind is Kind.BINARY:
        return [_logit(_shares(c)[-1] if c.num_levels == 2 else RARE) for c in columns]
    first = [math.log(max(math.expm1(c.loc), RARE)) if kind is Kind.COUNT else 0.0 for c in columns]
    return first + [0.0] * len(columns)


def _shares(column: Column) -> tuple[float, ...]:
    return column.shares or (1 / column.num_levels,) * column.num_levels


def _logit(p: float) -> float:
    p = min(max(p, RARE), 1 - RARE)
    return math.log(p / (1 - p))


def _log_kept(columns: list[Column]) -> Tensor:
    """Returns minus the logarithm of each label's repeats, `[C, L]`."""
    log_kept = torch.zeros(len(columns), max(c.num_levels for c in columns))
    for row, column in enumerate(columns):
        for level, repeats in enumerate(column.repeats):
            log_kept[row, level] = -math.log(repeats)
    return log_kept


def _padded(sizes: list[int]) -> Tensor:
    """Returns which logits belong to each column, `[C, L]`; -1 where it has none.

    Example:
        >>> _padded([2, 3])
        tensor([[ 0,  1, -1],
                [ 2,  3,  4]])
    """
    places, start = torch.full((len(sizes), max(sizes, default=0)), -1), 0
    for row, size in enumerate(sizes):
        places[row, :size] = torch.arange(start, start + size)
        start += size
    return places


def _thresholds(columns: list[Column]) -> Tensor:
    """Returns the steps `[C, L - 1]` whose thresholds give each label its share where the location is 0."""
    most = max(max(c.num_levels for c in columns) - 1, 1)
    steps = torch.zeros(len(columns), most)
    for row, column in enumerate(columns):
        edges = [_logit(below) for below in itertools.accumulate(_shares(column)[:-1])]
        rises = [max(b - a, 2 * _LEAST_STEP) - _LEAST_STEP for a, b in itertools.pairwise(edges)]
        start = [*edges[:1], *(math.log(math.expm1(rise)) for rise in rises)]
        for place, value in enumerate(start):
            steps[row, place] = value
    return steps
