"""Likelihood heads for levels and counts: p(x|z) is a probability, not a density.

On 8-bit pictures they need no dequantisation, and their bits per dimension are what a coder would pay. Scales are in
units of x, whose 256 levels lie 1/255 apart; a head's raw output of 0 means a scale of e^-2, a seventh of the range,
so that an untrained network neither spreads over everything nor insists on one level.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lowerbound import discrete
from lowerbound.data import Support
from lowerbound.errors import UsageError
from lowerbound.heads.base import bounded
from lowerbound.heads.likelihoods import RARE, Likelihood, solve_increasing
from lowerbound.nn import check_sizes

_START_LOG_SCALE = -2.0
# The means of a mixture's components begin this far apart, as a fraction of the way to the nearer end of [0, 1].
_SPREAD = 0.75
# Above 2^24 = e^16.6 float32 has no longer every whole number, so no count can be told from the next.
_LOG_COUNT_BOUND = 16.6
_EIGHT_BIT = 256


class DiscretisedLogistic(Likelihood):
    """A logistic density gathered on 8-bit levels (Kingma et al., 2016; `lowerbound.discrete`).

    Both its mean and its scale are predicted from z, for each value.
    """

    exact = frozenset({Support.EIGHT_BIT})
    num_parameters = 2

    def natural_mean(self, mean: Tensor) -> Tensor:
        loc = _starting_loc(mean.clamp(RARE, 1 - RARE))
        return torch.stack([loc, torch.zeros_like(loc)])

    def forward(self, features: Tensor, batch: torch.Size) -> discrete.DiscretisedLogistic:
        loc, raw = self.parameters_of(features, batch)
        return discrete.DiscretisedLogistic(loc, _log_scale(raw), len(self.event_shape))


class DiscretisedLogisticMixture(Likelihood):
    """For each value a mixture of discretised logistics (Salimans et al., 2017, "PixelCNN++").

    Given z the colour channels of a pixel are independent, unlike in PixelCNN++.

    Args:
        in_shape: The shape of the features.
        event_shape: The shape of x.
        num_components: Components a value, at least 1.

    Raises:
        UsageError: `num_components` is below 1.
    """

    exact = frozenset({Support.EIGHT_BIT})

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...], num_components: int = 10) -> None:
        check_sizes(num_components=(num_components,))
        self.num_components = num_components
        self.num_parameters = 3 * num_components
        super().__init__(in_shape, event_shape)

    def natural_mean(self, mean: Tensor) -> Tensor:
        """Components side by side around the mean, so that they have something to tell them apart from the start."""
        steps = torch.arange(self.num_components, dtype=mean.dtype, device=mean.device)
        place = _SPREAD * (2 * (steps + 0.5) / self.num_components - 1)
        mean = mean.clamp(RARE, 1 - RARE)
        loc = _starting_loc(mean + place[:, None] * torch.minimum(mean, 1 - mean))
        return torch.cat([loc, torch.zeros_like(loc), torch.zeros_like(loc)])

    def forward(self, features: Tensor, batch: torch.Size) -> discrete.DiscretisedLogisticMixture:
        loc, raw, logits = self.parameters_last(features, batch).chunk(3, -1)
        return discrete.DiscretisedLogisticMixture(logits, loc, _log_scale(raw), len(self.event_shape))


class Categorical(Likelihood):
    """A probability of its own for each level of each value.

    Args:
        in_shape: The shape of the features.
        event_shape: The shape of x.
        num_levels: How many levels there are between 0 and 1, at least 2: 256 for 8-bit values, 2 for binary ones. With
            any other number it is accepted on [0, 1], where it is a likelihood only if the values lie on those levels,
            which cannot be known from the support.

    Raises:
        UsageError: `num_levels` is below 2.
    """

    exact = frozenset({Support.EIGHT_BIT})

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...], num_levels: int = _EIGHT_BIT) -> None:
        check_sizes(num_levels=(num_levels,))
        if num_levels < 2:
            raise UsageError(f"A Categorical likelihood tells at least 2 levels apart; got num_levels={num_levels}.")
        self.num_levels = num_levels
        self.num_parameters = num_levels
        super().__init__(in_shape, event_shape)
        if num_levels == 2:
            self.exact = frozenset({Support.BINARY})
        elif num_levels != _EIGHT_BIT:
            self.exact = frozenset()
            self.relaxed: Mapping[Support, str] = {Support.UNIT_INTERVAL: _rounded(num_levels)}

    def natural_mean(self, mean: Tensor) -> Tensor:
        """The distribution of largest entropy with that mean: its logits rise in a straight line."""
        levels = torch.linspace(0, 1, self.num_levels, dtype=mean.dtype, device=mean.device)

        def mean_at(slope: Tensor) -> Tensor:
            return discrete.Categorical(slope[..., None] * levels).mean

        slope = solve_increasing(mean_at, mean.clamp(RARE, 1 - RARE), -1 / RARE, 1 / RARE)
        # Centred: logits of one size are reached from everywhere at the same pace.
        return (levels[:, None] - 0.5) * slope

    def forward(self, features: Tensor, batch: torch.Size) -> discrete.Categorical:
        return discrete.Categorical(self.parameters_last(features, batch), len(self.event_shape))


class Poisson(Likelihood):
    """A probability of counts with one parameter, the rate: where the variance is the mean."""

    exact = frozenset({Support.COUNT})

    def natural_mean(self, mean: Tensor) -> Tensor:
        return mean.clamp_min(RARE).log()

    def forward(self, features: Tensor, batch: torch.Size) -> discrete.Poisson:
        (log_rate,) = self.parameters_of(features, batch)
        return discrete.Poisson(log_count(log_rate), len(self.event_shape))


class NegativeBinomial(Likelihood):
    """A probability of counts whose variance exceeds their mean: mean + mean^2 / r, both predicted from z.

    It begins at r = 1, the geometric distribution; with r at its bound, e^10, it is a Poisson in all but name.
    """

    exact = frozenset({Support.COUNT})
    num_parameters = 2

    def natural_mean(self, mean: Tensor) -> Tensor:
        return torch.stack([mean.clamp_min(RARE).log(), torch.zeros_like(mean)])

    def forward(self, features: Tensor, batch: torch.Size) -> discrete.NegativeBinomial:
        log_mean, log_total = self.parameters_of(features, batch)
        return discrete.NegativeBinomial(log_count(log_mean), bounded(log_total), len(self.event_shape))


def _log_scale(raw: Tensor) -> Tensor:
    return bounded(raw + _START_LOG_SCALE)


def log_count(log_mean: Tensor) -> Tensor:
    """Returns the logarithm of a mean count, kept where float32 can tell one count from the next."""
    return log_mean.clamp(-_LOG_COUNT_BOUND, _LOG_COUNT_BOUND)


def _starting_loc(mean: Tensor) -> Tensor:
    """Returns where a logistic of the starting scale must lie for its levels to have that mean."""
    log_scale = torch.full_like(mean, _START_LOG_SCALE)

    def mean_at(loc: Tensor) -> Tensor:
        return discrete.DiscretisedLogistic(loc, log_scale).mean

    return solve_increasing(mean_at, mean, -2.0, 3.0)


def _rounded(num_levels: int) -> str:
    return (
        f"each value is taken to the nearest of {num_levels} levels from 0 to 1: the numbers are of a likelihood only "
        "if the values were on those levels before, and of coarser data otherwise"
    )
