r"""Densities that torch lacks, or that a VAE needs in another form.

**Diagonal normal.** With \(s = \log\sigma\) kept as it comes from the network, nothing is exponentiated only
to have its logarithm taken again:

$$\log N(z; \mu, \sigma) = -\sum_d \tfrac12 \big((z_d - \mu_d) e^{-s_d}\big)^2 + s_d + \tfrac12\log 2\pi$$

$$KL(N_1 \| N_2) = \sum_d s_{2,d} - s_{1,d}
  + \tfrac12 \big(e^{2 (s_{1,d} - s_{2,d})} + (\mu_{1,d} - \mu_{2,d})^2 e^{-2 s_{2,d}} - 1\big)$$

**Continuous Bernoulli** (Loaiza-Ganem and Cunningham, 2019, "The continuous Bernoulli: fixing a pervasive error in
variational autoencoders"). The Bernoulli formula at a grey value is no density: it does not integrate to 1 over [0, 1].
What is missing is a constant that depends on the parameter, \(C(\lambda)\). In terms of the logit \(\ell\) it is short,
\(C = \ell / \tanh(\ell / 2)\), which tends to 2 at \(\ell = 0\).

**Delta** puts all its mass on one point. It makes an autoencoder out of the same composition; it has no density.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.distributions import Distribution, constraints, kl, register_kl

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class DiagonalNormal(Distribution):
    """A normal distribution with independent components, over a whole event.

    Args:
        loc: The mean, `[*batch, *event]`.
        log_scale: The logarithm of the standard deviation, broadcastable to `loc`.
        event_ndim: How many of the last axes are the event.

    Example:
        >>> q = DiagonalNormal(torch.zeros(5, 3), torch.zeros(5, 3))
        >>> q.batch_shape, q.event_shape, q.rsample((2,)).shape
        (torch.Size([5]), torch.Size([3]), torch.Size([2, 5, 3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  torch's own convention
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, event_ndim: int = 1) -> None:
        self.loc = loc
        self.log_scale = log_scale
        self.event_ndim = event_ndim
        cut = loc.ndim - event_ndim
        super().__init__(loc.shape[:cut], loc.shape[cut:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.independent(constraints.real, self.event_ndim)

    @property
    def mean(self) -> Tensor:
        """The mean, `[*batch, *event]`."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mode: the mean."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """The standard deviation, `[*batch, *event]`."""
        return self.log_scale.exp().expand_as(self.loc)

    @property
    def variance(self) -> Tensor:
        """The variance, `[*batch, *event]`."""
        return (2 * self.log_scale).exp().expand_as(self.loc)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws loc + scale * eps, with eps ~ N(0, I): differentiable in loc and log_scale."""
        eps = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.log_scale.exp() * eps

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, nats, `[*sample, *batch]`."""
        return _sum_event(self.log_prob_each(value), self.event_ndim)

    def log_prob_each(self, value: Tensor) -> Tensor:
        """Returns the log-density of each component by itself, nats, `[*sample, *batch, *event]`."""
        standard = (value - self.loc) * torch.exp(-self.log_scale)
        return -0.5 * standard.square() - self.log_scale - _HALF_LOG_2PI

    def entropy(self) -> Tensor:
        """Returns the entropy, nats, `[*batch]`."""
        each = (self.log_scale + (0.5 + _HALF_LOG_2PI)).expand_as(self.loc)
        return _sum_event(each, self.event_ndim)

    def widened(self, factor: float) -> DiagonalNormal:
        """Returns the distribution with the same mean and its standard deviation multiplied by `factor`, above 0."""
        return DiagonalNormal(self.loc, self.log_scale + math.log(factor), self.event_ndim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiagonalNormal:
        """Returns the same distribution with a larger batch shape."""
        shape = (*batch_shape, *self.event_shape)
        return DiagonalNormal(self.loc.expand(shape), self.log_scale.expand_as(self.loc).expand(shape), self.event_ndim)


@register_kl(DiagonalNormal, DiagonalNormal)
def _kl_diagonal(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    return _sum_event(_kl_diagonal_each(q, p), q.event_ndim)


def _kl_diagonal_each(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    difference = q.log_scale - p.log_scale
    scaled = (q.loc - p.loc) * torch.exp(-p.log_scale)
    return 0.5 * (torch.exp(2 * difference) + scaled.square() - 1) - difference


class Delta(Distribution):
    """All mass at one point: what a plain autoencoder's encoder gives.

    It can be sampled (always the same value), but has no density: `log_prob` refuses.

    Args:
        loc: The point, `[*batch, *event]`.
        event_ndim: How many of the last axes are the event.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor, event_ndim: int = 1) -> None:
        self.loc = loc
        self.event_ndim = event_ndim
        cut = loc.ndim - event_ndim
        super().__init__(loc.shape[:cut], loc.shape[cut:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The point."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.loc)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns the point, `[*sample, *batch, *event]`."""
        return self.loc.expand(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Refuses: a point has no density.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("A Delta distribution has no density, so no bound on log p(x) can be had from it.")


class Bernoulli(Distribution):
    """Independent Bernoulli variables over a whole event, from logits.

    `log_prob` also accepts values strictly between 0 and 1, where it is minus the cross-entropy: a training target that
    is in wide use, but not the logarithm of a density.

    Args:
        logits: log p(1) - log p(0), `[*batch, *event]`.
        event_ndim: How many of the last axes are the event.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, logits: Tensor, event_ndim: int = 1) -> None:
        self.logits = logits
        self.event_ndim = event_ndim
        cut = logits.ndim - event_ndim
        super().__init__(logits.shape[:cut], logits.shape[cut:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The probability of a 1, `[*batch, *event]`."""
        return torch.sigmoid(self.logits)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws zeros and ones, `[*sample, *batch, *event]`."""
        with torch.no_grad():
            probability = self.mean.expand(self._extended_shape(torch.Size(sample_shape)))
            return torch.bernoulli(probability)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns value log p + (1 - value) log(1 - p), summed over the event, nats, `[*sample, *batch]`."""
        return _sum_event(bernoulli_log_prob(self.logits, value), self.event_ndim)


class ContinuousBernoulli(Distribution):
    """Independent continuous Bernoulli variables on [0, 1], from logits (module docstring).

    torch has one too, parametrised by a probability that it clamps, which in float32 stops the logit at 16 and the
    density with it; this one is exact for any logit.

    Args:
        logits: The natural parameter, `[*batch, *event]`.
        event_ndim: How many of the last axes are the event.

    Example:
        >>> x = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:, None]
        >>> p = ContinuousBernoulli(torch.tensor([40.0], dtype=torch.float64))
        >>> round(torch.trapezoid(p.log_prob(x).exp(), x[:, 0]).item(), 4)
        1.0
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, logits: Tensor, event_ndim: int = 1) -> None:
        self.logits = logits
        self.event_ndim = event_ndim
        cut = logits.ndim - event_ndim
        super().__init__(logits.shape[:cut], logits.shape[cut:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, `[*batch, *event]`: 1 / (1 - exp(-l)) - 1 / l, which is 1/2 at l = 0."""
        small = self.logits.abs() < 0.1
        safe = torch.where(small, torch.ones_like(self.logits), self.logits)
        exact = -1 / torch.expm1(-safe) - 1 / safe
        series = 0.5 + self.logits / 12 - self.logits**3 / 720 + self.logits**5 / 30240
        return torch.where(small, series, exact)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws by the inverse of the distribution function, `[*sample, *batch, *event]`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        small = self.logits.abs() < 1e-3
        # Written for |l|, so that the exponential cannot overflow, and mirrored where l < 0.
        safe = torch.where(small, torch.ones_like(self.logits), self.logits.abs())
        x = 1 + torch.log(u + (1 - u) * torch.exp(-safe)) / safe
        x = torch.where(self.logits < 0, 1 - x, x)
        near_uniform = u + 0.5 * self.logits * u * (1 - u)
        return torch.where(small, near_uniform, x).clamp(0, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, nats, `[*sample, *batch]`."""
        each = bernoulli_log_prob(self.logits, value) + self.log_normaliser(self.logits)
        return _sum_event(each, self.event_ndim)

    @staticmethod
    def log_normaliser(logits: Tensor) -> Tensor:
        """Returns log C = log(l / tanh(l / 2)) per element; log 2 at l = 0."""
        magnitude = logits.abs()
        small = magnitude < 0.1
        safe = torch.where(small, torch.ones_like(magnitude), magnitude)
        exact = safe.log() - torch.tanh(safe / 2).log()
        series = math.log(2.0) + magnitude**2 / 12 - magnitude**4 * 7 / 1440
        return torch.where(small, series, exact)


def bernoulli_log_prob(logits: Tensor, value: Tensor) -> Tensor:
    """Returns value * logits - softplus(logits) per element, broadcast.

    Example:
        >>> bernoulli_log_prob(torch.tensor(0.0), torch.tensor(1.0))
        tensor(-0.6931)
    """
    # One fused kernel, which unlike torch's softplus has no threshold beyond which it approximates.
    logits, value = torch.broadcast_tensors(logits, value)
    return -F.binary_cross_entropy_with_logits(logits, value, reduction="none")


def analytic_kl(q: Distribution, p: Distribution) -> Tensor | None:
    """Returns KL(q || p) in nats, `[*batch]`, or None where no closed form is known."""
    try:
        return kl.kl_divergence(q, p)
    except NotImplementedError:
        return None


def analytic_kl_each(q: Distribution, p: Distribution) -> Tensor | None:
    """Returns the KL of each component in nats, `[*batch, *event]`, or None where no closed form is known.

    Where both have independent components the KL is a sum over them, and these are its terms.
    """
    if isinstance(q, DiagonalNormal) and isinstance(p, DiagonalNormal):
        return _kl_diagonal_each(q, p)
    return None


def _sum_event(each: Tensor, event_ndim: int) -> Tensor:
    return each.flatten(each.ndim - event_ndim).sum(-1) if event_ndim else each
