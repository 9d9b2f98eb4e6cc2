r"""Likelihood heads: features to p(x|z). The base of all, and the densities and probabilities of values in [0, 1] or R.

A likelihood head knows on which supports it *is* a likelihood. Binary cross-entropy on grey pixels is accepted, because
so much of the literature trains with it, but it is named for what it is wherever its number is printed.

**The scale of a normal likelihood** decides how much a nat of rate must buy: with one \(\sigma\) for all values the
distortion is the squared error over \(2\sigma^2\), so a fixed \(\sigma\) is a weight on the KL by another name. It can
be fixed or learned (`Normal`), learned for each value (`NormalPerDimension`), predicted from z
(`HeteroscedasticNormal`), or always the best there is (`CalibratedNormal`). The freer it is, the more a value that
hardly varies is worth: where a pixel is constant, or x lies on a grid that a network can hit, a density has no upper
bound.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound import distributions
from lowerbound.data import Support
from lowerbound.errors import UsageError
from lowerbound.heads.base import Head, bounded

# A value that is never seen still gets this probability at the start.
RARE = 0.005
_GREY_BERNOULLI = (
    "the Bernoulli likelihood is evaluated at grey values between 0 and 1, where it is minus a cross-entropy and not "
    "the logarithm of a probability or a density; read the bound and log p(x) as training scores only"
)
_DENSITY_AT_LEVELS = (
    "a density is evaluated at values on a grid of 8-bit levels, without dequantisation: it can be compared with other "
    "densities on the same data, not with probabilities"
)
_FREE_DENSITY_AT_LEVELS = (
    f"{_DENSITY_AT_LEVELS}; with a scale for each value it also grows without bound where a value hardly varies, so "
    "dequantise the data to compare it with anything"
)


class Likelihood(Head):
    """A head that gives p(x|z).

    Attributes:
        exact: Supports on which it is a probability or a density.
        caveats: Of those, the ones that are accepted with a remark, and the remark.
        relaxed: Supports on which it is trained with although it is no likelihood there, and why it is none.
    """

    exact: frozenset[Support]
    caveats: Mapping[Support, str] = {}
    relaxed: Mapping[Support, str] = {}

    def pieces(self, x: Tensor) -> tuple[str, Tensor] | None:
        """Returns what log p(x) is shared out to beside the dimensions of x: its name, and how many, `[B]`, of each x.

        None where the dimensions are all there is. Text of any length has its characters.
        """
        return None

    def restored(self, p: Distribution) -> tuple[Distribution, Tensor | None]:
        """Undoes, in what is generated, that training saw some x more often than they occur.

        Where x was seen r(x) times as often, the model has learned p(x, z) r(x) up to a constant, and the distribution
        of the data is found again by keeping a draw with probability 1 / r(x).

        Args:
            p: p(x|z) as this head gave it, `[*batch]`.

        Returns:
            p(x|z) of what is kept, and the logarithm of the share of draws that are kept, `[*batch, D]`, as a sum over
            the columns that x is kept by; None where training saw all x alike.
        """
        return p, None

    @abstractmethod
    def natural_mean(self, mean: Tensor) -> Tensor:
        """Returns what the head's first parameters must be for p(x|z) to have that mean.

        Args:
            mean: `[D]`.

        Returns:
            The first parameter, `[D]`, or the first n of them, `[n, D]`.
        """

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
            natural = self.natural_mean(mean.flatten().to(bias)).flatten()
            bias[: natural.numel()].copy_(natural)

    def check(self, support: Support) -> None:
        """Raises `UsageError` when this likelihood means nothing on data with that support."""
        if support in self.exact or support in self.relaxed:
            return
        fitting = sorted(head.__name__ for head in _heads() if support in head.exact)
        own = ", ".join(s.value for s in Support if s in self.exact or s in self.relaxed)
        raise UsageError(
            f"A {type(self).__name__} likelihood means nothing for values with support {support.value}. These do: "
            f"{', '.join(fitting)}. Or change the data (scale them to [0, 1], binarise or dequantise them): this "
            f"likelihood is for the support {own}."
        )


def _heads() -> list[type[Likelihood]]:
    """Returns the likelihood heads of this package: somebody else's could not be found under their bare names."""
    return [head for head in Likelihood.__subclasses__() if head.__module__.startswith("lowerbound.")]


