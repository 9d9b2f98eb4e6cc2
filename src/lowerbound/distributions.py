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

**Full normal.** The covariance is \(\Sigma = L L^T\), with L lower triangular and positive on its diagonal. With
\(m = \mu_1 - \mu_2\),

$$KL(N_1 \| N_2) = \tfrac12 \big(\|L_2^{-1} L_1\|_F^2 + \|L_2^{-1} m\|^2 - D\big)
  + \sum_d \log L_{2,dd} - \log L_{1,dd}$$

**Mixture.** \(p(z) = \sum_m \pi_m\, p_m(z)\), with the sum taken in logarithms. Its KL to anything has no closed form.

**Delta** puts all its mass on one point. It makes an autoencoder out of the same composition; it has no density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.distributions import Distribution, constraints, kl, register_kl

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Numbers at a time in the array of all values against all components of a mixture, where no gradient is wanted: few
# enough to stay in the processor's cache.
_PIECE = 1 << 18


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
        return self.from_noise(eps)

    def from_noise(self, eps: Tensor) -> Tensor:
        """Returns the draw that standard normal noise `[*sample, *batch, *event]` stands for."""
        if eps.ndim == self.loc.ndim + 1 and len(eps) == 1:
            # One draw, the common case: nothing is to be summed over draws on the way back.
            return torch.addcmul(self.loc, self.log_scale.exp(), eps[0])[None]
        return torch.addcmul(self.loc, self.log_scale.exp(), eps)

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

    def __getitem__(self, index: Tensor) -> DiagonalNormal:
        """Returns the members of the batch at `index`."""
        return DiagonalNormal(self.loc[index], self.log_scale.expand_as(self.loc)[index], self.event_ndim)


