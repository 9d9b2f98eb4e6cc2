"""Likelihood heads: features to p(x|z).

A likelihood head knows on which supports it *is* a likelihood. Binary cross-entropy on grey pixels is accepted, because
so much of the literature trains with it, but it is named for what it is wherever its number is printed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowerbound import distributions
from lowerbound.data import Support
from lowerbound.errors import UsageError
from lowerbound.heads.base import LOG_SCALE_BOUND, Head

# A value that is never seen still gets this probability at the start.
_RARE = 0.005
_GREY_BERNOULLI = (
    "the Bernoulli likelihood is evaluated at grey values between 0 and 1, where it is minus a cross-entropy and not "
    "the logarithm of a probability or a density; read the bound and log p(x) as training scores only"
)
_DENSITY_AT_LEVELS = (
    "a density is evaluated at values on a grid of 8-bit levels, without dequantisation: it can be compared with other "
    "densities on the same data, not with probabilities"
)


class Likelihood(Head):
    """A head that gives p(x|z).

    Attributes:
        exact: Supports on which it is a probability or a density.
        caveats: Supports that are accepted with a remark.
        relaxed: Supports on which it is trained with although it is no likelihood there, and why it is none.
    """

    exact: ClassVar[frozenset[Support]]
    caveats: ClassVar[Mapping[Support, str]] = {}
    relaxed: ClassVar[Mapping[Support, str]] = {}

    @abstractmethod
    def natural_mean(self, mean: Tensor) -> Tensor:
        """Returns what the head's first parameter must be for p(x|z) to have that mean."""

    def start_at(self, mean: Tensor) -> None:
        """Sets the bias so that p(x|z) begins near the data's mean: a better place to start than the middle.

        Args:
            mean: The mean of x over the training data, `[*event]`.
        """
        if self.on_picture:
            mean = mean.mean((1, 2))
        with torch.no_grad():
            bias = self.project.bias
            assert isinstance(bias, Tensor)
            bias[: mean.numel()].copy_(self.natural_mean(mean.flatten()))

    @classmethod
    def check(cls, support: Support) -> None:
        """Raises `UsageError` when this likelihood means nothing on data with that support."""
        if support in cls.exact or support in cls.relaxed:
            return
        fitting = [c.__name__ for c in (Bernoulli, ContinuousBernoulli, Normal) if support in c.exact]
        raise UsageError(
            f"A {cls.__name__} likelihood means nothing for values with support {support.value}. These do: "
            f"{', '.join(fitting)}. Or change the data: scale it to [0, 1], or binarise it."
        )


class Bernoulli(Likelihood):
    """A probability for each binary value. On grey values it is the cross-entropy, and no likelihood."""

    exact = frozenset({Support.BINARY})
    relaxed: ClassVar[Mapping[Support, str]] = {
        Support.EIGHT_BIT: _GREY_BERNOULLI,
        Support.UNIT_INTERVAL: _GREY_BERNOULLI,
    }

    def natural_mean(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=_RARE)

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.Bernoulli:
        (logits,) = self.parameters_of(features, batch)
        return distributions.Bernoulli(logits, len(self.event_shape))


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1] (Loaiza-Ganem and Cunningham, 2019): grey values' counterpart of the Bernoulli."""

    exact = frozenset({Support.UNIT_INTERVAL, Support.EIGHT_BIT})
    caveats: ClassVar[Mapping[Support, str]] = {Support.EIGHT_BIT: _DENSITY_AT_LEVELS}

    def natural_mean(self, mean: Tensor) -> Tensor:
        # The mean as a function of the logit has no inverse in closed form; bisection is exact enough for a start.
        low, high = torch.full_like(mean, -1 / _RARE), torch.full_like(mean, 1 / _RARE)
        for _ in range(40):
            middle = (low + high) / 2
            above = distributions.ContinuousBernoulli(middle).mean > mean
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return middle

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.ContinuousBernoulli:
        (logits,) = self.parameters_of(features, batch)
        return distributions.ContinuousBernoulli(logits, len(self.event_shape))


class Normal(Likelihood):
    """A normal density around what the network predicts, with one standard deviation for all values.

    Args:
        in_shape: The shape of the features.
        event_shape: The shape of x.
        scale: The standard deviation, in units of x; learned (from 1 on) when it is None.

    Raises:
        UsageError: `scale` is not positive.
    """

    exact = frozenset({Support.REAL, Support.UNIT_INTERVAL, Support.EIGHT_BIT})
    caveats: ClassVar[Mapping[Support, str]] = {Support.EIGHT_BIT: _DENSITY_AT_LEVELS}

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...], scale: float | None = None) -> None:
        super().__init__(in_shape, event_shape)
        if scale is not None and not scale > 0:
            raise UsageError(f"The scale of a Normal likelihood is a standard deviation above 0; got {scale}.")
        self.scale = scale
        log_scale = torch.tensor(0.0 if scale is None else math.log(scale))
        if scale is None:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def natural_mean(self, mean: Tensor) -> Tensor:
        return mean

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.DiagonalNormal:
        (loc,) = self.parameters_of(features, batch)
        bounded = self.log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        return distributions.DiagonalNormal(loc, bounded, len(self.event_shape))
