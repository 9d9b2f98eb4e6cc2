r"""Importance weighting: log p(x) from draws of q(z|x).

With weights \(w_k = p(x|z_k)\,p(z_k) / q(z_k|x)\),

$$L_K = \log \tfrac1K \sum_k w_k, \qquad E[L_K] \le \log p(x), \qquad E[L_1] = ELBO$$

rises with K to log p(x) (Burda, Grosse and Salakhutdinov, 2016, theorem 1). It stays a lower bound in expectation, so
the number errs on the modest side; by how much, the weights themselves tell:

* the **effective sample size** \((\sum w)^2 / \sum w^2\), from 1 (one draw carries everything) to K;
* **k-hat**, the shape of a generalised Pareto distribution fitted to the largest weights (Vehtari, Simpson, Gelman, Yao
  and Gabry, 2024, "Pareto smoothed importance sampling"). Above 0.7 the weights have so heavy a tail that the estimate
  cannot be trusted; a `Defensive` proposal often mends it.

The K draws of an example go through the decoder a chunk at a time and only sums and the largest weights are kept, so
memory grows neither with K nor with the number of examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.evidence.checks import CHUNK, check_density, check_draws, check_examples, parts, passes, within
from lowerbound.evidence.proposals import Defensive, Mixture
from lowerbound.evidence.streams import LogSums, Moments, Tail, pooled, stratified_stderr
from lowerbound.model import VAE, Trace

KHAT_LIMIT = 0.7
# Examples that `sweep` takes at a time: an encoder pass is shared by a whole chunk of draws.
_EXAMPLES = 20


@dataclass(frozen=True)
class Level:
    """The importance-weighted bound with so many draws for each example, in nats.

    Attributes:
        num_samples: k.
        log_px: L_k, averaged over the groups of k draws that there are, `[B]`.
        stderr: Its Monte-Carlo standard error, `[B]`; NaN for a single draw.
    """

    num_samples: int
    log_px: Tensor
    stderr: Tensor


@dataclass(frozen=True)
class Evidence:
    """log p(x) and its parts for each example, in nats.

    Attributes:
        log_px: The importance-weighted bound L_K, `[B]`.
        stderr: The Monte-Carlo standard error of `log_px`, `[B]`, by the delta method: sqrt(1 / ess - 1 / K) for draws
            from q alone (and K / (K - 1) for what is lost to the mean). It is itself an estimate from the same draws,
            and too small where k-hat is above 0.7; NaN for K = 1.
        elbo: -distortion - rate, `[B]`.
        elbo_stderr: The Monte-Carlo standard error of `elbo`, `[B]`; NaN from 1 draw.
        distortion: -log p(x|z), averaged over the draws from q, `[B]`.
        rate: KL(q(z|x) || p(z)), in closed form where there is one and else from the draws, `[B]`.
        ess: Effective sample size, in [1, K], `[B]`.
        khat: Pareto shape of the largest weights, `[B]`; NaN where there are too few draws to tell, and where z is
            discrete: q's draws are all the same one, and weights that come in lumps have no Pareto tail.
        num_samples: K.
        rate_each: The rate of each component of z, `[B, *latent]`; None where it is no sum over them in closed form.
        levels: The bound with other numbers of draws, as far as they were asked for.
    """

    log_px: Tensor
    stderr: Tensor
    elbo: Tensor
    elbo_stderr: Tensor
    distortion: Tensor
    rate: Tensor
    ess: Tensor
    khat: Tensor
    num_samples: int
    rate_each: Tensor | None = None
    levels: tuple[Level, ...] = ()


@torch.no_grad()
def log_evidence(
    vae: VAE,
    x: Tensor,
    num_samples: int = 1000,
    *,
    ks: tuple[int, ...] = (),
    defensive: Defensive | None = None,
    chunk: int = CHUNK,
) -> Evidence:
    """Estimates log p(x) for each example by importance weighting (module docstring).

    Args:
        vae: The model, in evaluation mode.
        x: Examples, `[B, *event]`.
        num_samples: K, the draws an example.
        ks: Give the bound with k draws as well, for each of these, from 1 to K: `Evidence.levels`. It is taken from the
            same draws, cut into K // k groups of k, and averaged over the groups.
        defensive: Draw from a mixture of q, q widened and the prior instead of q alone. The bound and its parts
            (`elbo`, `distortion`, `rate`) still are those of q, from the draws that q gave.
        chunk: Decoder inputs (draws times examples) a pass at most, fewer where x is large; memory is proportional to
            it, the result does not depend on it but for the noise.

    Raises:
        UsageError: `num_samples` is below 1, there are no examples, or q has no density; a k is not from 1 to K, or is
            asked for with a defensive proposal, whose draws are not alike.
    """
    check_draws(num_samples)
    check_examples(x)
    check_density(vae, "cannot propose draws to weigh")
    chunk = within(chunk, vae)
    _check_levels(ks, num_samples, defensive)
    strata: dict[int, LogSums] = {}
    tail, terms, levels = Tail(num_samples), _Terms(), [_Groups(k) for k in ks]
    draws = _plain(vae, x, num_samples, chunk) if defensive is None else _mixed(vae, x, num_samples, chunk, defensive)
    for stratum, trace, log_r in draws:
        log_w = trace.log_px_z + trace.log_pz - log_r
        strata.setdefault(stratum, LogSums()).add(log_w)
        tail.add(log_w)
        for level in levels:
            level.add(log_w)
        if stratum == 0:
            terms.add(trace)
    weights = pooled(list(strata.values()))
    return Evidence(
        log_px=weights.log_mean,
        stderr=stratified_stderr(list(strata.values())),
        elbo=-terms.distortion - terms.rate,
        elbo_stderr=terms.stderr,
        distortion=terms.distortion,
        rate=terms.rate,
        ess=weights.ess,
        khat=torch.full_like(weights.ess, math.nan) if vae.has_codes else tail.khat,
        num_samples=num_samples,
        rate_each=terms.kl_each,
        levels=tuple(Level(level.k, level.mean, level.stderr) for level in levels),
    )


def _check_levels(ks: tuple[int, ...], num_samples: int, defensive: Defensive | None) -> None:
    if ks and (min(ks) < 1 or max(ks) > num_samples):
        raise UsageError(
            f"The bound can be had for 1 to {num_samples} draws from as many; got ks={tuple(ks)}. Raise num_samples."
        )
    if ks and defensive is not None:
        raise UsageError(
            "The bound with fewer draws is taken from groups of them that are alike, and a defensive proposal's are "
            "not: they come from one component after another. Leave out ks, or defensive."
        )


class _Terms:
    """Distortion and rate from draws of q."""

    def __init__(self) -> None:
        self.log_px_z, self.kl, self.bound = Moments(), Moments(), Moments()
        self.each: Tensor | None = None

    def add(self, trace: Trace) -> None:
        log_px_z, kl = trace.log_px_z.double(), trace.kl_draws.double()
        self.log_px_z.add(log_px_z)
        self.kl.add(kl)
        # Both depend on the draw, unless the KL is in closed form: its error is that of their difference.
        self.bound.add(log_px_z - kl)
        each = trace.kl_each
        if each is not None:
            each = each.double() * len(trace.z)
            self.each = each if self.each is None else self.each + each

    @property
    def kl_each(self) -> Tensor | None:
        return None if self.each is None else self.each / self.log_px_z.count

    @property
    def distortion(self) -> Tensor:
        return -self.log_px_z.mean

    @property
    def rate(self) -> Tensor:
        return self.kl.mean

    @property
    def stderr(self) -> Tensor:
        return self.bound.stderr


def _plain(vae: VAE, x: Tensor, num_samples: int, chunk: int) -> Iterator[tuple[int, Trace, Tensor]]:
    for draws in passes(num_samples, len(x), chunk):
        trace = vae.trace(x, draws)
        yield 0, trace, trace.log_qz


def _mixed(
    vae: VAE, x: Tensor, num_samples: int, chunk: int, defensive: Defensive
) -> Iterator[tuple[int, Trace, Tensor]]:
    """Yields the stratum, the draws made in it, and the mixture's log-density there."""
    q, p = vae.encoder(x), vae.prior()
    mixture = Mixture.of(q, p, num_samples, defensive)
    for stratum, z in mixture.draws(len(x), chunk):
        yield stratum, Trace(z, vae.decoder(z).log_prob(x), q, p), mixture.log_prob(z)


