r"""Bounds on the evidence, to be maximised.

The evidence lower bound (Kingma and Welling, 2014, eq. 3):

$$ELBO(x) = E_{q(z|x)}[\log p(x|z)] - KL(q(z|x)\,\|\,p(z)) = \log p(x) - KL(q(z|x)\,\|\,p(z|x))$$

Its first term, negated, is the *distortion*; the KL is the *rate*. The expectation is estimated with reparameterised
draws, so the gradient goes through them; the KL is taken in closed form where there is one.

With several draws and their weights \(w_k = p(x|z_k)\,p(z_k) / q(z_k|x)\) there is a tighter bound (Burda, Grosse and
Salakhutdinov, 2016, eq. 8), which rises from the ELBO at K = 1 to the evidence:

$$L_K(x) = E\Big[\log \tfrac1K \sum_{k=1}^K w_k\Big]$$

A tighter bound teaches the decoder better and the encoder worse: with K the gradient of q's parameters shrinks faster
than its noise (Rainforth et al., 2018, "Tighter variational bounds are not necessarily better"). Two cures are here.
One mixes bounds (`MIWAE`, `PIWAE`, `CIWAE`). The other takes the same gradient with less noise (`Estimator`). With
\(\tilde w_k = w_k / \sum_j w_j\), and \(z_k\) a function of noise and of q's parameters \(\phi\),

$$\nabla_\phi \log \tfrac1K \sum_k w_k = \sum_k \tilde w_k
  \Big(\frac{\partial \log w_k}{\partial z_k} \frac{d z_k}{d\phi} - \nabla_\phi \log q_\phi(z_k|x)\Big)$$

has a first part along the *path* of z and a second, the *score*, which at the true posterior is nothing but noise.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.model import VAE, Trace
from lowerbound.nn import check_sizes
from lowerbound.objectives.base import Objective, Terms, kl_of, rates_of, refuse_codes, require_density, risen


@dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound, negated.

    Attributes:
        beta: The weight of the KL (Higgins et al., 2017, eq. 4); 1 is the bound itself.
        warmup: Updates over which the weight rises linearly from 0 to `beta` (Bowman et al., 2016; Sønderby et al.,
            2016).
        num_samples: Draws of z an example.
        closed_form: Use the closed form of the KL where there is one, instead of the draws.

    Raises:
        UsageError: `beta` or `warmup` is negative, or `num_samples` is below 1.
    """

    beta: float = 1.0
    warmup: int = 0
    num_samples: int = 1
    closed_form: bool = True

    def __post_init__(self) -> None:
        if not self.beta >= 0 or self.warmup < 0 or self.num_samples < 1:
            raise UsageError(
                f"An ELBO needs beta >= 0, warmup >= 0 and num_samples >= 1; got beta={self.beta}, "
                f"warmup={self.warmup}, num_samples={self.num_samples}."
            )

    def weight(self, step: int | None) -> float:
        """Returns the weight of the KL at an update.

        Example:
            >>> [ELBO(warmup=4).weight(step) for step in (0, 1, 3, 100, None)]
            [0.0, 0.25, 0.75, 1.0, 1.0]
        """
        return self.beta * risen(step, self.warmup)

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x, self.num_samples)
        distortion = -trace.log_px_z.mean(0)
        kl = kl_of(trace, self.closed_form)
        weight = self.weight(step)
        negated = distortion + kl
        loss = negated if weight == 1 else distortion + weight * kl
        return Terms(loss, distortion, kl, -negated, rates_of(trace))

    def check(self, vae: VAE) -> None:
        require_density(vae)

    def notes(self) -> list[str]:
        if self.beta == 1:
            return []
        weighted = f"the model was trained with the KL weighted by beta = {self.beta:g}"
        return [f"{weighted}; the numbers here are of the plain bound (beta = 1)"]


@dataclass(frozen=True)
class Reconstruction(Objective):
    """The distortion alone: what a plain autoencoder minimises.

    With a Delta posterior there is no rate to speak of: the code may hold any amount of information.
    """

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        distortion = -vae.trace(x).log_px_z[0]
        return Terms(distortion, distortion)

    def check(self, vae: VAE) -> None:
        """Accepts any model but one of discrete codes."""
        refuse_codes(vae)

    def notes(self) -> list[str]:
        return ["the model was trained to reconstruct, not to bound log p(x)"]


class Estimator(ABC):
    """How the gradient of a multi-sample bound with respect to q's parameters is estimated.

    All give the bound's value, and all give the parameters of the decoder and the prior the same gradient. They come
    in one backward pass, and the decoder runs once a draw.
    """

    score: ClassVar[bool]

    def log_qz(self, trace: Trace) -> Tensor:
        """Returns log q(z|x), `[K, B]`, with the gradient that is wanted of it."""
        return trace.log_qz if self.score else trace.log_qz_split()[0]

    def path_factor(self, share: Tensor) -> Tensor | None:
        """Returns what the gradient through z is multiplied with, given normalised weights; None for nothing."""
        return None


