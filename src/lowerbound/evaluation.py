"""Judging a model: one table of numbers that mean what they are called.

The bound and the evidence are always the plain ones, whatever was optimised, and where a number is not what a reader
would take it for, `notes` says so in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lowerbound.data import Source, batches, derive_seed, generator
from lowerbound.discrete import CodeMass
from lowerbound.errors import UsageError
from lowerbound.evidence import KHAT_LIMIT, log_evidence
from lowerbound.heads import Quantiser
from lowerbound.metrics import CodebookUsage, active_units, codebook_usage
from lowerbound.model import VAE
from lowerbound.tasks import inference
from lowerbound.training import seed_everything

# Few examples with many draws each: an encoder pass is shared by a whole chunk of draws.
_BATCH = 20
_LIMIT_SEED = 99


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured, in nats per example; None where there is no such number.

    Attributes:
        elbo: The evidence lower bound; `elbo_stderr` is its standard error over the examples.
        rate: KL(q(z|x) || p(z)).
        distortion: -E_q[log p(x|z)].
        log_px: The importance-weighted bound on log p(x) with `num_samples` draws.
        num_samples: K.
        n: Examples measured.
        bits_per_dim: -log_px / (dimensions of x * log 2), where the likelihood is one; of dequantised data that of
            their levels, so -(log_px + the source's log_correction) / (dimensions of x * log 2).
        ess_median: The median over examples of the effective sample size of the K weights.
        khat_bad: The fraction of examples whose k-hat is above 0.7; None if K is too small to tell.
        active_units: Components of z whose posterior mean varies over the examples; of discrete codes, positions whose
            code does.
        latent_dim: Components of z; of discrete codes, positions.
        posterior_gap: log_px - elbo, an estimate (from below) of the mean KL(q(z|x) || p(z|x)).
        likelihood: The likelihood head's name.
        is_likelihood: Whether the numbers are of a probability or density of the data.
        notes: What a reader must know, in words.
        units: "nats".
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
    units: str = "nats"

    def to_json(self) -> dict[str, Any]:
        """Returns the measurements as a JSON-ready dictionary."""
        return asdict(self) | {"notes": list(self.notes)}


def evaluate(
    vae: VAE,
    source: Source,
    *,
    num_samples: int = 100,
    limit: int | None = None,
    seed: int = 0,
    notes: tuple[str, ...] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures a model on a source.

    Args:
        vae: The model.
        source: The examples; for a number that can be compared, a split that nothing was selected on.
        num_samples: K, draws from q(z|x) an example.
        limit: Measure only so many examples, picked at random by a fixed seed.
        seed: Seeds the draws.
        notes: Remarks on how the model was trained, to be carried along.
        on_progress: Called with the number of examples done and their total.

    Raises:
        UsageError: There are fewer than 2 examples, `num_samples` is below 1, or the likelihood does not fit the data.
    """
    measured = _measure_all(vae, source, num_samples, limit, seed, on_progress)
    return _summary(vae, source, measured, num_samples, notes)


