r"""The bound with its rate held, or taken apart and weighted.

**Held.** `FreeBits` does not punish a rate below a threshold, so that no part of z is given up early; `Capacity` asks
for a certain rate.

**Taken apart.** Averaged over the data, the rate has three parts (Chen, Li, Grosse and Duvenaud, 2018, eq. 2). With the
aggregate posterior \(q(z) = \frac1N \sum_n q(z|x_n)\),

$$E_n[KL(q(z|x_n)\,\|\,p(z))] = \underbrace{KL(q(z, n)\,\|\,q(z)\,p(n))}_{\text{mutual information}}
  + \underbrace{KL\big(q(z)\,\|\,\textstyle\prod_d q(z_d)\big)}_{\text{total correlation}}
  + \underbrace{\sum_d KL(q(z_d)\,\|\,p(z_d))}_{\text{dimension-wise KL}}$$

`BetaTC` weighs them apart; `DIPVAE` asks, more simply, that the covariance of q(z) be the identity.

Where a term belongs to a batch and not to an example, it is spread over the loss so that the mean over the batch is
right; a single example's loss then has no meaning of its own.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from lowerbound.distributions import DiagonalNormal, FullNormal
from lowerbound.errors import UsageError
from lowerbound.model import VAE, Trace
from lowerbound.nn import check_sizes
from lowerbound.objectives.base import (
    Objective,
    Terms,
    kl_of,
    rates_of,
    require_density,
    require_weights,
    risen,
)


@dataclass(frozen=True)
class FreeBits(Objective):
    r"""The ELBO with a rate that costs nothing below a threshold (Kingma et al., 2016, eq. 15).

    $$E_q[-\log p(x|z)] + \sum_g \max\big(\lambda,\, \overline{KL}_g\big)$$

    The bar is the mean over the batch: a group's KL counts where its *mean* is above the threshold, and then counts for
    every example; where the mean is below, the group costs `nats` and its KL has no gradient. The loss is then not the
    bound any more (it is above -ELBO); `elbo` still is.

    Attributes:
        nats: λ, what each group may carry for free, in nats.
        groups: Into how many equal, consecutive groups the components of z are divided: 1 for the KL as a whole, None
            for one group a component. Or the sizes of the groups, as a ladder's `latent_dims`: one group a layer.
        num_samples: Draws of z an example.

    Raises:
        UsageError: `nats` is negative, or a number of `groups` or `num_samples` is below 1.

    Example:
        >>> FreeBits(nats=2.0, groups=1).notes()[0][:50]
        'the model was trained with 2 nats free (free bits)'
    """

    nats: float = 0.1
    groups: int | tuple[int, ...] | None = None
    num_samples: int = 1

    def __post_init__(self) -> None:
        require_weights("free bits", nats=self.nats)
        groups = self.groups if isinstance(self.groups, tuple) else (1 if self.groups is None else self.groups,)
        check_sizes(groups=groups, num_samples=(self.num_samples,))

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x, self.num_samples)
        distortion, kl = -trace.log_px_z.mean(0), kl_of(trace)
        each = self._grouped(trace, kl)  # [B, groups]
        charged = torch.where(each.detach().mean(0) > self.nats, each, self.nats).sum(1)
        return Terms(distortion + charged, distortion, kl, -distortion - kl, rates_of(trace))

    def _grouped(self, trace: Trace, kl: Tensor) -> Tensor:
        if self.groups == 1:
            return kl[:, None]
        if trace.kl_each is None:
            raise _no_kl_each(trace.q, trace.p)
        flat = trace.kl_each.flatten(1)
        if isinstance(self.groups, tuple):
            return torch.stack([part.sum(1) for part in flat.split(self.groups, 1)], 1)
        return flat if self.groups is None else flat.unflatten(1, (self.groups, -1)).sum(2)

    def check(self, vae: VAE) -> None:
        require_density(vae)
        if self.groups == 1:
            return
        if not vae.has_kl_each:
            raise _no_kl_each(vae.example_posterior(), vae.prior())
        components = math.prod(vae.latent_shape)
        if isinstance(self.groups, tuple):
            if sum(self.groups) != components:
                raise UsageError(
                    f"Groups of {self.groups} components are {sum(self.groups)} together, but z has {components}. Give "
                    "sizes that add up to that, such as a ladder's latent_dims."
                )
        elif components % (self.groups or 1):
            raise UsageError(
                f"{components} components of z cannot be divided into {self.groups} equal groups; choose a number of "
                f"groups that divides {components}."
            )

    def notes(self) -> list[str]:
        if not self.nats:
            return []
        count = len(self.groups) if isinstance(self.groups, tuple) else self.groups
        where = "a component" if count is None else f"in each of {count} group(s) of components"
        free = f"the model was trained with {self.nats:g} nats free (free bits) {where}"
        return [f"{free}, so its loss is no bound; the numbers here are of the plain bound"]


@dataclass(frozen=True)
class Capacity(Objective):
    r"""A rate that is asked for, and rises (Burgess et al., 2018, "Understanding disentangling in β-VAE").

    $$E_q[-\log p(x|z)] + \gamma\,\big|\overline{KL} - C\big|$$

    The bar is the mean over the batch, as in published programs; the paper writes the KL of one x. Each example's loss
    holds its own KL with the sign that the mean gives, so only the mean of the loss is what is written above.

    Attributes:
        gamma: The weight.
        capacity: C at the end of its rise, in nats.
        warmup: Updates over which C rises linearly from 0.
        num_samples: Draws of z an example.

    Raises:
        UsageError: A value is negative, or `num_samples` is below 1.
    """

    gamma: float = 100.0
    capacity: float = 25.0
    warmup: int = 0
    num_samples: int = 1

    def __post_init__(self) -> None:
        require_weights("a Capacity", gamma=self.gamma, capacity=self.capacity, warmup=self.warmup)
        check_sizes(num_samples=(self.num_samples,))

    def target(self, step: int | None) -> float:
        """Returns C at an update, in nats.

        Example:
            >>> [Capacity(capacity=25, warmup=100).target(step) for step in (0, 50, 100, None)]
            [0.0, 12.5, 25.0, 25.0]
        """
        return self.capacity * risen(step, self.warmup)

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x, self.num_samples)
        distortion, kl = -trace.log_px_z.mean(0), kl_of(trace)
        excess = kl - self.target(step)
        loss = distortion + self.gamma * excess.detach().mean().sign() * excess
        return Terms(loss, distortion, kl, -distortion - kl, rates_of(trace))

    def check(self, vae: VAE) -> None:
        require_density(vae)

    def notes(self) -> list[str]:
        asked = f"the model was trained towards a rate of {self.capacity:g} nats (weight {self.gamma:g})"
        return [f"{asked}, not towards the best bound; the numbers here are of the plain bound"]


class Aggregate(ABC):
    """How the aggregate posterior q(z) over N examples is estimated from a batch of B."""

    @abstractmethod
    def log_weights(self, batch: int, dataset_size: int, like: Tensor) -> Tensor:
        """Returns log a_ij, where q(z_i) is estimated by sum_j a_ij q(z_i|x_j); broadcastable to `[B, B]`."""


@dataclass(frozen=True)
class MinibatchWeighted(Aggregate):
    r"""Minibatch-weighted sampling (Chen et al., 2018): \(q(z_i) \approx \frac{1}{N B} \sum_j q(z_i|x_j)\).

    Biased: with the whole data as one batch it is q(z) / N. Most of the bias is a constant, which has no gradient, but
    which the total correlation has D - 1 times: do not read its value, nor the loss's. `MinibatchStratified` has no
    such constant.
    """

    def log_weights(self, batch: int, dataset_size: int, like: Tensor) -> Tensor:
        return like.new_full((), -math.log(dataset_size * batch))


@dataclass(frozen=True)
class MinibatchStratified(Aggregate):
    r"""Minibatch-stratified sampling (Chen et al., 2018): an unbiased estimate of q(z).

    $$q(z_i) \approx \frac1N q(z_i|x_i) + \frac{N - 1}{N (B - 1)} \sum_{j \ne i} q(z_i|x_j)$$

    A departure from the paper: there one of the other examples is singled out to make the weights add up. This is the
    mean of the paper's estimate over which one it is: the same expectation, and less noise. With the whole data as one
    batch it is exact.
    """

    def log_weights(self, batch: int, dataset_size: int, like: Tensor) -> Tensor:
        others = (dataset_size - 1) / max(dataset_size * (batch - 1), 1)
        weights = like.new_full((batch, batch), others).fill_diagonal_(1 / dataset_size)
        return weights.log()


class Decomposition(NamedTuple):
    """The three parts of the rate for a batch, each `[B]` and in nats; only their means are what they are called."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