@dataclass(frozen=True)
class Reparameterised(Estimator):
    """The gradient of the bound as it stands: path and score (Burda, Grosse and Salakhutdinov, 2016, section 3)."""

    score = True


@dataclass(frozen=True)
class StickingTheLanding(Estimator):
    """The path alone (Roeder, Wu and Duvenaud, 2017, "Sticking the landing").

    For one draw the score has the mean zero, so leaving it out costs nothing, and the gradient has no noise at all
    where q is the true posterior. For several draws of one bound its mean is not zero, so there this estimator is
    biased (Tucker, Lawson, Gu and Maddison, 2019); `DoublyReparameterised` is not, and is the same for one draw.
    """

    score = False


@dataclass(frozen=True)
class DoublyReparameterised(Estimator):
    r"""DReG: the score is reparameterised as well (Tucker, Lawson, Gu and Maddison, 2019, eq. 8).

    $$\nabla_\phi L_K = E\Big[\sum_k \tilde w_k^2 \frac{\partial \log w_k}{\partial z_k} \frac{d z_k}{d\phi}\Big]$$

    It is unbiased for any K, vanishes where q is the true posterior, and its signal does not drown with K.

    The decoder's parameters want each draw weighted by its normalised weight and the path of z by the square of that.
    One backward pass does both: the bound itself brings the weight, and a hook multiplies the gradient that arrives at
    z by the weight once more.
    """

    score = False

    def path_factor(self, share: Tensor) -> Tensor:
        return share


@dataclass(frozen=True)
class IWAE(Objective):
    """The importance-weighted bound, negated (Burda, Grosse and Salakhutdinov, 2016, eq. 8).

    With one draw it is the ELBO with its KL from the draws; with that and `StickingTheLanding`, the "STL" ELBO.

    Attributes:
        num_samples: K, draws of z an example in one bound.
        estimator: How the gradient of q's parameters is estimated.

    Raises:
        UsageError: `num_samples` is below 1.

    Example:
        >>> IWAE(5, DoublyReparameterised())
        IWAE(num_samples=5, estimator=DoublyReparameterised())
    """

    num_samples: int = 5
    estimator: Estimator = Reparameterised()

    def __post_init__(self) -> None:
        check_sizes(num_samples=(self.num_samples,))

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        return _multi_sample(vae.trace(x, self.num_samples), self.estimator)

    def check(self, vae: VAE) -> None:
        require_density(vae)

    def notes(self) -> list[str]:
        bound = f"the importance-weighted bound with {self.num_samples} draws"
        return _bound_notes(bound, self.num_samples, self.estimator)


@dataclass(frozen=True)
class MIWAE(Objective):
    """The average over M groups of the importance-weighted bound with K draws (Rainforth et al., 2018).

    It costs as much as an IWAE with M K draws and is a looser bound, whose gradient is the less noisy for the encoder.
    With K = 1 it is the ELBO with M draws.

    Attributes:
        groups: M, bounds that are averaged.
        num_samples: K, draws of z an example in each.
        estimator: How the gradient of q's parameters is estimated.

    Raises:
        UsageError: `groups` or `num_samples` is below 1.
    """

    groups: int = 5
    num_samples: int = 5
    estimator: Estimator = Reparameterised()

    def __post_init__(self) -> None:
        check_sizes(groups=(self.groups,), num_samples=(self.num_samples,))

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        return _multi_sample(vae.trace(x, self.groups * self.num_samples), self.estimator, self.groups)

    def check(self, vae: VAE) -> None:
        require_density(vae)

    def notes(self) -> list[str]:
        bound = f"the mean of {self.groups} importance-weighted bounds with {self.num_samples} draws each"
        return _bound_notes(bound, self.num_samples, self.estimator)


@dataclass(frozen=True)
class CIWAE(Objective):
    r"""A convex combination of the ELBO and the importance-weighted bound (Rainforth et al., 2018).

    $$\beta\,ELBO + (1 - \beta)\,L_K$$

    Both are taken from the same K draws.

    Attributes:
        beta: The weight of the ELBO, in [0, 1]; no relation of a beta-VAE's.
        num_samples: K, draws of z an example.
        estimator: How the gradient of q's parameters is estimated.

    Raises:
        UsageError: `beta` is outside [0, 1], or `num_samples` is below 1.
    """

    beta: float = 0.5
    num_samples: int = 5
    estimator: Estimator = Reparameterised()

    def __post_init__(self) -> None:
        check_sizes(num_samples=(self.num_samples,))
        if not 0 <= self.beta <= 1:
            raise UsageError(f"beta of a CIWAE is a share of the ELBO, from 0 to 1; got {self.beta}.")

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        return _multi_sample(vae.trace(x, self.num_samples), self.estimator, elbo_share=self.beta)

    def check(self, vae: VAE) -> None:
        require_density(vae)

    def notes(self) -> list[str]:
        both = f"{self.beta:g} of the ELBO and {1 - self.beta:g} of"
        bound = f"{both} the importance-weighted bound with {self.num_samples} draws"
        return _bound_notes(bound, self.num_samples, self.estimator)


