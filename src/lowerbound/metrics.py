r"""Diagnostics of the latent space.

**Where the rate goes.** Averaged over the data, the rate splits in two (Hoffman and Johnson, 2016, "ELBO surgery"):

$$E_x\,KL(q(z|x) \,\|\, p(z)) = \underbrace{I_q(x; z)}_{\text{what z says of x}}
  + \underbrace{KL(q(z) \,\|\, p(z))}_{\text{what the prior misses}}, \qquad q(z) = \tfrac1N \sum_n q(z|x_n).$$

A rate that is all information is well spent; a large marginal KL says that samples from the prior decode to something
else than the data, and asks for another prior.

Of a conditional model the same is true class by class, and averaged over them: the rate is I_q(x; z|c) and the KL of
q(z|c), the mixture over the examples of class c, to p(z|c).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from lowerbound.data import Source, batches, derive_seed, generator
from lowerbound.distributions import analytic_kl, analytic_kl_each
from lowerbound.errors import UsageError
from lowerbound.model import VAE
from lowerbound.training import seed_everything

ACTIVE_THRESHOLD = 0.01
# Examples an encoder pass, and the seed that picks the examples of an outer mean.
_BATCH = 500
_OUTER_SEED = 98


def active_units(means: Tensor, threshold: float = ACTIVE_THRESHOLD) -> Tensor:
    """Says which components of z the encoder uses: those whose posterior mean varies over the data.

    A component is active when Var_x(E_q(z|x)[z]) > 0.01 (Burda, Grosse and Salakhutdinov, 2016, section 5.2).

    Args:
        means: Posterior means of many examples, `[N, D]`, N >= 2.
        threshold: The least variance of an active component.

    Returns:
        bool `[D]`.

    Example:
        >>> active_units(torch.tensor([[0.0, 0.50], [2.0, 0.51]])).tolist()
        [True, False]
    """
    return means.double().var(0) > threshold


@dataclass(frozen=True)
class CodebookUsage:
    """How a codebook is used by some examples.

    Attributes:
        perplexity: exp of the entropy of how often each code is used, over all examples and positions: in [1, K], and
            K where all are used alike.
        used: How many different codes are used.
        num_codes: K, how many there are.
        active: At how many positions more than one code is used.
        positions: T, how many positions there are.
    """

    perplexity: float
    used: int
    num_codes: int
    active: int
    positions: int


def codebook_usage(codes: Tensor, num_codes: int) -> CodebookUsage:
    """Counts which codes are used.

    The perplexity is that of the codes of all positions together; it says nothing of how codes hang together, which is
    what the rate says.

    Args:
        codes: int64 `[N, T]`, each in [0, K), as `encode` gives them.
        num_codes: K.

    Raises:
        UsageError: There are no codes, or they are not in that range.

    Example:
        >>> usage = codebook_usage(torch.tensor([[0, 1], [0, 3]]), num_codes=8)
        >>> usage.used, usage.active, round(usage.perplexity, 3)
        (3, 1, 2.828)
    """
    if codes.ndim != 2 or not codes.numel() or codes.min() < 0 or codes.max() >= num_codes:
        raise UsageError(
            f"Usage is counted of codes of shape [N, T], each from 0 to {num_codes - 1}; got {tuple(codes.shape)}"
            + (f" with values from {codes.min().item()} to {codes.max().item()}." if codes.numel() else ".")
        )
    share = torch.bincount(codes.flatten(), minlength=num_codes).double() / codes.numel()
    return CodebookUsage(
        perplexity=torch.special.entr(share).sum().exp().item(),
        used=int((share > 0).sum()),
        num_codes=num_codes,
        active=int((codes != codes[0]).any(0).sum()),
        positions=codes.shape[1],
    )


def rate_per_dimension(q: Distribution, p: Distribution) -> Tensor:
    """Returns KL(q(z_d|x) || p(z_d)) for each component d of z: where the rate of an example goes.

    Args:
        q: q(z|x), batch shape `[B]`.
        p: p(z), batch shape `[]` or `[B]`.

    Returns:
        Nats, `[B, *latent]`; the sum over the latent axes is the rate.

    Raises:
        UsageError: The rate is no sum over components in closed form, as it is where q and p are DiagonalNormal.

    Example:
        >>> from lowerbound.distributions import DiagonalNormal
        >>> q = DiagonalNormal(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2))
        >>> rate_per_dimension(q, DiagonalNormal(torch.zeros(2), torch.zeros(2)))
        tensor([[0., 2.]])
    """
    rate = analytic_kl_each(q, p)
    if rate is None:
        raise UsageError(
            "The rate is a sum over the components of z, in closed form, where both the posterior and the prior are "
            f"DiagonalNormal; these are a {type(q).__name__} and a {type(p).__name__}. The rate as a whole is what "
            "log_evidence gives as rate."
        )
    return rate


def of_layers(each: Tensor, layer_dims: tuple[int, ...]) -> Tensor:
    """Adds up what there is of each component of a ladder's z, layer by layer.

    Args:
        each: `[..., D_1 + ... + D_L]`.
        layer_dims: D_1, ..., D_L, the lowest layer's first.

    Returns:
        `[..., L]`.

    Example:
        >>> of_layers(torch.tensor([1.0, 2.0, 4.0]), (2, 1))
        tensor([3., 4.])
    """
    return torch.stack([part.sum(-1) for part in each.split(layer_dims, -1)], -1)


@torch.no_grad()
def rate_per_layer(vae: VAE, source: Source, *, draws: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns the mean rate of each layer of a ladder, the lowest first, and its standard error over the examples.

    A layer whose rate is near 0 says nothing of x. `evaluate` gives the same from its own draws.

    Args:
        vae: The model, in evaluation mode.
        source: The examples, at least 2.
        draws: Draws z an example, at which the conditional KLs are taken.
        seed: Seeds the draws; torch's generator is put back afterwards.

    Returns:
        Nats, float64 `[L]` each.

    Raises:
        UsageError: The model is no LadderVAE, there are fewer than 2 examples, or `draws` is below 1.
    """
    if not vae.layer_dims or len(source) < 2 or draws < 1:
        raise UsageError(
            "The rate of each layer is measured of a LadderVAE, with at least 2 examples and at least 1 draw of each; "
            f"got a {type(vae).__name__}, {len(source)} examples and draws={draws}. A model with one layer has one "
            "rate, which log_evidence gives."
        )
    device = next(vae.parameters()).device
    found = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_everything(derive_seed(seed, 6), device)
        for batch in batches(source, torch.arange(len(source)), _BATCH, device):
            each = vae.trace(batch.x, draws).kl_each
            assert each is not None
            found.append(of_layers(each.double().cpu(), vae.layer_dims))
    rates = torch.cat(found)
    return rates.mean(0), rates.std(0) / math.sqrt(len(rates))