@dataclass(frozen=True)
class BetaTC(Objective):
    r"""β-TCVAE: the parts of the rate weighted apart (Chen, Li, Grosse and Duvenaud, 2018).

    $$E_q[-\log p(x|z)] + \alpha\,MI + \beta\,TC + \gamma\,DWKL$$

    With all three weights 1 they add up to the KL of the draws, whatever the estimate of q(z). Every z is held against
    every q(z|x) of the batch, so memory grows as B² D.

    Attributes:
        dataset_size: N, the number of training examples.
        alpha: The weight of the mutual information.
        beta: The weight of the total correlation.
        gamma: The weight of the dimension-wise KL.
        aggregate: How q(z) is estimated.

    Raises:
        UsageError: A weight is negative, or `dataset_size` is below 1.
    """

    dataset_size: int
    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 1.0
    aggregate: Aggregate = MinibatchWeighted()

    def __post_init__(self) -> None:
        check_sizes(dataset_size=(self.dataset_size,))
        require_weights("a BetaTC", alpha=self.alpha, beta=self.beta, gamma=self.gamma)

    def decompose(self, trace: Trace) -> Decomposition:
        """Estimates the three parts of the rate from the first draw for each example."""
        if not isinstance(trace.q, DiagonalNormal):
            raise _no_density_each(trace.q)
        z = trace.z[0]
        each = trace.q.log_prob_each(z[:, None]).flatten(2)  # [z, q, D]
        weights = self.aggregate.log_weights(len(z), self.dataset_size, each)
        log_qz_x = trace.log_qz[0]
        log_qz = (each.sum(2) + weights).logsumexp(1)
        log_product = (each + weights.unsqueeze(-1)).logsumexp(1).sum(1)
        return Decomposition(log_qz_x - log_qz, log_qz - log_product, log_product - trace.log_pz[0])

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x)
        distortion, kl = -trace.log_px_z[0], kl_of(trace)
        information, correlation, wise = self.decompose(trace)
        loss = distortion + self.alpha * information + self.beta * correlation + self.gamma * wise
        return Terms(loss, distortion, kl, -distortion - kl)

    def check(self, vae: VAE) -> None:
        require_density(vae)
        if not isinstance(q := vae.example_posterior(), DiagonalNormal):
            raise _no_density_each(q)

    def notes(self) -> list[str]:
        weights = f"mutual information {self.alpha:g}, total correlation {self.beta:g}, "
        weights += f"dimension-wise KL {self.gamma:g}"
        weighted = f"the model was trained with weights on the parts of the KL ({weights})"
        return [f"{weighted}; the numbers here are of the plain bound"]


