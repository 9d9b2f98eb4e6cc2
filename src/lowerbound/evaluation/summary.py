"""What is told of the measurements: means over the examples, and how far they can be trusted.

Two errors are stated. `..._stderr` is the standard error of a mean over all x that might have been measured: it shrinks
with more examples. `..._mc_stderr` is that of the mean over these very examples, which is due to the draws of z alone:
it shrinks with more draws. The first holds the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowerbound.data import Source, Support
from lowerbound.disentanglement import Disentanglement
from lowerbound.evaluation.caveats import caveats, ceiling, codes, left_out, rounded, trust
from lowerbound.evaluation.measuring import Plan
from lowerbound.evidence import KHAT_LIMIT
from lowerbound.metrics import Information, active_units, codebook_usage, of_layers
from lowerbound.model import VAE
from lowerbound.objectives import Objective


@dataclass(frozen=True)
class SweepPoint:
    """The mean over the examples of the importance-weighted bound with so many draws, in nats.

    Attributes:
        num_samples: k.
        log_px: The mean of L_k, taken from K // k groups of k of the K draws.
        log_px_stderr: Its standard error over the examples.
        log_px_mc_stderr: Its standard error over the draws; None from a single one.
    """

    num_samples: int
    log_px: float
    log_px_stderr: float
    log_px_mc_stderr: float | None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured, in nats per example; None where there is no such number.

    Attributes:
        elbo: The evidence lower bound; `elbo_stderr` is its standard error over the examples.
        rate: KL(q(z|x) || p(z)).
        distortion: -E_q[log p(x|z)].
        log_px: The importance-weighted bound on log p(x) with `num_samples` draws from q(z|x); of discrete codes, from
            a mixture of that and the prior (`lowerbound.evidence.Defensive`).
        num_samples: K.
        n: Examples measured.
        bits_per_dim: -log_px / (dimensions of x * log 2), where the likelihood is one; of dequantised data that of
            their levels, so -(log_px + the source's log_correction) / (dimensions of x * log 2). None of tables, and of
            what is made of pieces, such as text.
        ess_median: The median over examples of the effective sample size of the K weights; None of discrete codes.
        khat_bad: The fraction of examples whose k-hat is above 0.7; None if K is too small to tell, and of discrete
            codes.
        active_units: Components of z whose posterior mean varies over the examples (`lowerbound.metrics.active_units`).
            Of a ladder, whose mean of q in units of p does, along the descent of the conditional means: a component
            that follows the layers above as it does under p is not counted. Of discrete codes, positions whose code
            varies.
        latent_dim: Components of z; of discrete codes, positions.
        posterior_gap: log_px - elbo, an estimate (from below) of the mean KL(q(z|x) || p(z|x)); of discrete codes that
            is -log p(z|x) of the encoder's own.
        likelihood: The likelihood head's name.
        is_likelihood: Whether the numbers are of a probability or density of the data.
        notes: What a reader must know, in words.
        objective: The name of what trained the model; None if that was not said.
        elbo_mc_stderr: The standard error of `elbo` over the draws; None from a single one.
        log_px_mc_stderr: That of `log_px`; too small where k-hat is bad.
        sweep: The bound against the number of draws; the last has K. None of discrete codes.
        approximation_gap: The mean over `split_n` examples of log p(x) - L[q*], with q* the best posterior of the
            encoder's family for each (`lowerbound.evidence.gap`). With `..._stderr` and `..._mc_stderr`.
        amortisation_gap: The mean of L[q*] - L[q]: what the encoder falls short of q*.
        split_gap: Their sum. It is not `posterior_gap`: it is of fewer examples, and its log p(x) of better proposals.
        split_khat_bad: The fraction of them whose k-hat is above 0.7 all the same.
        split_n: The examples of the split, picked by a fixed seed; 0 if it was left out.
        rate_per_dimension: The mean KL of each component of z in order: in closed form, or of a ladder from the draws
            of the layers above; None where the rate cannot be divided among them.
        rate_per_layer: The same of each layer of a ladder, the lowest first; None for all other models.
        mutual_information: I_q(x; z), of a conditional model I_q(x; z|c), of `information_n` examples, estimated on
            `information_outer` of them (`lowerbound.metrics.information`); at most log information_n.
        marginal_kl: KL(q(z) || p(z)), of a conditional model KL(q(z|c) || p(z|c)) averaged over the examples: the rate
            less the mutual information, on the same examples.
        information_saturated: Whether the mutual information is within 1 nat of its ceiling.
        conditional: Whether the model is told the class c of each example: then all numbers are of p(x|c).
        num_codes: Of discrete codes, how many there are; None where z is of real numbers.
        codes_used: How many of them are used.
        perplexity: exp of the entropy of how often each is (`lowerbound.metrics.codebook_usage`).
        recovered: How well the components of z recover the true factors of the data, where those are known.
        units: "nats".
        precision: The arithmetic of the networks: "fp32" or "bf16".
        per_piece: What a kind of data adds, where it is made of pieces (`per_piece`); in JSON beside the others.
    """

    elbo: float | None
    elbo_stderr: float | None
    rate: float | None
    rate_stderr: float | None
    distortion: float
    distortion_stderr: float
    log_px: float | None
    log_px_stderr: float | None
    num_samples: int
    n: int
    bits_per_dim: float | None
    ess_median: float | None
    khat_bad: float | None
    active_units: int
    latent_dim: int
    posterior_gap: float | None
    likelihood: str
    is_likelihood: bool
    notes: tuple[str, ...]
    objective: str | None
    elbo_mc_stderr: float | None
    log_px_mc_stderr: float | None
    sweep: tuple[SweepPoint, ...] | None
    posterior_gap_stderr: float | None
    approximation_gap: float | None
    approximation_gap_stderr: float | None
    approximation_gap_mc_stderr: float | None
    amortisation_gap: float | None
    amortisation_gap_stderr: float | None
    amortisation_gap_mc_stderr: float | None
    split_gap: float | None
    split_gap_stderr: float | None
    split_gap_mc_stderr: float | None
    split_khat_bad: float | None
    split_n: int
    rate_per_dimension: tuple[float, ...] | None
    rate_per_layer: tuple[float, ...] | None
    mutual_information: float | None
    mutual_information_stderr: float | None
    marginal_kl: float | None
    marginal_kl_stderr: float | None
    information_n: int | None
    information_outer: int | None
    information_saturated: bool | None
    conditional: bool
    num_codes: int | None
    codes_used: int | None
    perplexity: float | None
    recovered: Disentanglement | None = None
    units: str = "nats"
    precision: str = "fp32"
    per_piece: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the measurements as a JSON-ready dictionary; what a kind of data adds stands among the others."""
        named = asdict(self)
        added = named.pop("per_piece") | (named.pop("recovered") or {})
        return {name: list(value) if isinstance(value, tuple) else value for name, value in {**named, **added}.items()}


class _Means:
    """Means of what was measured of each example, and their errors; None for what was not."""

    def __init__(self, measured: Mapping[str, Tensor]) -> None:
        self.measured = measured

    def mean(self, name: str) -> float | None:
        return self.measured[name].mean().item() if name in self.measured else None

    def stderr(self, name: str) -> float | None:
        values = self.measured.get(name)
        return None if values is None else values.std().item() / math.sqrt(len(values))

    def mc_stderr(self, name: str) -> float | None:
        """From the error of each example by itself, which has the name `name`."""
        values = self.measured.get(name)
        if values is None or values.isnan().any():
            return None
        return values.square().sum().sqrt().item() / len(values)

    def share_above(self, name: str, limit: float) -> float | None:
        values = self.measured.get(name)
        return None if values is None or values.isnan().all() else (values > limit).double().mean().item()

    def part(self, name: str) -> dict[str, Any]:
        """A part of the posterior gap with both of its errors."""
        return {
            name: self.mean(name),
            f"{name}_stderr": self.stderr(name),
            f"{name}_mc_stderr": self.mc_stderr(f"{name}_mc"),
        }


def summary(
    vae: VAE,
    source: Source,
    measured: dict[str, Tensor],
    information: Information | None,
    plan: Plan,
    objective: Objective | None,
    notes: tuple[str, ...],
    recovered: Disentanglement | None = None,
) -> Evaluation:
    """Makes an evaluation of what `measure_all` gave."""
    of = _Means(measured)
    likelihood = vae.likelihood
    is_likelihood = vae.has_density and is_exact(vae, source)
    log_px, elbo = of.mean("log_px"), of.mean("elbo")
    khat_bad, split_khat_bad = of.share_above("khat", KHAT_LIMIT), of.share_above("split_khat", KHAT_LIMIT)
    split_n = len(measured.get("split_gap", ()))
    usage = codebook_usage(measured["codes"], vae.encoder.head.num_codes) if vae.has_codes else None
    rates = _per_dimension(measured)
    distortion, distortion_stderr = of.mean("distortion"), of.stderr("distortion")
    assert distortion is not None
    assert distortion_stderr is not None
    said = (
        *caveats(vae, source),
        *codes(usage, plan.num_samples),
        *trust(khat_bad, split_khat_bad, of.mean("split_far")),
        *left_out(vae, plan, split_n),
        *rounded(plan),
        *ceiling(information),
        *(objective.notes() if objective is not None else ()),
        *notes,
    )
    return Evaluation(
        elbo=elbo,
        elbo_stderr=of.stderr("elbo"),
        rate=of.mean("rate"),
        rate_stderr=of.stderr("rate"),
        distortion=distortion,
        distortion_stderr=distortion_stderr,
        log_px=log_px,
        log_px_stderr=of.stderr("log_px"),
        num_samples=plan.num_samples,
        n=len(measured["distortion"]),
        bits_per_dim=(
            None
            # The cells of a table are of many units, and some are missing: there is no mean of them.
            if log_px is None or not is_likelihood or "pieces" in measured or source.support is Support.TABLE
            else bits_per_dim(log_px + source.log_correction, vae.event_shape)
        ),
        ess_median=measured["ess"].median().item() if "ess" in measured else None,
        khat_bad=khat_bad,
        active_units=int(active_units(measured["mean"].flatten(1)).sum()) if usage is None else usage.active,
        latent_dim=math.prod(vae.latent_shape) if usage is None else usage.positions,
        posterior_gap=of.mean("posterior_gap"),
        posterior_gap_stderr=of.stderr("posterior_gap"),
        likelihood=type(likelihood).__name__,
        is_likelihood=is_likelihood,
        # The notes on how a run was trained hold those of its objective.
        notes=tuple(dict.fromkeys(said)),
        objective=None if objective is None else type(objective).__name__,
        elbo_mc_stderr=of.mc_stderr("elbo_stderr"),
        log_px_mc_stderr=of.mc_stderr("stderr"),
        sweep=_sweep(measured, plan.ks),
        **of.part("approximation_gap"),
        **of.part("amortisation_gap"),
        **of.part("split_gap"),
        split_khat_bad=split_khat_bad,
        split_n=split_n,
        rate_per_dimension=None if rates is None else tuple(rates.tolist()),
        rate_per_layer=(
            None if rates is None or not vae.layer_dims else tuple(of_layers(rates, vae.layer_dims).tolist())
        ),
        mutual_information=None if information is None else information.mutual,
        mutual_information_stderr=None if information is None else information.mutual_stderr,
        marginal_kl=None if information is None else information.marginal_kl,
        marginal_kl_stderr=None if information is None else information.marginal_kl_stderr,
        information_n=None if information is None else information.n,
        information_outer=None if information is None else information.outer,
        information_saturated=None if information is None else information.saturated,
        conditional=bool(vae.classes),
        num_codes=None if usage is None else usage.num_codes,
        codes_used=None if usage is None else usage.used,
        perplexity=None if usage is None else usage.perplexity,
        per_piece=_per_piece(vae, source, measured) if is_likelihood else {},
        recovered=recovered,
        precision=plan.precision.value,
    )


def _per_piece(vae: VAE, source: Source, measured: Mapping[str, Tensor]) -> dict[str, float]:
    pieces = vae.likelihood.pieces(source.examples(torch.arange(1)).x)
    if pieces is None or "log_px" not in measured:
        return {}
    return per_piece(pieces[0], measured["log_px"], measured["pieces"])


def per_piece(name: str, log_px: Tensor, counts: Tensor) -> dict[str, float]:
    """Shares log p(x) out to the pieces that the examples are made of.

    Args:
        name: What a piece is: a character, say.
        log_px: log p(x) of each example, nats, `[n]`; a lower bound on it gives upper bounds here.
        counts: How many pieces each example has, the end of a line among them, `[n]`.

    Returns:
        `bits_per_NAME`, over all pieces of all examples together; its standard error over the examples, that of a ratio
        by the delta method; and `perplexity_bound`, 2 to that number: among how many equally likely ones the next piece
        would be as hard to tell.

    Example:
        >>> found = per_piece("character", torch.tensor([-4.0, -2.0]).double() * math.log(2), torch.tensor([3, 1]))
        >>> found["bits_per_character"], round(found["perplexity_bound"], 4)
        (1.5, 2.8284)
    """
    bits, counts = -log_px.double() / math.log(2), counts.double()
    mean = (bits.sum() / counts.sum()).item()
    spread = (bits - mean * counts).std().item() / (math.sqrt(len(bits)) * counts.mean().item())
    return {f"bits_per_{name}": mean, f"bits_per_{name}_stderr": spread, "perplexity_bound": 2**mean}


def _sweep(measured: Mapping[str, Tensor], ks: tuple[int, ...]) -> tuple[SweepPoint, ...] | None:
    if "sweep" not in measured:
        return None
    bound, noise = measured["sweep"], measured["sweep_stderr"]
    columns = zip(ks, bound.mean(0).tolist(), bound.std(0).tolist(), noise.square().sum(0).sqrt().tolist(), strict=True)
    n = len(bound)
    return tuple(
        SweepPoint(k, mean, spread / math.sqrt(n), None if math.isnan(error) else error / n)
        for k, mean, spread, error in columns
    )


def _per_dimension(measured: Mapping[str, Tensor]) -> Tensor | None:
    return measured["rate_each"].flatten(1).double().mean(0) if "rate_each" in measured else None


def is_exact(vae: VAE, source: Source) -> bool:
    """Returns whether p(x|z) is a probability or density of such data."""
    return source.support in vae.likelihood.exact


def bits_per_dim(log_px: float, event_shape: tuple[int, ...]) -> float:
    """Converts nats per example to bits per dimension.

    Example:
        >>> bits_per_dim(-4 * math.log(2), (1, 2, 2))
        1.0
    """
    return -log_px / (math.prod(event_shape) * math.log(2))
