r"""What must be remembered of a stream of draws, so that none of them need be kept.

Draws arrive a few at a time, as `[k, ...]` with the draws first; what is kept has the size of one of them.

* `LogSums` holds \(\log\sum w\) and \(\log\sum w^2\), from which come the log-mean, the effective sample size
  \((\sum w)^2 / \sum w^2\) (Kong, 1992) and the standard error of the log-mean by the delta method,

  $$\mathrm{se}^2 = \frac{n}{n-1} \Big(\frac{\sum w^2}{(\sum w)^2} - \frac1n\Big).$$

* `Moments` holds a mean and a sum of squared deviations, merged as by Chan, Golub and LeVeque (1979), which loses no
  digits when the mean is large beside the spread, as it is for log-densities.
* `Tail` holds the largest weights, to which a generalised Pareto distribution is fitted: its shape k-hat says whether
  the weights have a variance (Vehtari, Simpson, Gelman, Yao and Gabry, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MIN_TAIL = 5


class Moments:
    """Mean and spread of values that arrive in pieces."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Takes in values `[k, ...]`."""
        values = values.double()
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = len(values), mean, squares
            return
        total = self.count + len(values)
        shift = mean - self._mean
        self._squares = self._squares + squares + shift.square() * (self.count * len(values) / total)
        self._mean = self._mean + shift * (len(values) / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """The mean, float64 `[...]`."""
        assert self._mean is not None
        return self._mean

    @property
    def variance(self) -> Tensor:
        """The variance, `[...]`; NaN from a single value."""
        assert self._squares is not None
        if self.count < 2:
            return torch.full_like(self._squares, math.nan)
        return self._squares / (self.count - 1)

    @property
    def stderr(self) -> Tensor:
        """The standard error of the mean, `[...]`; NaN from a single value."""
        return (self.variance / self.count).sqrt()


class LogSums:
    """The sum of weights and of their squares, from log-weights that arrive in pieces."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Takes in log-weights `[k, B]`."""
        log_w = log_w.double()
        once, twice = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
        self._sum = once if self._sum is None else torch.logaddexp(self._sum, once)
        self._squares = twice if self._squares is None else torch.logaddexp(self._squares, twice)
        self.count += len(log_w)

    @property
    def log_sum(self) -> Tensor:
        """Log sum w, `[B]`."""
        assert self._sum is not None
        return self._sum

    @property
    def log_sum_squares(self) -> Tensor:
        """Log sum w², `[B]`."""
        assert self._squares is not None
        return self._squares

    @property
    def log_mean(self) -> Tensor:
        """Log of the mean weight, `[B]`."""
        return self.log_sum - math.log(self.count)

    @property
    def ess(self) -> Tensor:
        """The effective sample size, in [1, count], `[B]`."""
        return (2 * self.log_sum - self.log_sum_squares).exp()

    @property
    def stderr(self) -> Tensor:
        """The standard error of `log_mean`, `[B]`; NaN from a single weight."""
        return stratified_stderr([self])


def pooled(strata: Sequence[LogSums]) -> LogSums:
    """Returns the sums over all strata together."""
    total = LogSums()
    total.count = sum(stratum.count for stratum in strata)
    total._sum = torch.stack([stratum.log_sum for stratum in strata]).logsumexp(0)
    total._squares = torch.stack([stratum.log_sum_squares for stratum in strata]).logsumexp(0)
    return total


def stratified_stderr(strata: Sequence[LogSums]) -> Tensor:
    r"""Returns the standard error of the log of the mean of all weights, drawn a fixed number from each stratum, `[B]`.

    $$\mathrm{se}^2 = \Big(\sum_c S_c\Big)^{-2} \sum_c \frac{n_c}{n_c - 1} \Big(Q_c - \frac{S_c^2}{n_c}\Big),
      \quad S_c = \sum w, \; Q_c = \sum w^2 \text{ over stratum } c$$

    The spread between strata does not enter: that is what stratification gains. NaN where a stratum has one weight.
    """
    log_sum = pooled(strata).log_sum
    variance = torch.zeros_like(log_sum)
    for stratum in strata:
        if stratum.count < 2:
            return torch.full_like(log_sum, math.nan)
        mean_square = (2 * (stratum.log_sum - log_sum)).exp() / stratum.count
        spread = ((stratum.log_sum_squares - 2 * log_sum).exp() - mean_square).clamp_min(0)
        variance += spread * (stratum.count / (stratum.count - 1))
    return variance.sqrt()


class Tail:
    """The largest of so many weights.

    Args:
        num_samples: How many weights there will be, which decides how many are kept.
    """

    def __init__(self, num_samples: int) -> None:
        # The part of the weights that Pareto smoothing looks at (Vehtari et al., 2024), and one below as cut-off.
        self.size = min(int(0.2 * num_samples), int(3 * math.sqrt(num_samples)))
        self._largest: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Takes in log-weights `[k, B]`."""
        log_w = log_w.double()
        seen = log_w if self._largest is None else torch.cat([self._largest, log_w])
        self._largest = seen.topk(min(self.size + 1, len(seen)), dim=0).values

    @property
    def khat(self) -> Tensor:
        """The Pareto shape of the tail, `[B]`; NaN where there are too few weights to tell."""
        assert self._largest is not None
        if self.size < _MIN_TAIL:
            return torch.full_like(self._largest[0], math.nan)
        relative = (self._largest - self._largest[0]).exp()
        return pareto_shape(relative[:-1] - relative[-1])


def pareto_shape(exceedances: Tensor) -> Tensor:
    """Fits a generalised Pareto distribution and returns its shape k for each column.

    The estimator of Zhang and Stephens (2009, "A new and efficient estimation method for the generalized Pareto
    distribution"), pulled towards 1/2 by a weak prior as in Vehtari et al. (2024, appendix C).

    Args:
        exceedances: Amounts above the cut-off, non-negative, `[M, B]` with M >= 5.

    Returns:
        k, `[B]`; -inf where all exceedances are zero (there is no tail).

    Example:
        >>> u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        >>> round(pareto_shape((((1 - u) ** -0.5 - 1) / 0.5)[:, None]).item(), 1)
        0.5
    """
    x = exceedances.double().sort(0).values
    count = len(x)
    candidates = 30 + int(math.sqrt(count))
    largest = x[-1].clamp_min(torch.finfo(x.dtype).tiny)
    quartile = x[int(count / 4 + 0.5) - 1].clamp_min(torch.finfo(x.dtype).tiny)
    grid = torch.arange(1, candidates + 1, dtype=x.dtype, device=x.device)
    theta = 1 / largest + (1 - torch.sqrt(candidates / (grid[:, None] - 0.5))) / (3 * quartile)  # [candidates, B]

    def shape(t: Tensor) -> Tensor:
        return torch.log1p(-t.unsqueeze(-2) * x).mean(-2)

    k = shape(theta)
    log_likelihood = count * (torch.log(-theta / k) - k - 1)
    weight = torch.softmax(log_likelihood.nan_to_num(nan=-math.inf), 0)
    fitted = shape((theta * weight).sum(0, keepdim=True))[0]
    shrunk = (fitted * count + 0.5 * 10) / (count + 10)
    return torch.where(x[-1] > 0, shrunk, torch.full_like(shrunk, -math.inf))