class DIPKind(enum.StrEnum):
    """Whose covariance a `DIPVAE` moves towards the identity."""

    MEANS = "means"
    CODES = "codes"


@dataclass(frozen=True)
class DIPVAE(Objective):
    r"""Disentangled inferred prior (Kumar, Sattigeri and Balakrishnan, 2018).

    $$-ELBO + \lambda_{od} \sum_{i \ne j} S_{ij}^2 + \lambda_d \sum_i (S_{ii} - 1)^2$$

    S is a covariance over the data: of the posteriors' means, \(Cov_{p(x)}[\mu(x)]\), for DIP-VAE-I; of z itself,
    \(E_{p(x)}[\Sigma(x)] + Cov_{p(x)}[\mu(x)]\), for DIP-VAE-II. Here it is taken over the batch (with 1/B), so its
    noise biases the penalty upwards: use large batches. The penalty is added to each example's loss.

    Attributes:
        kind: `DIPKind.MEANS` for DIP-VAE-I, `DIPKind.CODES` for DIP-VAE-II.
        lambda_od: The weight off the diagonal.
        lambda_d: The weight on the diagonal.

    Raises:
        UsageError: A weight is negative.
    """

    kind: DIPKind = DIPKind.CODES
    lambda_od: float = 10.0
    lambda_d: float = 10.0

    def __post_init__(self) -> None:
        require_weights("a DIPVAE", lambda_od=self.lambda_od, lambda_d=self.lambda_d)

    def penalty(self, q: Distribution) -> Tensor:
        """Returns the weighted penalty for a batch of posteriors, a scalar."""
        mean = q.mean.flatten(1)
        centred = mean - mean.mean(0)
        # A product of matrices would run in half precision under autocast.
        with torch.autocast(mean.device.type, enabled=False):
            covariance = centred.T @ centred / len(mean)
        if self.kind is DIPKind.CODES:
            covariance = covariance + _mean_covariance(q)
        diagonal = covariance.diagonal()
        off = covariance.square().sum() - diagonal.square().sum()
        return self.lambda_od * off + self.lambda_d * (diagonal - 1).square().sum()

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x)
        distortion, kl = -trace.log_px_z[0], kl_of(trace)
        return Terms(distortion + kl + self.penalty(trace.q), distortion, kl, -distortion - kl)

    def check(self, vae: VAE) -> None:
        require_density(vae)
        _mean_covariance(vae.example_posterior())

    def notes(self) -> list[str]:
        weights = f"{self.lambda_od:g} off and {self.lambda_d:g} on the diagonal"
        penalised = (
            f"the model was trained with a penalty on the covariance of its {self.kind.value} (DIP-VAE: {weights})"
        )
        return [f"{penalised}; the numbers here are of the plain bound"]