@dataclass(frozen=True)
class Sweep:
    """The importance-weighted bound against the number of draws, averaged over examples, in nats.

    Two errors are stated, because they are mended by different means. `stderr_examples` is that of the mean over all x
    that might have been measured: it shrinks with more examples, and holds the noise of the draws as well.
    `stderr_draws` is that of the mean over these very examples: it shrinks with more draws, and it is the one to
    compare two values of k with, or two models on the same examples.

    Attributes:
        ks: The numbers of draws.
        log_px: The mean of L_k over the examples, float64 `[len(ks)]`.
        stderr_examples: `[len(ks)]`; NaN for 1 example.
        stderr_draws: `[len(ks)]`.
        n: Examples.
    """

    ks: tuple[int, ...]
    log_px: Tensor
    stderr_examples: Tensor
    stderr_draws: Tensor
    n: int


@torch.no_grad()
def sweep(
    vae: VAE,
    examples: Tensor | Iterable[Tensor],
    ks: tuple[int, ...] = (1, 10, 100, 1000, 5000),
    *,
    chunk: int = CHUNK,
) -> Sweep:
    """Measures L_k for several k from one set of draws.

    The K = max(ks) draws of an example are cut into K // k groups of k, and L_k is averaged over the groups: all of the
    draws serve every k, so a small k has little noise, and the values of two k share most of theirs. The noise of the
    draws is taken from the spread between groups; where there is but one group, from its weights by the delta method,
    which is too small where the weights have a heavy tail.

    Args:
        vae: The model, in evaluation mode.
        examples: `[N, *event]`, or batches of such, which need not be in memory at the same time.
        ks: Numbers of draws, at least 1.
        chunk: Decoder inputs a pass at most, fewer where x is large; memory is proportional to it and grows neither
            with k nor with N.

    Raises:
        UsageError: A k is below 1 or there is none, there are no examples, or q has no density.
    """
    if not ks or min(ks) < 1:
        raise UsageError(f"A sweep needs numbers of draws of at least 1 each; got ks={tuple(ks)}. Give (1, 10, 100).")
    check_density(vae, "cannot propose draws to weigh")
    means, variances = [Moments() for _ in ks], [torch.zeros((), dtype=torch.float64) for _ in ks]
    for batch in [examples] if isinstance(examples, Tensor) else examples:
        for one, x in parts(vae, batch, max(1, min(_EXAMPLES, chunk))):
            for i, level in enumerate(log_evidence(one, x, max(ks), ks=tuple(ks), chunk=chunk).levels):
                means[i].add(level.log_px)
                variances[i] = variances[i] + level.stderr.square().sum().cpu()
    n = means[0].count
    if n == 0:
        check_examples(torch.empty(0))
    return Sweep(
        ks=tuple(ks),
        log_px=torch.stack([m.mean.cpu() for m in means]),
        stderr_examples=torch.stack([m.stderr.cpu() for m in means]),
        stderr_draws=torch.stack(variances).sqrt() / n,
        n=n,
    )


class _Groups:
    """L_k for one k: log-mean weights over disjoint groups of k draws."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.groups = Moments()
        self.open = LogSums()
        self.last = LogSums()

    def add(self, log_w: Tensor) -> None:
        """Takes in log-weights `[c, B]`, in the order in which they were drawn."""
        log_w = log_w.double()
        while len(log_w):
            whole = 0 if self.open.count else len(log_w) // self.k
            if whole > 1:
                taken = whole * self.k
                groups = log_w[:taken].reshape(whole, self.k, -1)
                self.groups.add(groups.logsumexp(1) - math.log(self.k))
            else:
                taken = min(self.k - self.open.count, len(log_w))
                self._fill(log_w[:taken])
            log_w = log_w[taken:]

    def _fill(self, log_w: Tensor) -> None:
        self.open.add(log_w)
        if self.open.count == self.k:
            self.groups.add(self.open.log_mean[None])
            self.last, self.open = self.open, LogSums()

    @property
    def mean(self) -> Tensor:
        """L_k, averaged over the groups, `[B]`."""
        return self.groups.mean

    @property
    def stderr(self) -> Tensor:
        """Its Monte-Carlo standard error, `[B]`."""
        return self.groups.stderr if self.groups.count > 1 else self.last.stderr