@dataclass(frozen=True)
class Comparison:
    """Several models on the same examples, each held against the first.

    The examples differ far more from one another than two models do on one example, so the difference is taken per
    example and its standard error is that of those differences.

    Attributes:
        names: The models, in order.
        evaluations: Their evaluations.
        elbo_difference: Each model's mean ELBO above the first's, nats; 0 for the first, None without a bound.
        elbo_difference_stderr: Its standard error over the pairs.
        log_px_difference: The same for the bound on log p(x) with `num_samples` draws.
        log_px_difference_stderr: Its standard error.
        units: "nats".
    """

    names: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    elbo_difference: tuple[float | None, ...]
    elbo_difference_stderr: tuple[float | None, ...]
    log_px_difference: tuple[float | None, ...]
    log_px_difference_stderr: tuple[float | None, ...]
    units: str = "nats"

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as a JSON-ready dictionary."""
        return asdict(self) | {"evaluations": [e.to_json() for e in self.evaluations]}


def compare(
    vaes: Mapping[str, VAE],
    source: Source,
    *,
    num_samples: int = 100,
    limit: int | None = None,
    seed: int = 0,
    notes: Mapping[str, tuple[str, ...]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Measures several models on the same examples and pairs them.

    Args:
        vaes: The models by name; the first is what the others are held against.
        source: The examples; a split whose binarisation is fixed, so that all models see the same x.
        num_samples: K, draws from q(z|x) an example.
        limit: Measure only so many examples, the same for all, picked at random by a fixed seed.
        seed: Seeds the draws.
        notes: Remarks on each model, by name.
        on_progress: Called with the number of examples done, over all models, and their total.

    Raises:
        UsageError: There are fewer than 2 models, or one of them cannot be measured on the source.
    """
    if len(vaes) < 2:
        raise UsageError(f"A comparison needs at least 2 models; got {len(vaes)}.")
    measured, evaluations = [], []
    for place, (name, vae) in enumerate(vaes.items()):

        def report(done: int, total: int, before: int = place) -> None:
            if on_progress is not None:
                on_progress(before * total + done, len(vaes) * total)

        measured.append(_measure_all(vae, source, num_samples, limit, seed, report))
        evaluations.append(_summary(vae, source, measured[-1], num_samples, (notes or {}).get(name, ())))
    elbo = [_paired(m, measured[0], "elbo") for m in measured]
    log_px = [_paired(m, measured[0], "log_px") for m in measured]
    return Comparison(
        names=tuple(vaes),
        evaluations=tuple(evaluations),
        elbo_difference=tuple(mean for mean, _ in elbo),
        elbo_difference_stderr=tuple(stderr for _, stderr in elbo),
        log_px_difference=tuple(mean for mean, _ in log_px),
        log_px_difference_stderr=tuple(stderr for _, stderr in log_px),
    )


def _paired(mine: dict[str, Tensor], first: dict[str, Tensor], name: str) -> tuple[float, float] | tuple[None, None]:
    if name not in mine or name not in first:
        return None, None
    difference = mine[name] - first[name]
    return difference.mean().item(), difference.std().item() / math.sqrt(len(difference))