def _mean_covariance(q: Distribution) -> Tensor:
    """Returns the mean over the batch of the covariance of z given x, `[D, D]`; raises where there is none."""
    if isinstance(q, MultivariateNormal):
        return q.covariance_matrix.mean(0)
    if isinstance(q, FullNormal):
        with torch.autocast(q.loc.device.type, enabled=False):
            return (q.scale_tril @ q.scale_tril.mT).mean(0)
    if isinstance(q, DiagonalNormal):
        return torch.diag(q.variance.flatten(1).mean(0))
    raise UsageError(
        "DIP-VAE needs the mean and the covariance of q(z|x) in closed form, which a normal posterior has and a "
        f"{type(q).__name__} has not. Use a DiagonalNormal posterior, or InfoVAE, which also moves the codes of the "
        "data towards the prior and needs draws only."
    )


def _no_kl_each(q: Distribution, p: Distribution) -> UsageError:
    return UsageError(
        "Free bits for groups of components need the KL of each component in closed form, which there is for a "
        "DiagonalNormal posterior with a prior of independent normal components and for a LadderVAE, but not for a "
        f"{type(q).__name__} with a {type(p).__name__}. Give the free bits to the KL as a whole: FreeBits(groups=1)."
    )


def _no_density_each(q: Distribution) -> UsageError:
    return UsageError(
        "The total correlation needs the density of each component of z by itself, which a DiagonalNormal posterior "
        f"has and a {type(q).__name__} has not. Use a DiagonalNormal posterior, or an ELBO with beta above 1."
    )