@dataclass(frozen=True)
class Information:
    """The mean rate and its two parts (module docstring), in nats, each with the standard error of its outer mean.

    Attributes:
        mutual: I_q(x; z); of a conditional model I_q(x; z|c).
        mutual_stderr: Its standard error.
        marginal_kl: KL(q(z) || p(z)) = rate - mutual; of a conditional model KL(q(z|c) || p(z|c)), averaged over the
            examples.
        marginal_kl_stderr: Its standard error.
        rate: The mean of KL(q(z|x) || p(z)).
        rate_stderr: Its standard error.
        n: N, the examples that q(z) is a mixture of.
        outer: The examples that are averaged over.
        ceiling: What I_q cannot exceed: log N; for a conditional model its mean over the examples, with N those of the
            same class.
    """

    mutual: float
    mutual_stderr: float
    marginal_kl: float
    marginal_kl_stderr: float
    rate: float
    rate_stderr: float
    n: int
    outer: int
    ceiling: float

    @property
    def saturated(self) -> bool:
        """Whether I_q is within 1 nat of its ceiling, so that it says little but that it is at least that."""
        return self.mutual > self.ceiling - 1


@torch.no_grad()
def information(
    vae: VAE,
    source: Source,
    *,
    index: Tensor | None = None,
    outer: int = 2000,
    draws: int = 1,
    chunk: int = 1_000_000,
) -> Information:
    """Estimates the mutual information I_q(x; z) and the marginal KL(q(z) || p(z)); given c, of a conditional model.

    It takes log q(z|x_n) - log q(z) at draws z of q(z|x_n), with q(z) the mixture over all N examples. For *these* N
    examples, each as likely as any other, that is unbiased. As an estimate for the distribution that they come from,
    I_q is biased downwards: x_n is itself among the N, so that it is at most log N whatever the encoder does (7.6 nats
    for 2,000 examples, 11 for 60,000), and in expectation it never exceeds the true value (Poole, Ozair, van den Oord,
    Alemi and Tucker, 2019, "On variational bounds of mutual information", the InfoNCE bound with a known conditional
    density). The marginal KL, rate - I_q, is then biased upwards by as much. `Information.saturated` says when the
    ceiling is near; more examples raise it.

    The cost is N * outer * draws densities of q; memory is that of N posteriors and `chunk` numbers.

    Args:
        vae: The model, in evaluation mode.
        source: The examples.
        index: Which of them q(z) is made of, int64 `[N]`; all by default.
        outer: How many of them to average over, picked by a fixed seed; all if there are fewer.
        draws: Draws z an example.
        chunk: Numbers at a time in the matrix of all z against all x.

    Raises:
        UsageError: There are fewer than 2 examples, `outer` is below 2 or `draws` below 1, or q has no density.
    """
    index = torch.arange(len(source)) if index is None else index
    _check_information(vae, len(index), outer, draws)
    device = next(vae.parameters()).device
    labels = None if source.labels is None else source.labels[index]
    vae.check_labels(labels)
    posteriors, found = [], []
    for batch in batches(source, index, _BATCH, device):
        one = vae.given(batch.label)
        q = one.encoder(batch.x)
        posteriors.append(q)
        found.append(_drawn(q, one.prior(), draws))
    # Everything is drawn in one pass and picked from afterwards: a source may binarise anew at each.
    picked = torch.randperm(len(index), generator=generator(_OUTER_SEED))[:outer].sort().values.to(device)
    z, log_qz_x, rate = (torch.cat(parts, 1)[:, picked] for parts in zip(*found, strict=True))
    at_once = max(1, chunk // (_BATCH * draws * math.prod(vae.latent_shape)))
    among = _among(vae, labels, picked)
    masks = among.split(at_once) if among is not None else itertools.repeat(None)
    log_qz = torch.cat([_log_aggregate(posteriors, *part) for part in zip(z.split(at_once, 1), masks, strict=False)], 1)
    ceiling = math.log(len(index)) if among is None else among.sum(1).log().mean().item()
    mutual, rate = (log_qz_x - log_qz).mean(0), rate.mean(0)
    (info, info_error), (marginal, marginal_error), (mean, error) = map(_mean_and_error, (mutual, rate - mutual, rate))
    n, outer = len(index), len(picked)
    return Information(info, info_error, marginal, marginal_error, mean, error, n=n, outer=outer, ceiling=ceiling)


def _check_information(vae: VAE, examples: int, outer: int, draws: int) -> None:
    if not vae.has_density:
        raise UsageError(
            "A Delta posterior has no density: z is a function of x, and their mutual information is not finite. Use "
            "active_units on the codes, or train with a DiagonalNormal posterior."
        )
    if vae.has_codes:
        raise UsageError(
            "z is a sequence of discrete codes here, and q(z) has no density: as the codes are a function of x, the "
            "mutual information of both is the entropy of the sequences, at most the rate that evaluate gives. Use "
            "codebook_usage on the codes that encode gives."
        )
    if examples < 2 or outer < 2 or draws < 1:
        raise UsageError(
            "The mutual information needs at least 2 examples for q(z) and in the outer mean, and at least 1 draw "
            f"of each; got {examples} examples, outer={outer}, draws={draws}."
        )


def _drawn(q: Distribution, p: Distribution, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns z ~ q(z|x), log q(z|x) and the rate, in closed form or at z: `[K, B, *latent]` and twice `[K, B]`."""
    z = q.sample((draws,))
    log_qz_x = q.log_prob(z).double()
    kl = analytic_kl(q, p)
    rate = log_qz_x - p.log_prob(z).double() if kl is None else kl.double().expand_as(log_qz_x)
    return z, log_qz_x, rate


def _among(vae: VAE, labels: Tensor | None, picked: Tensor) -> Tensor | None:
    """Returns which examples q(z|c) is a mixture of, for those picked, bool `[outer, N]`; None where it is all."""
    if not vae.classes or labels is None:
        return None
    labels = labels.to(picked.device)
    return labels[picked, None] == labels


def _log_aggregate(posteriors: list[Distribution], z: Tensor, among: Tensor | None) -> Tensor:
    """Returns log q(z), float64 `[K, B]`, for z `[K, B, *latent]`, a mixture over those examples `[B, N]`."""
    each = [q.log_prob(z.unsqueeze(2)).double() for q in posteriors]
    sizes = [log_q.shape[-1] for log_q in each]
    if among is None:
        count = torch.tensor(float(sum(sizes)), device=z.device)
    else:
        count = among.sum(1)
        each = [log_q.masked_fill(~part, -math.inf) for log_q, part in zip(each, among.split(sizes, 1), strict=True)]
    return torch.stack([log_q.logsumexp(-1) for log_q in each]).logsumexp(0) - count.double().log()


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def principal_plane(points: Tensor) -> tuple[Tensor, float]:
    """Projects points on the plane in which they vary most.

    Args:
        points: `[N, D]`, N >= 2.

    Returns:
        The projection `[N, 2]` (the points themselves if D = 2, a column of zeros added if D = 1), and the fraction of
        their variance that it shows, in [0, 1].
    """
    if points.shape[1] < 2:
        return torch.cat([points, torch.zeros_like(points)], 1), 1.0
    if points.shape[1] == 2:
        return points, 1.0
    centred = (points - points.mean(0)).double()
    variances, axes = torch.linalg.eigh(centred.T @ centred)
    total = variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return (centred @ axes[:, -2:].flip(1)).to(points.dtype), float(variances[-2:].sum() / total)