@register_kl(DiagonalNormal, DiagonalNormal)
def _kl_diagonal(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    return _sum_event(_kl_diagonal_each(q, p), q.event_ndim)


def _kl_diagonal_each(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    difference = q.log_scale - p.log_scale
    scaled = (q.loc - p.loc) * torch.exp(-p.log_scale)
    return 0.5 * (torch.expm1(2 * difference) + scaled.square()) - difference


class FullNormal(Distribution):
    """A normal distribution with a full covariance, over a vector.

    What torch's `MultivariateNormal` is, without checks, and with one triangular solve for all the draws that share a
    covariance. Its arithmetic is that of its parameters, under autocast too.

    Args:
        loc: The mean, `[*batch, D]`.
        scale_tril: L, lower triangular with a positive diagonal, `[*batch, D, D]`; the covariance is L L^T.

    Example:
        >>> q = FullNormal(torch.zeros(5, 3), torch.eye(3).expand(5, 3, 3))
        >>> q.batch_shape, q.event_shape, q.rsample((2,)).shape
        (torch.Size([5]), torch.Size([3]), torch.Size([2, 5, 3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        self.loc = loc
        self.scale_tril = scale_tril
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.independent(constraints.real, 1)

    @property
    def mean(self) -> Tensor:
        """The mean, `[*batch, D]`."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mode: the mean."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each component by itself, `[*batch, D]`."""
        return self.scale_tril.square().sum(-1)

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of each component by itself, `[*batch, D]`."""
        return self.variance.sqrt()

    @property
    def _half_log_det(self) -> Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws loc + L eps, with eps ~ N(0, I): differentiable in loc and L."""
        eps = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
        return self.from_noise(eps)

    def from_noise(self, eps: Tensor) -> Tensor:
        """Returns the draw that standard normal noise `[*sample, *batch, D]` stands for."""
        with torch.autocast(self.loc.device.type, enabled=False):
            return self.loc + self._each_column(torch.matmul, eps)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, nats, `[*sample, *batch]`."""
        standard = self._each_column(_solve, value - self.loc)
        log_prob: Tensor = -0.5 * standard.square().sum(-1) - self._half_log_det
        return log_prob - _HALF_LOG_2PI * self.event_shape[0]

    def _each_column(self, apply: Callable[[Tensor, Tensor], Tensor], vectors: Tensor) -> Tensor:
        """Applies `apply(L, .)` to vectors `[*sample, *batch, D]`: the draws are columns of one matrix a covariance."""
        ndim = len(self.batch_shape) + 1
        rows = vectors.reshape(-1, *vectors.shape[vectors.ndim - ndim :])
        columns = apply(self.scale_tril, rows.movedim(0, -1))
        return columns.movedim(-1, 0).reshape(vectors.shape)

    def entropy(self) -> Tensor:
        """Returns the entropy, nats, `[*batch]`."""
        return self._half_log_det + (0.5 + _HALF_LOG_2PI) * self.event_shape[0]

    def expand(self, batch_shape: Any, _instance: Any = None) -> FullNormal:
        """Returns the same distribution with a larger batch shape."""
        shape = (*batch_shape, *self.event_shape)
        return FullNormal(self.loc.expand(shape), self.scale_tril.expand(*shape, *self.event_shape))

    def __getitem__(self, index: Tensor) -> FullNormal:
        """Returns the members of the batch at `index`."""
        return FullNormal(self.loc[index], self.scale_tril[index])


def _solve(tril: Tensor, columns: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(tril, columns, upper=False)
    return solved


@register_kl(FullNormal, DiagonalNormal)
def _kl_full_diagonal(q: FullNormal, p: DiagonalNormal) -> Tensor:
    log_scale = p.log_scale.expand_as(p.loc)
    inverse = torch.exp(-log_scale)
    spread = (q.scale_tril * inverse.unsqueeze(-1)).square().sum((-2, -1))
    away = ((q.loc - p.loc) * inverse).square().sum(-1)
    return 0.5 * (spread + away - q.event_shape[0]) + log_scale.sum(-1) - q._half_log_det


@register_kl(FullNormal, FullNormal)
def _kl_full(q: FullNormal, p: FullNormal) -> Tensor:
    tril, difference = torch.broadcast_tensors(q.scale_tril, (q.loc - p.loc).unsqueeze(-1))
    columns = _solve(p.scale_tril, torch.cat([tril, difference[..., :1]], -1))
    return 0.5 * (columns.square().sum((-2, -1)) - q.event_shape[0]) + p._half_log_det - q._half_log_det


@register_kl(DiagonalNormal, FullNormal)
def _kl_diagonal_full(q: DiagonalNormal, p: FullNormal) -> Tensor:
    kl_full: Tensor = _kl_full(FullNormal(q.loc, torch.diag_embed(q.stddev)), p)
    return kl_full


class Components(Protocol):
    """What a `Mixture` needs of its parts, batch shape `[M]`."""

    @property
    def event_shape(self) -> torch.Size: ...
    @property
    def mean(self) -> Tensor: ...
    @property
    def variance(self) -> Tensor: ...
    def log_prob(self, value: Tensor) -> Tensor: ...
    def __getitem__(self, index: Tensor) -> Distribution: ...


class Mixture(Distribution):
    """A mixture of distributions of one family, over a whole event.

    Args:
        logits: The logarithms of the weights, up to a constant, `[M]`.
        components: M distributions: batch shape `[M]`. They are evaluated at values `[..., 1, *event]`, and indexed.

    Example:
        >>> p = Mixture(torch.zeros(2), DiagonalNormal(torch.tensor([[-3.0], [3.0]]), torch.zeros(2, 1)))
        >>> p.log_prob(torch.zeros(4, 1)).shape, p.sample((5,)).shape, p.stddev
        (torch.Size([4]), torch.Size([5, 1]), tensor([3.1623]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, logits: Tensor, components: Components) -> None:
        self.logits = logits
        self.components = components
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def weights(self) -> Tensor:
        """The weights, which sum to 1, `[M]`."""
        return self.logits.softmax(0)

    @property
    def mean(self) -> Tensor:
        """The mean, `[*event]`."""
        return self._average(self.components.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each component of the event, `[*event]`: that within the parts and that between them."""
        between = (self.components.mean - self.mean).square()
        return self._average(self.components.variance + between)

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of each component of the event, `[*event]`."""
        return self.variance.sqrt()

    def _average(self, values: Tensor) -> Tensor:
        return (self.weights.reshape(-1, *[1] * len(self.event_shape)) * values).sum(0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Picks a part for each draw and draws from it, `[*sample, *event]`; there is no gradient."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            which = torch.multinomial(self.weights, shape.numel(), replacement=True)
            return self.components[which].sample().reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, nats, `[*sample]`.

        Without gradients, values are taken a few at a time, so that memory does not grow with values times components;
        with them, all of it must be remembered anyway.
        """
        if torch.is_grad_enabled():
            return self._log_prob(value)
        flat = value.reshape(-1, *self.event_shape)
        at_once = max(1, _PIECE // (len(self.logits) * self.event_shape.numel()))
        shape = value.shape[: value.ndim - len(self.event_shape)]
        return torch.cat([self._log_prob(part) for part in flat.split(at_once)]).reshape(shape)

    def _log_prob(self, value: Tensor) -> Tensor:
        each = self.components.log_prob(value.unsqueeze(-1 - len(self.event_shape)))
        return torch.logsumexp(self.logits.log_softmax(0) + each, -1)


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
        return -_sum_event(_cross_entropy(self.logits, value), self.event_ndim)


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
    return -_cross_entropy(logits, value)


def _cross_entropy(logits: Tensor, value: Tensor) -> Tensor:
    # One fused kernel, which unlike torch's softplus has no threshold beyond which it approximates.
    logits, value = torch.broadcast_tensors(logits, value)
    return F.binary_cross_entropy_with_logits(logits, value, reduction="none")


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