def solve_increasing(function: Callable[[Tensor], Tensor], value: Tensor, low: float, high: float) -> Tensor:
    """Returns where an increasing function, taken per element, reaches `value`; bisection is exact enough for a start.

    Example:
        >>> solve_increasing(torch.exp, torch.tensor([2.0, 3.0]), -5, 5)
        tensor([0.6931, 1.0986])
    """
    below, above = torch.full_like(value, low), torch.full_like(value, high)
    for _ in range(32):
        middle = (below + above) / 2
        too_high = function(middle) > value
        below, above = torch.where(too_high, below, middle), torch.where(too_high, middle, above)
    return (below + above) / 2


class Bernoulli(Likelihood):
    """A probability for each binary value. On grey values it is the cross-entropy, and no likelihood."""

    exact = frozenset({Support.BINARY})
    relaxed: Mapping[Support, str] = {
        Support.EIGHT_BIT: _GREY_BERNOULLI,
        Support.UNIT_INTERVAL: _GREY_BERNOULLI,
    }

    def natural_mean(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=RARE)

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.Bernoulli:
        (logits,) = self.parameters_of(features, batch)
        return distributions.Bernoulli(logits, len(self.event_shape))


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1] (Loaiza-Ganem and Cunningham, 2019): grey values' counterpart of the Bernoulli."""

    exact = frozenset({Support.UNIT_INTERVAL, Support.EIGHT_BIT})
    caveats: Mapping[Support, str] = {Support.EIGHT_BIT: _DENSITY_AT_LEVELS}

    def natural_mean(self, mean: Tensor) -> Tensor:
        # The mean as a function of the logit has no inverse in closed form.
        def mean_at(logits: Tensor) -> Tensor:
            return distributions.ContinuousBernoulli(logits).mean

        return solve_increasing(mean_at, mean, -1 / RARE, 1 / RARE)

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
    caveats: Mapping[Support, str] = {Support.EIGHT_BIT: _DENSITY_AT_LEVELS}

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
        return distributions.DiagonalNormal(loc, bounded(self.log_scale), len(self.event_shape))


class NormalPerDimension(Likelihood):
    """A normal density with a learned standard deviation for each value of x, the same for every z.

    Each begins at 1. A pixel that is the same in every example drives its own to the least there is, e^-10.

    Args:
        in_shape: The shape of the features.
        event_shape: The shape of x.
    """

    exact = frozenset({Support.REAL, Support.UNIT_INTERVAL, Support.EIGHT_BIT})
    caveats: Mapping[Support, str] = {Support.EIGHT_BIT: _FREE_DENSITY_AT_LEVELS}

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        super().__init__(in_shape, event_shape)
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def natural_mean(self, mean: Tensor) -> Tensor:
        return mean

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.DiagonalNormal:
        (loc,) = self.parameters_of(features, batch)
        return distributions.DiagonalNormal(loc, bounded(self.log_scale), len(self.event_shape))


class HeteroscedasticNormal(Likelihood):
    """A normal density whose standard deviation is predicted from z too (Kingma and Welling, 2014, appendix C.2).

    Its likelihood has no upper bound: with z a network can single out an example and let its standard deviations go to
    0 (Mattei and Frellsen, 2018, "Leveraging the exact likelihood of deep latent variable models"). They stop at e^-10.
    """

    exact = frozenset({Support.REAL, Support.UNIT_INTERVAL, Support.EIGHT_BIT})
    caveats: Mapping[Support, str] = {Support.EIGHT_BIT: _FREE_DENSITY_AT_LEVELS}
    num_parameters = 2

    def natural_mean(self, mean: Tensor) -> Tensor:
        return torch.stack([mean, torch.zeros_like(mean)])

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.DiagonalNormal:
        loc, log_scale = self.parameters_of(features, batch)
        return distributions.DiagonalNormal(loc, bounded(log_scale), len(self.event_shape))


