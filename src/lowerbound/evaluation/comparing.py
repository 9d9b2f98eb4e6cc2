"""`compare`: several models on the same examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lowerbound.data import Source
from lowerbound.errors import UsageError
from lowerbound.evaluation.measuring import SPLIT_EXAMPLES, Plan, Report, measure_all, recovery
from lowerbound.evaluation.summary import Evaluation, is_exact, summary
from lowerbound.model import VAE
from lowerbound.objectives import Objective
from lowerbound.training import Precision

_PAIRED = ("elbo", "log_px", "rate", "distortion", "posterior_gap", "approximation_gap", "amortisation_gap")
Differences = tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Several models on the same examples, each held against the first.

    The examples differ far more from one another than two models do on one example, so the difference is taken per
    example and its standard error is that of those differences.

    Attributes:
        names: The models, in order.
        evaluations: Their evaluations.
        elbo_difference: Each model's mean ELBO above the first's, nats; 0 for the first, None without a bound, and
            where the two are not of the same thing: p(x|c) beside p(x), a likelihood beside none.
        elbo_difference_stderr: Its standard error over the pairs.
        log_px_difference: The same for the bound on log p(x) with `num_samples` draws.
        log_px_difference_stderr: Its standard error.
        rate_difference: The same for the rate, and so on for the distortion and the posterior gap, and for the gap's
            two parts on the examples of the split.
        notes: What a reader must know of the differences, in words.
        units: "nats".
    """

    names: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    elbo_difference: Differences
    elbo_difference_stderr: Differences
    log_px_difference: Differences
    log_px_difference_stderr: Differences
    rate_difference: Differences
    rate_difference_stderr: Differences
    distortion_difference: Differences
    distortion_difference_stderr: Differences
    posterior_gap_difference: Differences
    posterior_gap_difference_stderr: Differences
    approximation_gap_difference: Differences
    approximation_gap_difference_stderr: Differences
    amortisation_gap_difference: Differences
    amortisation_gap_difference_stderr: Differences
    notes: tuple[str, ...] = ()
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
    gap: int = SPLIT_EXAMPLES,
    seed: int = 0,
    precision: Precision = Precision.FP32,
    objectives: Mapping[str, Objective] | None = None,
    notes: Mapping[str, tuple[str, ...]] | None = None,
    on_progress: Report | None = None,
) -> Comparison:
    """Measures several models on the same examples and pairs them.

    Args:
        vaes: The models by name; the first is what the others are held against.
        source: The examples; a split whose binarisation is fixed, so that all models see the same x.
        num_samples: K, draws from q(z|x) an example; of discrete codes, from a mixture of that and the prior.
        limit: Measure only so many examples, the same for all, picked at random by a fixed seed.
        gap: Split the posterior gap on so many of these, the same for all; 0 to leave it out.
        seed: Seeds the draws.
        precision: The arithmetic of the networks; see `evaluate`.
        objectives: What trained each model, by name.
        notes: Remarks on each model, by name.
        on_progress: Called with the work done, over all models, and its total, in passes of one z through the decoder.

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

        plan = Plan(num_samples, limit, gap, seed, precision).fitted(vae)
        found, information = measure_all(vae, source, plan, report)
        measured.append(found)
        recovered, why_not = recovery(vae, source, plan)
        objective, said = (objectives or {}).get(name), (*(notes or {}).get(name, ()), *why_not)
        evaluations.append(summary(vae, source, found, information, plan, objective, said, recovered))
    models = tuple(vaes.values())
    unlike = [_unlike(vae, models[0], source) for vae in models]
    return Comparison(
        names=tuple(vaes),
        evaluations=tuple(evaluations),
        notes=tuple(
            f"{name} beside {next(iter(vaes))}: {why}, so {_and(dropped)} have no difference"
            for name, reasons in zip(vaes, unlike, strict=True)
            for why, dropped in reasons.items()
        ),
        **_differences(measured, [{name for dropped in reasons.values() for name in dropped} for reasons in unlike]),
    )


def _unlike(vae: VAE, first: VAE, source: Source) -> dict[str, tuple[str, ...]]:
    """Returns why which numbers of two models are not of the same thing."""
    reasons: dict[str, tuple[str, ...]] = {}
    if bool(vae.classes) != bool(first.classes):
        reasons["one is of p(x|c), with the class c given, and the other of p(x)"] = ("elbo", "log_px")
    if is_exact(vae, source) != is_exact(first, source):
        reasons["one is of a probability or density of the data and the other is not"] = (
            "elbo",
            "log_px",
            "distortion",
        )
    return reasons


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _differences(measured: Sequence[dict[str, Tensor]], dropped: Sequence[set[str]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PAIRED:
        pairs = [
            (None, None) if name in without else paired(mine, measured[0], name)
            for mine, without in zip(measured, dropped, strict=True)
        ]
        found[f"{name}_difference"] = tuple(mean for mean, _ in pairs)
        found[f"{name}_difference_stderr"] = tuple(stderr for _, stderr in pairs)
    return found


def paired(mine: dict[str, Tensor], first: dict[str, Tensor], name: str) -> tuple[float, float] | tuple[None, None]:
    """Returns the mean difference of what was measured of the same examples, and its standard error."""
    if name not in mine or name not in first:
        return None, None
    difference = mine[name] - first[name]
    return difference.mean().item(), difference.std().item() / math.sqrt(len(difference))
