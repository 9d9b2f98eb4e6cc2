r"""The gap between log p(x) and the bound, split into what the family of q cannot do and what the encoder does not.

With q* the best member of the family of q for one example (Cremer, Li and Duvenaud, 2018, "Inference suboptimality in
variational autoencoders"),

$$\log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_{\text{approximation gap}}
  + \underbrace{L[q^*] - L[q]}_{\text{amortisation gap}}, \qquad L[q] = E_q[\log p(x, z) - \log q(z)].$$

The sum is KL(q(z|x) || p(z|x)). A large first part asks for a richer posterior, a large second one for a better or
longer trained encoder.

**q\*** is found by Adam on the bound, with the parameters of q free for each example and started at the encoder's. The
result is held against the encoder's q on fresh draws, and the better of the two is q*: it is never worse but for the
noise of that comparison. What is reported is then measured on fresh draws again, so it is not flattered by the choice.
An optimiser that stops early makes the amortisation gap too small and the approximation gap too large by as much.

**The family** of a normal posterior is all normals of its kind, diagonal or full. Of a posterior that a flow carries it
is what the encoder can say of one example: any diagonal (or full) normal as its base and any context, carried by the
flow with the weights that it has. Cremer et al. free the flow's weights for each example too, so their approximation
gap of a flow is the smaller one, and their amortisation gap the larger.

**log p(x)** is the best of three importance-weighted bounds of K draws each: with q* as proposal, with a `Defensive`
mixture around q* (which tends to be narrower than p(z|x), because it minimises KL(q || p(z|x))), and with the encoder's
q. It is the first unless another is clearly higher, by more than three standard errors of their difference: to take the
largest of equally good ones would only pick up noise. All are lower bounds in expectation; with `khat` above 0.7 it is
too low, and the approximation gap with it. `Gap.with_log_px` puts a better number in its place, from
`annealed_evidence` or `quadrature_evidence`.

The bounds are estimated as the mean of log w, KL and all, rather than with a closed-form KL: where q is near p(z|x) the
noise of log p(x|z) and that of log p(z) - log q(z) cancel. As `log_px` and `elbo_best` as a rule come from the same
draws, and log-mean-w is never below mean-log-w, the approximation gap is then not negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from lowerbound.distributions import DiagonalNormal, FullNormal, analytic_kl
from lowerbound.errors import UsageError
from lowerbound.evidence.checks import CHUNK, check_continuous, check_density, check_examples, parts, within
from lowerbound.evidence.proposals import Defensive, Mixture
from lowerbound.evidence.streams import Tail
from lowerbound.flows import Flowed
from lowerbound.model import VAE

# Standard errors by which another proposal must be higher before it is preferred to q*.
_CLEAR = 3.0

Rebuild = Callable[[Sequence[Tensor]], Distribution]


@runtime_checkable
class Freeable(Protocol):
    """A posterior whose parameters can be optimised for each example."""

    def free(self) -> tuple[Sequence[Tensor], Rebuild]:
        """Returns unconstrained parameters, each `[B, ...]`, and what makes a distribution of the family of them."""


@dataclass(frozen=True)
class Gap:
    """The gap and its parts for each example, in nats.

    Each `..._stderr` is the Monte-Carlo standard error of that very number, which takes into account what draws it
    shares; the error of a mean over examples is `std(value) / sqrt(B)`, or, for these examples alone,
    `stderr.square().sum().sqrt() / B`.

    Attributes:
        approximation: log p(x) - L[q*], `[B]`.
        approximation_stderr: `[B]`.
        amortisation: L[q*] - L[q], `[B]`; 0 where the encoder's own q is the best that was found.
        amortisation_stderr: `[B]`.
        total: Their sum, log p(x) - L[q], an estimate of KL(q(z|x) || p(z|x)), `[B]`.
        total_stderr: `[B]`.
        log_px: log p(x), as above, `[B]`.
        elbo_best: L[q*], `[B]`.
        elbo_best_stderr: `[B]`.
        elbo: L[q], `[B]`.
        elbo_stderr: `[B]`.
        khat: The Pareto shape of the weights that `log_px` comes from, `[B]`; above 0.7 do not trust `approximation`.
        far: Whether the search for q* ended further from its start than half of what its steps can go, `[B]`; then q*
            may not have been reached, and `approximation` is too large. More steps or a larger lr may get there.
    """

    approximation: Tensor
    approximation_stderr: Tensor
    amortisation: Tensor
    amortisation_stderr: Tensor
    total: Tensor
    total_stderr: Tensor
    log_px: Tensor
    elbo_best: Tensor
    elbo_best_stderr: Tensor
    elbo: Tensor
    elbo_stderr: Tensor
    khat: Tensor
    far: Tensor

    def with_log_px(self, log_px: Tensor, stderr: Tensor) -> Gap:
        """Returns the gap with log p(x) and its standard error, `[B]` each, from elsewhere; `khat` becomes NaN."""
        return replace(
            self,
            approximation=log_px - self.elbo_best,
            approximation_stderr=torch.hypot(stderr, self.elbo_best_stderr),
            total=log_px - self.elbo,
            total_stderr=torch.hypot(stderr, self.elbo_stderr),
            log_px=log_px,
            khat=torch.full_like(self.khat, math.nan),
        )


@dataclass(frozen=True)
class Refinement:
    """How q* is looked for. It costs steps * draws decoder passes, forwards and back, an example.

    Attributes:
        steps: Updates.
        draws: Draws of z an example and update.
        lr: Adam's step size at the start; it falls to 0 along a cosine. In units of q's own standard deviations, for
            the posteriors known here.

    Raises:
        UsageError: `steps` is negative, `draws` is below 1, or `lr` is not above 0.
    """

    steps: int = 300
    draws: int = 32
    lr: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 0 or self.draws < 1 or not self.lr > 0:
            raise UsageError(
                f"The search for q* needs steps >= 0, draws >= 1 and lr > 0; got {self}. The defaults are 300, 32, 0.1."
            )


@torch.no_grad()
def posterior_gap(
    vae: VAE, x: Tensor, num_samples: int = 1000, *, refinement: Refinement | None = None, chunk: int = CHUNK
) -> Gap:
    """Measures the gap log p(x) - ELBO and splits it in two, for each example (module docstring).

    Args:
        vae: The model, in evaluation mode. Its weights are not touched.
        x: Examples, `[B, *event]`.
        num_samples: K, the draws that each bound is measured with, at least 2.
        refinement: How q* is looked for; the defaults of `Refinement` when None.
        chunk: Decoder inputs (draws times examples) a pass at most, fewer where x is large.

    Raises:
        UsageError: `num_samples` is below 2, there are no examples, or q has no density or cannot be freed.
    """
    refinement = Refinement() if refinement is None else refinement
    if num_samples < 2:
        raise UsageError(
            f"The gap needs at least 2 draws an example, or there is no error to state; got num_samples={num_samples}. "
            "1000 is a usual number."
        )
    check_examples(x)
    check_density(vae, "has no gap to log p(x)")
    check_continuous(vae, "to fit a better q of")
    chunk = within(chunk, vae)
    size = max(1, chunk // refinement.draws)
    found = [_gap(one, some, num_samples, refinement, chunk) for one, some in parts(vae, x, size)]
    return Gap(**{f.name: torch.cat([getattr(gap, f.name) for gap in found]) for f in fields(Gap)})


def is_freeable(q: Distribution) -> bool:
    """Whether `free` knows what to do with q."""
    return isinstance(q, Freeable | DiagonalNormal | FullNormal | MultivariateNormal | Flowed)


def free(q: Distribution) -> tuple[Sequence[Tensor], Rebuild]:
    """Returns parameters of q that can be optimised for each example, and what makes a q of them again.

    Locations are in units of q's own scale and begin at 0, as do logarithms of scales: one step size then suits
    sharp and broad posteriors alike.

    Raises:
        UsageError: It is not known how for this distribution.
    """
    if isinstance(q, Freeable):
        return q.free()
    if isinstance(q, DiagonalNormal):
        return _free_diagonal(q)
    if isinstance(q, FullNormal | MultivariateNormal):
        return _free_full(q)
    if isinstance(q, Flowed):
        return _free_flowed(q)
    raise UsageError(
        "The amortisation gap needs the best member of the family of q for each example, and how to look for it is not "
        f"known for a {type(q).__name__}. It is for DiagonalNormal, FullNormal, torch's MultivariateNormal, for these "
        "carried by a flow, and for any distribution with a method free() that returns its parameters and what makes a "
        "distribution of them. The gap as a whole needs none of that: log_evidence gives log_px and elbo."
    )


def _free_diagonal(q: DiagonalNormal) -> tuple[Sequence[Tensor], Rebuild]:
    scale = q.stddev

    def rebuild(parameters: Sequence[Tensor]) -> DiagonalNormal:
        shift, growth = parameters
        return DiagonalNormal(q.loc + scale * shift, q.log_scale + growth, q.event_ndim)

    return [torch.zeros_like(q.loc), torch.zeros_like(q.loc)], rebuild


def _free_full(q: FullNormal | MultivariateNormal) -> tuple[Sequence[Tensor], Rebuild]:
    """The Cholesky factor becomes L (I + strictly lower) exp(diagonal), which is again one, and any one."""
    factor = q.scale_tril

    def rebuild(parameters: Sequence[Tensor]) -> FullNormal:
        shift, lower = parameters
        loc = q.loc + (factor @ shift[..., None])[..., 0]
        growth = torch.diag_embed(lower.diagonal(dim1=-2, dim2=-1).exp()) + lower.tril(-1)
        return FullNormal(loc, factor @ growth)

    return [torch.zeros_like(q.loc), torch.zeros_like(factor)], rebuild


def _free_flowed(q: Flowed) -> tuple[Sequence[Tensor], Rebuild]:
    """The base as above, and the context in units of its own root mean square."""
    base, context = q.base, q.context
    start, rebuild_base = _free_diagonal(base) if isinstance(base, DiagonalNormal) else _free_full(base)
    if context is None:
        return start, lambda parameters: Flowed(_base(rebuild_base(parameters)), q.flow)
    size = context.square().mean(-1, keepdim=True).sqrt()

    def rebuild(parameters: Sequence[Tensor]) -> Flowed:
        *of_base, shift = parameters
        return Flowed(_base(rebuild_base(of_base)), q.flow, context + size * shift)

    return [*start, torch.zeros_like(context)], rebuild


def _base(distribution: Distribution) -> DiagonalNormal | FullNormal:
    assert isinstance(distribution, DiagonalNormal | FullNormal)
    return distribution


def refined(vae: VAE, x: Tensor, q: Distribution, refinement: Refinement) -> tuple[Sequence[Tensor], Rebuild]:
    """Optimises the bound over the parameters of q, for all examples of a batch at once.

    Args:
        vae: The model; its weights are not touched.
        x: Examples, `[B, *event]`.
        q: Where to start, without a graph.
        refinement: How.

    Returns:
        The optimised parameters and what makes a distribution of them.
    """
    start, rebuild = free(q)
    p = vae.prior()
    with torch.enable_grad():
        parameters = [parameter.detach().clone().requires_grad_() for parameter in start]
        adam = torch.optim.Adam(parameters, lr=refinement.lr)
        for step in range(refinement.steps):
            adam.param_groups[0]["lr"] = 0.5 * refinement.lr * (1 + math.cos(math.pi * step / refinement.steps))
            candidate = rebuild(parameters)
            z = candidate.rsample((refinement.draws,))
            kl = analytic_kl(candidate, p)
            if kl is None:
                kl = (candidate.log_prob(z) - p.log_prob(z)).mean(0)
            # The sum keeps examples apart: each one's gradient is that of its own bound, and Adam has no other ties.
            loss = (kl - vae.decoder(z).log_prob(x).mean(0)).sum()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            adam.step()
    return [parameter.detach() for parameter in parameters], rebuild


def _gap(vae: VAE, x: Tensor, num_samples: int, refinement: Refinement, chunk: int) -> Gap:
    q = vae.encoder(x)
    start, _ = free(q)
    found, rebuild = refined(vae, x, q, refinement)
    own, other = Mixture([q], [num_samples]), Mixture([rebuild(found)], [num_samples])
    better = _log_w(vae, x, other, chunk).mean(0) > _log_w(vae, x, own, chunk).mean(0)
    best = rebuild([torch.where(_spread(better, new), new, old) for new, old in zip(found, start, strict=True)])
    by_q = _log_w(vae, x, own, chunk)
    # Where the encoder's q is kept there is one distribution, not two, so that the difference is 0 and not noise.
    by_best = torch.where(better, _log_w(vae, x, Mixture([best], [num_samples]), chunk), by_q)
    by_mixture = _log_w(vae, x, Mixture.of(best, vae.prior(), num_samples, Defensive()), chunk)
    # Adam goes at most its step size at a time, on a cosine half of that on average.
    moved = torch.stack([(new - old).abs().flatten(1).amax(1) for new, old in zip(found, start, strict=True)]).amax(0)
    return _from_weights(by_q, by_best, by_mixture, moved > 0.25 * refinement.lr * refinement.steps)


def _from_weights(by_q: Tensor, by_best: Tensor, by_mixture: Tensor, far: Tensor) -> Gap:
    """Estimates the parts from log-weights `[K, B]` of draws from q, from q* and from a mixture around q*.

    Each number is a function of means over the draws, so by the delta method its error is that of the mean of its
    influence: log w - mean log w for a bound, w / mean w - 1 for a log-mean.
    """
    chosen = by_best
    for other in (by_mixture, by_q):
        noise = torch.hypot(_stderr(_relative(chosen)), _stderr(_relative(other)))
        chosen = torch.where(_log_mean(other) - _log_mean(chosen) > _CLEAR * noise, other, chosen)
    log_px, elbo_best, elbo = _log_mean(chosen), by_best.mean(0), by_q.mean(0)
    weight, best, own = _relative(chosen), by_best - elbo_best, by_q - elbo
    tail = Tail(len(chosen))
    tail.add(chosen)
    return Gap(
        approximation=log_px - elbo_best,
        approximation_stderr=_stderr(weight - best),
        amortisation=elbo_best - elbo,
        amortisation_stderr=_stderr(best - own),
        total=log_px - elbo,
        total_stderr=_stderr(weight - own),
        log_px=log_px,
        elbo_best=elbo_best,
        elbo_best_stderr=_stderr(best),
        elbo=elbo,
        elbo_stderr=_stderr(own),
        khat=tail.khat,
        far=far,
    )


def _log_w(vae: VAE, x: Tensor, proposal: Mixture, chunk: int) -> Tensor:
    """Returns log p(x, z) - log r(z) at draws of the proposal r, float64 `[K, B]`."""
    p = vae.prior()
    draws = (z for _, z in proposal.draws(len(x), chunk))
    return torch.cat([(vae.decoder(z).log_prob(x) + p.log_prob(z) - proposal.log_prob(z)).double() for z in draws])


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def _relative(log_w: Tensor) -> Tensor:
    """Returns w / mean w - 1: the influence of a draw on the log-mean."""
    return (log_w - _log_mean(log_w)).exp() - 1


def _stderr(influence: Tensor) -> Tensor:
    return influence.std(0) / math.sqrt(len(influence))


def _spread(each: Tensor, over: Tensor) -> Tensor:
    """Gives `[B]` the trailing axes of a parameter."""
    return each.reshape(each.shape + (1,) * (over.ndim - each.ndim))