class CalibratedNormal(Likelihood):
    r"""A normal density at its best standard deviation: the optimal sigma-VAE.

    Of all \(\sigma\) shared by all values, the one that makes a batch most likely is known (Rybkin, Daniilidis and
    Levine, 2021, "Simple and effective VAE training with calibrated decoders"),

    $$\sigma^{*2} = \frac{1}{K B D} \sum_{k, b, d} (x_{bd} - \mu_d(z_{kb}))^2$$

    so it is computed, not learned. **In training** log p(x|z) is taken at the \(\sigma^*\) of the batch it is asked
    for. A density that looks at the values it is evaluated at is none, so **in evaluation mode** \(\sigma\) is a
    constant of the model: the root of a running mean of the batches' \(\sigma^{*2}\). Then log p(x|z) is proper, and an
    example's does not depend on its neighbours. Before any training that constant is 1.

    Departures from the paper: \(\sigma^*\) is held constant in the gradient. For a mean of log p(x|z) over the batch
    that is the same gradient, since the derivative by \(\sigma\) vanishes at \(\sigma^*\); for others
    (importance-weighted bounds, say) it is the gradient at a given \(\sigma\), which is what those bounds are made for.
    The bound on \(\log\sigma\) is this package's \(\pm 10\). The running mean follows the weights as they are trained,
    also where an average of the weights is kept.

    Args:
        in_shape: The shape of the features.
        event_shape: The shape of x.
        decay: How much of the running mean each update keeps, from 0 to below 1; less in the first updates, so that the
            initial value is forgotten at once. A batch's value is a mean over many values of x and varies little, so a
            short memory is enough, and one that is too long remembers weights that were worse.

    Raises:
        UsageError: `decay` is out of range.
    """

    exact = frozenset({Support.REAL, Support.UNIT_INTERVAL, Support.EIGHT_BIT})
    caveats: Mapping[Support, str] = {Support.EIGHT_BIT: _DENSITY_AT_LEVELS}
    variance: Tensor
    updates: Tensor

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...], decay: float = 0.95) -> None:
        super().__init__(in_shape, event_shape)
        if not 0 <= decay < 1:
            raise UsageError(f"The decay of a CalibratedNormal's running variance is from 0 to below 1; got {decay}.")
        self.decay = decay
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("updates", torch.tensor(0.0))

    def natural_mean(self, mean: Tensor) -> Tensor:
        return mean

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.DiagonalNormal:
        (loc,) = self.parameters_of(features, batch)
        event_ndim = len(self.event_shape)
        log_scale = _log_root(self.variance)
        if self.training:
            return _AtOptimalScale(loc, log_scale, event_ndim, self._observe)
        return distributions.DiagonalNormal(loc, log_scale, event_ndim)

    def _observe(self, variance: Tensor) -> None:
        with torch.no_grad():
            self.updates += 1
            # A plain mean until it has as many terms as the decay remembers.
            self.variance.lerp_(variance.to(self.variance), (1 / self.updates).clamp_min(1 - self.decay))


class _AtOptimalScale(distributions.DiagonalNormal):
    """A normal distribution whose `log_prob` takes the scale that is best for the values it is asked for.

    Args:
        loc: The mean.
        log_scale: The scale for everything else.
        event_ndim: How many of the last axes are the event.
        observe: Is told each best variance.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, event_ndim: int, observe: Callable[[Tensor], None]) -> None:
        super().__init__(loc, log_scale, event_ndim)
        self._observe = observe

    def log_prob(self, value: Tensor) -> Tensor:
        variance = (value - self.loc).detach().square().mean()
        self._observe(variance)
        return distributions.DiagonalNormal(self.loc, _log_root(variance), self.event_ndim).log_prob(value)


def _log_root(variance: Tensor) -> Tensor:
    return bounded(0.5 * variance.log())
