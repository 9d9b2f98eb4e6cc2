r"""Probabilities of levels and of counts.

A picture of 8 bits has 256 *levels* a value, \(x = k/255\); what is counted has no upper end. Both are discrete, so
`log_prob` here is the logarithm of a probability and never above 0, where a density's may be anything.

**Discretised logistic** (Kingma et al., 2016, "Improving variational inference with inverse autoregressive flow";
Salimans et al., 2017, "PixelCNN++"). A level gets the mass that a logistic density has nearer to it than to any other
level, and the two outermost ones all that lies beyond them. With \(a < b\) the standardised edges of the level's bin,

$$P(k) = \sigma(b) - \sigma(a), \qquad a, b = \frac{(k \mp \tfrac12)/255 - \mu}{s}, \qquad a = -\infty\ (k = 0),\;
  b = \infty\ (k = 255)$$

A difference of two numbers near 1 would lose everything in float32. It need not be taken, because exactly

$$\log P(k) = \log\sigma(b) + \log\sigma(-a) + \log(1 - e^{-(b - a)})$$

and \(b - a = 1/(255 s)\) does not depend on \(\mu\) or k. At an open end the terms with infinities are 0. (PixelCNN++
takes the difference, and the density where that vanishes; there is no need here, and no seam.)

**Counts.** The Poisson probability has one parameter, so its variance is its mean. The negative binomial, a Poisson
whose rate is itself gamma distributed, adds a *total count* r (the inverse of the dispersion):

$$\log P(k) = \log\frac{\Gamma(k + r)}{k!\,\Gamma(r)} + k \log\frac{\mu}{\mu + r} + r \log\frac{r}{\mu + r},
  \qquad E[k] = \mu, \quad Var[k] = \mu + \mu^2 / r$$

and becomes the Poisson as r grows. Written so, large terms cancel: at r = 20,000 float32 has no correct second decimal.
What is evaluated is arranged around \(\Gamma(k + r) / (\Gamma(r)\,r^k)\), which tends to 1.

**Codes.** z itself may be discrete: `CodeMass` is what an encoder that quantises gives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributions as td
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.distributions import Distribution, constraints

HIGHEST_LEVEL = 255
# From here on Stirling's series, cut after its third term, is exact to 1e-10.
_STIRLING_FROM = 10.0


class _Independent(Distribution):
    """Independent variables over a whole event.

    Args:
        shape: `[*batch, *event]`.
        event_ndim: How many of the last axes are the event.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  torch's own convention

    def __init__(self, shape: torch.Size, event_ndim: int) -> None:
        self.event_ndim = event_ndim
        cut = len(shape) - event_ndim
        super().__init__(shape[:cut], shape[cut:], validate_args=False)

    def _over_event(self, each: Tensor) -> Tensor:
        return each.flatten(each.ndim - self.event_ndim).sum(-1) if self.event_ndim else each


class DiscretisedLogistic(_Independent):
    """A logistic density gathered on the levels 0, 1/255, ..., 1 (module docstring).

    Args:
        loc: The logistic's mean, in units of x, `[*batch, *event]`.
        log_scale: The logarithm of its scale, in units of x, of the same shape; its standard deviation is 1.81 scales.
        event_ndim: How many of the last axes are the event.

    Example:
        >>> levels = torch.arange(256) / 255
        >>> p = DiscretisedLogistic(torch.tensor(0.3), torch.tensor(-2.0), event_ndim=0)
        >>> round(p.log_prob(levels).exp().sum().item(), 5)
        1.0
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, event_ndim: int = 1) -> None:
        self.loc = loc
        self.log_scale = log_scale
        super().__init__(loc.shape, event_ndim)

    @property
    def mean(self) -> Tensor:
        """The mean of the levels, `[*batch, *event]`: not `loc`, because what lies beyond the ends is moved to them."""
        return _mean_level(self.loc, self.log_scale)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws levels, `[*sample, *batch, *event]`."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            return _draw_level(self.loc.expand(shape), self.log_scale.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of levels, nats, `[*sample, *batch]`; other values are taken to the nearest."""
        return self._over_event(_level_log_prob(self.loc, self.log_scale, value))