def _measure_all(
    vae: VAE,
    source: Source,
    num_samples: int,
    limit: int | None,
    seed: int,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """Returns what was measured of each example: `[n]`, and `mean`, `[n, *latent]`."""
    _check(vae, source, num_samples, limit)
    count = len(source) if limit is None else min(limit, len(source))
    order = torch.arange(len(source))
    if count < len(source):
        order = torch.randperm(len(source), generator=generator(_LIMIT_SEED))[:count].sort().values
    measured: dict[str, list[Tensor]] = {}
    with inference(vae, seed) as device:
        for batch in batches(source, order, _BATCH, device):
            done = sum(len(part) for part in measured.get("distortion", []))
            seed_everything(derive_seed(seed, 3, done), device)
            for name, value in _measure(vae.given(batch.label), batch.x, num_samples).items():
                measured.setdefault(name, []).append(value.cpu())
            if on_progress is not None:
                on_progress(done + len(batch), count)
    return {name: torch.cat(parts) for name, parts in measured.items()}


def _check(vae: VAE, source: Source, num_samples: int, limit: int | None) -> None:
    if num_samples < 1:
        raise UsageError(f"The evidence needs at least 1 draw an example; got --samples {num_samples}.")
    if len(source) < 2 or (limit is not None and limit < 2):
        raise UsageError("An evaluation needs at least 2 examples, or there is no standard error; give it more.")
    if source.event_shape != vae.event_shape:
        raise UsageError(f"The model is built for x of shape {vae.event_shape}, the data's is {source.event_shape}.")
    vae.likelihood.check(source.support)
    vae.check_labels(source.labels)


def _measure(vae: VAE, x: Tensor, num_samples: int) -> dict[str, Tensor]:
    if not vae.has_density:
        trace = vae.trace(x)
        return {"distortion": -trace.log_px_z[0].double(), "mean": trace.z[0]}
    evidence = log_evidence(vae, x, _draws(vae, num_samples))
    named = ("distortion", "rate", "elbo", "log_px", "ess", "khat")
    q = vae.encoder(x)
    return {name: getattr(evidence, name) for name in named} | {"mean": q.codes if isinstance(q, CodeMass) else q.mean}


def _draws(vae: VAE, num_samples: int) -> int:
    # All draws of discrete codes are the same one.
    return 1 if vae.has_codes else num_samples


def _summary(
    vae: VAE, source: Source, measured: dict[str, Tensor], num_samples: int, notes: tuple[str, ...]
) -> Evaluation:
    def mean(name: str) -> float | None:
        return measured[name].mean().item() if name in measured else None

    def stderr(name: str) -> float | None:
        return measured[name].std().item() / math.sqrt(len(measured[name])) if name in measured else None

    likelihood, support = vae.likelihood, source.support
    is_likelihood = vae.has_density and support in likelihood.exact
    log_px, elbo = mean("log_px"), mean("elbo")
    khat = measured.get("khat", torch.tensor([math.nan]))
    khat_bad = None if khat.isnan().all() else (khat > KHAT_LIMIT).double().mean().item()
    distortion, distortion_stderr = mean("distortion"), stderr("distortion")
    head = vae.encoder.head
    usage = codebook_usage(measured["mean"], head.num_codes) if isinstance(head, Quantiser) else None
    assert distortion is not None
    assert distortion_stderr is not None
    return Evaluation(
        elbo=elbo,
        elbo_stderr=stderr("elbo"),
        rate=mean("rate"),
        rate_stderr=stderr("rate"),
        distortion=distortion,
        distortion_stderr=distortion_stderr,
        log_px=log_px,
        log_px_stderr=stderr("log_px"),
        num_samples=_draws(vae, num_samples),
        n=len(measured["distortion"]),
        bits_per_dim=(
            None
            if log_px is None or not is_likelihood
            else bits_per_dim(log_px + source.log_correction, vae.event_shape)
        ),
        ess_median=measured["ess"].median().item() if "ess" in measured else None,
        khat_bad=khat_bad,
        active_units=int(active_units(measured["mean"].flatten(1)).sum()) if usage is None else usage.active,
        latent_dim=math.prod(vae.latent_shape) if usage is None else usage.positions,
        posterior_gap=None if log_px is None or elbo is None or vae.has_codes else log_px - elbo,
        likelihood=type(likelihood).__name__,
        is_likelihood=is_likelihood,
        notes=(*_caveats(vae, source), *_codes(usage), *_trust(khat_bad), *notes),
    )


def _codes(usage: CodebookUsage | None) -> list[str]:
    if usage is None:
        return []
    used = f"{usage.used} are used, with a perplexity of {usage.perplexity:.1f}"
    lost = "log p(x) can only be higher, by how much is not known, and there is no posterior gap to give"
    return [
        f"z is {usage.positions} discrete codes, each one of {usage.num_codes}; {used}",
        f"all of q(z|x) is on one sequence of codes, so any number of draws gives the ELBO again; {lost}",
    ]


def _caveats(vae: VAE, source: Source) -> list[str]:
    likelihood, support = vae.likelihood, source.support
    said = [text for text in (likelihood.relaxed.get(support), likelihood.caveats.get(support)) if text]
    said += vae.notes()
    if not vae.has_density:
        said.append(
            "the posterior is a single point without a density: there is no rate, no bound and no evidence, only the "
            "distortion"
        )
    elif source.log_correction and support in likelihood.exact:
        said.append(
            "x are 8-bit levels dequantised by uniform noise: the bound and log p(x) are of the density of x; for the "
            f"probability of the levels add {source.log_correction:.3f} nats, which gives a lower bound on its "
            "logarithm, as bits per dimension do"
        )
    return said


def _trust(khat_bad: float | None) -> list[str]:
    if khat_bad is None or khat_bad < 0.1:
        return []
    finding = f"for {khat_bad:.0%} of the examples k-hat is above {KHAT_LIMIT}: few draws carry the weights"
    return [f"{finding}, and log p(x) is likely higher than said; use more samples"]


def bits_per_dim(log_px: float, event_shape: tuple[int, ...]) -> float:
    """Converts nats per example to bits per dimension.

    Example:
        >>> bits_per_dim(-4 * math.log(2), (1, 2, 2))
        1.0
    """
    return -log_px / (math.prod(event_shape) * math.log(2))