@dataclass(frozen=True)
class PIWAE(Objective):
    """The tightest bound for the decoder, the mean of looser ones for the encoder (Rainforth et al., 2018).

    Of M K draws, the decoder and the prior ascend one importance-weighted bound over all, and the encoder the mean of M
    bounds with K draws each. `loss` is the negative of the former.

    One backward pass does both, much as in `DoublyReparameterised`: the loss weighs each draw as the decoder wants it,
    and a hook at z exchanges that weight for the encoder's. A weight that is all but zero could not be exchanged, so
    the decoder's weights are kept above the square of the rounding error, which no sum over the draws can notice.

    Attributes:
        groups: M, bounds that are averaged for the encoder.
        num_samples: K, draws of z an example in each of them.
        estimator: How the gradient of q's parameters is estimated.

    Raises:
        UsageError: `groups` or `num_samples` is below 1.
    """

    groups: int = 5
    num_samples: int = 5
    estimator: Estimator = Reparameterised()

    def __post_init__(self) -> None:
        check_sizes(groups=(self.groups,), num_samples=(self.num_samples,))

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x, self.groups * self.num_samples)
        path, score = trace.log_qz_split()
        log_joint = trace.log_px_z + trace.log_pz
        log_w = (log_joint - path).detach()
        decoder = _shares(log_w, 1).clamp_min(torch.finfo(log_w.dtype).eps ** 2)
        encoder = _shares(log_w, self.groups)
        factor = self.estimator.path_factor(encoder)
        _rescale_path(trace.z, (encoder if factor is None else encoder * factor) / self.groups / decoder)
        surrogate = (decoder * (log_joint - path)).sum(0)
        if self.estimator.score:
            surrogate = surrogate - (encoder / self.groups * score).sum(0)
        return _terms(trace, log_w, _bound(log_w, 1) + surrogate - surrogate.detach())

    def check(self, vae: VAE) -> None:
        require_density(vae)

    def notes(self) -> list[str]:
        bound = f"the importance-weighted bound with {self.groups * self.num_samples} draws (the encoder: with "
        bound += f"{self.num_samples}, averaged over {self.groups} groups)"
        return _bound_notes(bound, self.num_samples, self.estimator)


def _multi_sample(trace: Trace, estimator: Estimator, groups: int = 1, elbo_share: float = 0.0) -> Terms:
    """Returns the terms of elbo_share * ELBO + (1 - elbo_share) * (mean over groups of L_K)."""
    log_w = trace.log_px_z + trace.log_pz - estimator.log_qz(trace)
    bound = _bound(log_w, groups)
    share = _shares(log_w.detach(), groups)
    factor = estimator.path_factor(share)
    if elbo_share:
        bound = elbo_share * log_w.mean(0) + (1 - elbo_share) * bound
    if elbo_share and factor is not None:
        # A draw's gradient arrives as the sum of two; the ELBO's part is of a bound with one draw, and has factor 1.
        of_elbo, of_bound = elbo_share / len(log_w), (1 - elbo_share) * share
        factor = (of_elbo + of_bound * factor) / (of_elbo + of_bound)
    if factor is not None:
        _rescale_path(trace.z, factor)
    return _terms(trace, log_w.detach(), bound)


def _terms(trace: Trace, log_w: Tensor, bound: Tensor) -> Terms:
    distortion = -trace.log_px_z.detach().mean(0)
    elbo = log_w.mean(0)
    return Terms(-bound, distortion, -distortion - elbo, elbo, rates_of(trace))


def _bound(log_w: Tensor, groups: int) -> Tensor:
    """Returns the mean over groups of log mean w, `[B]`, from log-weights `[groups * K, B]`."""
    grouped = log_w.reshape(groups, -1, *log_w.shape[1:])
    return (grouped.logsumexp(1) - math.log(grouped.shape[1])).mean(0)


def _shares(log_w: Tensor, groups: int) -> Tensor:
    """Returns weights that sum to 1 within each group, `[groups * K, B]`."""
    grouped = log_w.reshape(groups, -1, *log_w.shape[1:])
    return grouped.softmax(1).reshape(log_w.shape)


def _rescale_path(z: Tensor, factor: Tensor) -> None:
    """Multiplies the gradient that will arrive at z, `[K, B, *latent]`, by a factor `[K, B]`."""
    if z.requires_grad:
        aligned = factor.reshape(*factor.shape, *[1] * (z.ndim - factor.ndim))
        z.register_hook(lambda gradient: gradient * aligned)


def _bound_notes(bound: str, num_samples: int, estimator: Estimator) -> list[str]:
    said = [f"the model was trained on {bound}; elbo, rate and distortion here are of the plain bound"]
    if num_samples > 1:
        said.append("such a training does not maximise elbo: the gap between it and log_px can be wide by design")
    if num_samples > 1 and isinstance(estimator, StickingTheLanding):
        said.append("the gradient of its encoder was biased: sticking the landing with more than one draw a bound")
    return said