class DiscretisedLogisticMixture(_Independent):
    """For each value a mixture of M discretised logistics (Salimans et al., 2017).

    The values of an event are independent, the colour channels of a pixel too. PixelCNN++ lets the mean of green depend
    on red, and that of blue on both; here whatever ties channels together has to go through z.

    Args:
        logits: Unnormalised log-weights of the components, `[*batch, *event, M]`.
        loc: Their means, in units of x, `[*batch, *event, M]`.
        log_scale: The logarithms of their scales, in units of x, `[*batch, *event, M]`.
        event_ndim: How many axes the event has.
    """

    def __init__(self, logits: Tensor, loc: Tensor, log_scale: Tensor, event_ndim: int = 1) -> None:
        self.logits = logits
        self.loc = loc
        self.log_scale = log_scale
        super().__init__(logits.shape[:-1], event_ndim)

    @property
    def mean(self) -> Tensor:
        """The mean of the levels, `[*batch, *event]`."""
        return (torch.softmax(self.logits, -1) * _mean_level(self.loc, self.log_scale)).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws levels, `[*sample, *batch, *event]`."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            component = _draw_category(self.logits, sample_shape).unsqueeze(-1)
            loc, log_scale = (t.expand(*shape, -1).gather(-1, component) for t in (self.loc, self.log_scale))
            return _draw_level(loc.squeeze(-1), log_scale.squeeze(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of levels, nats, `[*sample, *batch]`."""
        component = _level_log_prob(self.loc, self.log_scale, value.unsqueeze(-1))
        return self._over_event(torch.logsumexp(torch.log_softmax(self.logits, -1) + component, -1))


class Categorical(_Independent):
    """A probability of its own for each of L levels 0, 1/(L - 1), ..., 1.

    Nothing says that neighbouring levels are alike: the most flexible choice for one value, and the one that needs most
    data (van den Oord et al., 2016, "Pixel recurrent neural networks").

    Args:
        logits: Unnormalised log-probabilities, `[*batch, *event, L]`; L = 256 for 8 bits.
        event_ndim: How many axes the event has.

    Example:
        >>> p = Categorical(torch.zeros(3, 256))
        >>> p.event_shape, p.log_prob(torch.tensor([0.0, 0.2, 1.0]))
        (torch.Size([3]), tensor(-16.6355))
    """

    def __init__(self, logits: Tensor, event_ndim: int = 1) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], event_ndim)

    @property
    def mean(self) -> Tensor:
        """The mean of the levels, `[*batch, *event]`."""
        levels = torch.linspace(0, 1, self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
        return (torch.softmax(self.logits, -1) * levels).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws levels, `[*sample, *batch, *event]`."""
        with torch.no_grad():
            return _draw_category(self.logits, sample_shape).to(self.logits.dtype) / (self.logits.shape[-1] - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of levels, nats, `[*sample, *batch]`; other values are taken to the nearest."""
        log_p = torch.log_softmax(self.logits, -1)
        level = torch.round(value * (self.logits.shape[-1] - 1)).long()
        shape = torch.broadcast_shapes(log_p.shape[:-1], level.shape)
        chosen = log_p.expand(*shape, -1).gather(-1, level.expand(shape).unsqueeze(-1))
        return self._over_event(chosen.squeeze(-1))


class Poisson(_Independent):
    """Independent Poisson counts, from the logarithm of the rate: k log(rate) - rate - log k!.

    In float32 the rounding error of a log-probability is near 1e-7 k log k, so 0.01 nats at k = 10,000.

    Args:
        log_rate: The logarithm of the mean, `[*batch, *event]`.
        event_ndim: How many of the last axes are the event.

    Example:
        >>> Poisson(torch.zeros(2)).log_prob(torch.tensor([0.0, 2.0]))
        tensor(-2.6931)
    """

    def __init__(self, log_rate: Tensor, event_ndim: int = 1) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, event_ndim)

    @property
    def mean(self) -> Tensor:
        """The rate, `[*batch, *event]`."""
        return self.log_rate.exp()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws counts, `[*sample, *batch, *event]`."""
        with torch.no_grad():
            return torch.poisson(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of counts, nats, `[*sample, *batch]`."""
        # torch's own starts from the rate, which leaves the range of float32 before its logarithm does.
        return self._over_event(value * self.log_rate - self.log_rate.exp() - torch.lgamma(value + 1))


class NegativeBinomial(_Independent):
    """Independent counts with a variance above their mean (module docstring).

    Args:
        log_mean: The logarithm of the mean, `[*batch, *event]`.
        log_total: The logarithm of the total count r, of the same shape; the variance is mean + mean^2 / r.
        event_ndim: How many of the last axes are the event.

    Example:
        >>> p = NegativeBinomial(torch.zeros(1), torch.zeros(1))  # mean 1 and r = 1: P(k) = 2^-(k + 1)
        >>> p.log_prob(torch.tensor([[0.0], [3.0]])).exp()
        tensor([0.5000, 0.0625])
    """

    def __init__(self, log_mean: Tensor, log_total: Tensor, event_ndim: int = 1) -> None:
        self.log_mean = log_mean
        self.log_total = log_total
        super().__init__(log_mean.shape, event_ndim)

    @property
    def mean(self) -> Tensor:
        """The mean, `[*batch, *event]`."""
        return self.log_mean.exp()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws counts, `[*sample, *batch, *event]`: Poisson ones, whose rates are drawn from a gamma density."""
        with torch.no_grad():
            total = self.log_total.exp()
            rate = td.Gamma(total, total / self.mean, validate_args=False).sample(torch.Size(sample_shape))
            return torch.poisson(rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of counts, nats, `[*sample, *batch]`."""
        total = self.log_total.exp()
        log_more = -F.logsigmoid(self.log_total - self.log_mean)  # log(1 + mean / r)
        ways = _log_rising(total, value) - torch.lgamma(value + 1)
        return self._over_event(ways + value * (self.log_mean - log_more) - total * log_more)


class CodeMass(Distribution):
    """All probability on one sequence of codes: what an encoder that quantises gives.

    z is one of finitely many values, so this is a probability mass: its logarithm is 0 at its own value and minus
    infinity everywhere else, and its entropy is 0. (A `Delta`, over a continuous z, has no density at all.)

    Args:
        z: The codes as vectors, `[*batch, T, D]`. The gradient of a draw is that of this tensor.
        codes: The same as numbers, int64 `[*batch, T]`.
        raw: What was quantised, `[*batch, T, D]`.

    Example:
        >>> z = torch.tensor([[1.0], [3.0]])
        >>> q = CodeMass(z, torch.tensor([0, 1]), z)
        >>> q.log_prob(torch.stack([z, z + 1])), q.entropy()
        (tensor([0., -inf]), tensor(0.))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, z: Tensor, codes: Tensor, raw: Tensor) -> None:
        self.z = z
        self.codes = codes
        self.raw = raw
        super().__init__(z.shape[:-2], z.shape[-2:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The one value, `[*batch, T, D]`."""
        return self.z

    @property
    def mode(self) -> Tensor:
        """The one value."""
        return self.z

    @property
    def stddev(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.z)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns the one value, `[*sample, *batch, T, D]`."""
        return self.z.expand(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns 0 where the value is the one there is, and minus infinity elsewhere, nats, `[*sample, *batch]`."""
        own = (value == self.z).flatten(-2).all(-1)
        return torch.where(own, 0.0, -math.inf).to(self.z.dtype)

    def entropy(self) -> Tensor:
        """Returns 0, `[*batch]`."""
        return self.z.new_zeros(self.batch_shape)


def _level_log_prob(loc: Tensor, log_scale: Tensor, value: Tensor) -> Tensor:
    level = torch.round(value * HIGHEST_LEVEL)
    precision = torch.exp(-log_scale)
    # One level's upper edge is the same number as the next one's lower edge, so that nothing is lost between them.
    below = ((level - 0.5) / HIGHEST_LEVEL - loc) * precision
    above = ((level + 0.5) / HIGHEST_LEVEL - loc) * precision
    first, last = level == 0, level == HIGHEST_LEVEL
    width = torch.log(-torch.expm1(-precision / HIGHEST_LEVEL))
    return (
        F.logsigmoid(above).masked_fill(last, 0.0)
        + F.logsigmoid(-below).masked_fill(first, 0.0)
        + torch.where(first | last, 0.0, width)
    )


def _draw_level(loc: Tensor, log_scale: Tensor) -> Tensor:
    uniform = torch.rand_like(loc)
    x = loc + log_scale.exp() * torch.logit(uniform, eps=torch.finfo(loc.dtype).tiny)
    return torch.round(x * HIGHEST_LEVEL).clamp(0, HIGHEST_LEVEL) / HIGHEST_LEVEL


def _mean_level(loc: Tensor, log_scale: Tensor) -> Tensor:
    # E[k] is the sum over k >= 1 of P(at least k). One level after the other: all at once would be 255 pictures.
    precision = torch.exp(-log_scale)
    total = torch.zeros_like(loc)
    for level in range(1, HIGHEST_LEVEL + 1):
        total = total + torch.sigmoid((loc - (level - 0.5) / HIGHEST_LEVEL) * precision)
    return total / HIGHEST_LEVEL


def _draw_category(logits: Tensor, sample_shape: Any) -> Tensor:
    category: Tensor = td.Categorical(logits=logits, validate_args=False).sample(torch.Size(sample_shape))
    return category


def _log_rising(total: Tensor, count: Tensor) -> Tensor:
    """Returns log(Gamma(r + k) / (Gamma(r) r^k)) per element, which tends to 0 as r grows."""
    large = total > _STIRLING_FROM
    r = torch.where(large, total, _STIRLING_FROM)
    by_series = (r + count - 0.5) * torch.log1p(count / r) - count + _stirling_rest(r + count) - _stirling_rest(r)
    r = torch.where(large, _STIRLING_FROM, total)
    return torch.where(large, by_series, torch.lgamma(r + count) - torch.lgamma(r) - count * torch.log(r))


def _stirling_rest(r: Tensor) -> Tensor:
    """Returns log Gamma(r) - ((r - 1/2) log r - r + log(2 pi) / 2) for r >= 10, by Stirling's series."""
    inverse = 1 / r
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))
