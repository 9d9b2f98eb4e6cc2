"""What is measured of each example.

One pass over the examples gives the bound, its parts and log p(x), for every number of draws at once. Where z is
discrete all draws of q(z|x) are one and the same, and say no more than one does: log p(x) is then taken from a
*defensive* mixture of q and the prior (`lowerbound.evidence.Defensive`), for the one number of draws asked for.

Two measurements that cost more an example are made on some of them, picked by fixed seeds:

* the **split of the posterior gap** (`lowerbound.evidence.posterior_gap`) looks for the best q of each example. Its
  search is shorter here than that function's own, so the amortisation gap may come out a little too small, and the
  approximation gap too large by as much;
* the **mutual information** (`lowerbound.metrics.information`) takes the density of each z under many posteriors.

What is kept of an example is a few numbers and two for each component of z.

The first pass may run the networks in bf16, which takes some 60 % of the time where the processor has it. The bounds
stay bounds on log p(x): a network with rounded arithmetic is another function of the same z, with which p(x|z), p(z)
and q(z|x) are densities as before, all evaluated in float32. They are those of a slightly different model, and it says
so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowerbound.data import Source, batches, derive_seed, generator
from lowerbound.disentanglement import FEWEST, Disentanglement, disentanglement
from lowerbound.errors import ResourceError, UsageError
from lowerbound.evidence import Defensive, Evidence, Refinement, is_freeable, log_evidence, posterior_gap
from lowerbound.metrics import Information, information
from lowerbound.model import VAE
from lowerbound.tasks import encode, inference
from lowerbound.training import Precision, autocast, resolve_precision, seed_everything

Report = Callable[[int, int], None]

# Few examples with many draws each: an encoder pass is shared by a whole chunk of draws.
_BATCH = 20
_LIMIT_SEED = 99
# The numbers of draws that the bound is given for, as far as there are so many.
_SWEEP = (1, 10, 100, 1000, 5000)
# The split of the gap takes about 5 seconds for 28x28 images and one thread, less than 100 draws for 10,000 of them do.
SPLIT_EXAMPLES = 32
_SPLIT_BATCH = 16
_SPLIT_SEED = 97
_SEARCH = Refinement(steps=150, draws=8)
_SPLIT_DRAWS = (300, 500)
# A forward pass and the gradient back; and the bounds that the split is made of (`lowerbound.evidence.gap`).
_GRADIENT_COST = 3
_SPLIT_BOUNDS = 5
# The information: examples that are averaged over, examples in the aggregate, numbers in the matrix of the two.
_OUTER = 500
_AGGREGATE = (500, 10_000)
_MATRIX = 320_000_000
_INFORMATION_SEED = 96
# What is taken from the evidence of every model that has some.
_TOLD = ("distortion", "rate", "elbo", "elbo_stderr", "log_px", "stderr")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        num_samples: K, draws from q(z|x) an example; of discrete codes, from a mixture of that and the prior.
        limit: Measure only so many examples.
        gap: Split the posterior gap on so many of them; 0 for none.
        seed: Seeds the draws.
        precision: The arithmetic of the networks; not of the split, which takes gradients, nor of the information.
    """

    num_samples: int = 100
    limit: int | None = None
    gap: int = SPLIT_EXAMPLES
    seed: int = 0
    precision: Precision = Precision.FP32

    def fitted(self, vae: VAE) -> Plan:
        """Returns what of the plan has a meaning for a model, and what `AUTO` means on its device.

        The gap of discrete codes, and of a point, has no parts.

        Raises:
            UsageError: A number of the plan cannot be.
        """
        self._check()
        splits = vae.has_density and not vae.has_codes
        device = next(vae.parameters()).device
        return replace(self, gap=self.gap if splits else 0, precision=resolve_precision(self.precision, device))

    def _check(self) -> None:
        if self.num_samples < 1:
            raise UsageError(f"The evidence needs at least 1 draw an example; got --samples {self.num_samples}.")
        if self.limit is not None and self.limit < 2:
            raise UsageError(
                f"An evaluation needs at least 2 examples, or there is no standard error; got --limit {self.limit}."
            )
        if self.gap < 0 or self.gap == 1:
            raise UsageError(
                "The posterior gap is split on at least 2 examples, or there is no standard error; got --gap "
                f"{self.gap}. Give more of them, or 0 to leave the split out."
            )

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of draws that the bound is given for; the last is K.

        Example:
            >>> Plan(num_samples=50).ks, Plan(num_samples=1000).ks
            ((1, 10, 50), (1, 10, 100, 1000))
        """
        return (*(k for k in _SWEEP if k < self.num_samples), self.num_samples)

    @property
    def split_draws(self) -> int:
        """The draws behind each bound of the split: K, within limits."""
        fewest, most = _SPLIT_DRAWS
        return max(fewest, min(most, self.num_samples))


class _Progress:
    """Adds up what was done, in passes of one z through the decoder."""

    def __init__(self, total: int, report: Report | None) -> None:
        self.done, self.total, self.report = 0, total, report

    def add(self, work: int) -> None:
        self.done = min(self.done + work, self.total)
        if self.report is not None:
            self.report(self.done, self.total)


def measure_all(
    vae: VAE, source: Source, plan: Plan, on_progress: Report | None = None
) -> tuple[dict[str, Tensor], Information | None]:
    """Measures a model on a source.

    Args:
        vae: The model.
        source: The examples.
        plan: What to measure, fitted to the model.
        on_progress: See `evaluate`.

    Returns:
        What was measured of each example, `[n]`, of all of them or (what the split gives) of some; of the bound with
        `plan.ks` draws and its error `[n, len(ks)]`, of the latent space `[n, *latent]`. And the information, where
        there is a density that it can be had from in bounded time.

    Raises:
        UsageError: There are fewer than 2 examples, or the likelihood does not fit.
    """
    _check(vae, source)
    order = examples_of(source, plan)
    count = len(order)
    draws = plan.num_samples if vae.has_density else 1
    split = order[_some(count, plan.gap, _SPLIT_SEED)] if vae.has_density else order[:0]
    of_split = _GRADIENT_COST * _SEARCH.steps * _SEARCH.draws + _SPLIT_BOUNDS * plan.split_draws
    progress = _Progress(count * draws + len(split) * of_split + count, on_progress)
    with inference(vae, plan.seed) as device:
        with autocast(plan.precision, device):
            measured = _collect(vae, source, order, plan, device, lambda examples: progress.add(examples * draws))
        for name, value in _split(vae, source, split, plan, device, lambda n: progress.add(n * of_split)).items():
            measured[name] = value
        found = _information(vae, source, order, plan.seed, device)
    progress.add(progress.total)
    return measured, found


def examples_of(source: Source, plan: Plan) -> Tensor:
    """Returns which examples are measured, in order, int64 `[n]`."""
    count = len(source) if plan.limit is None else min(plan.limit, len(source))
    if count == len(source):
        return torch.arange(count)
    return torch.randperm(len(source), generator=generator(_LIMIT_SEED))[:count].sort().values


def recovery(vae: VAE, source: Source, plan: Plan) -> tuple[Disentanglement | None, tuple[str, ...]]:
    """Returns how well the means of q(z|x) recover the factors of a source that has some, or why that was not measured.

    Args:
        vae: The model.
        source: The examples.
        plan: Which of them are measured.
    """
    order = examples_of(source, plan)
    if source.factors is None or not source.factors.values.isfinite().all():
        return None, ()
    if len(order) < FEWEST:
        return None, (f"how well the factors are recovered is measured on at least {FEWEST} examples",)
    codes = encode(vae, source, index=order, seed=plan.seed)["loc"].flatten(1)
    try:
        return disentanglement(codes, source.factors[order.to(source.factors.values.device)], plan.seed), ()
    except ResourceError as error:
        return None, (str(error).rstrip("."),)


def _check(vae: VAE, source: Source) -> None:
    if len(source) < 2:
        raise UsageError("An evaluation needs at least 2 examples, or there is no standard error; give it more.")
    vae.check_shape(source.event_shape)
    vae.likelihood.check(source.support)
    vae.check_labels(source.labels)


def _some(count: int, wanted: int, seed: int) -> Tensor:
    """Picks `wanted` of `count` places, in order."""
    return torch.randperm(count, generator=generator(seed))[:wanted].sort().values


def _collect(
    vae: VAE, source: Source, order: Tensor, plan: Plan, device: torch.device, tick: Callable[[int], None]
) -> dict[str, Tensor]:
    measured: dict[str, list[Tensor]] = {}
    for batch in batches(source, order, _BATCH, device):
        done = sum(len(part) for part in measured.get("distortion", []))
        seed_everything(derive_seed(plan.seed, 3, done), device)
        found = measure(vae.given(batch.label), batch.x, plan.num_samples, plan.ks)
        if (pieces := vae.likelihood.pieces(batch.x)) is not None:
            found["pieces"] = pieces[1].double()
        for name, value in found.items():
            measured.setdefault(name, []).append(value.cpu())
        tick(len(batch))
    return {name: torch.cat(parts) for name, parts in measured.items()}


def measure(vae: VAE, x: Tensor, num_samples: int, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """Measures a batch; see `measure_all`."""
    if not vae.has_density:
        trace = vae.trace(x)
        return {"distortion": -trace.log_px_z[0].double(), "mean": trace.z[0]}
    if vae.has_codes:
        return _of_codes(vae, x, num_samples)
    evidence = log_evidence(vae, x, num_samples, ks=ks)
    return _told(evidence, (*_TOLD, "ess", "khat", "rate_each")) | {
        "sweep": torch.stack([level.log_px for level in evidence.levels], 1),
        "sweep_stderr": torch.stack([level.stderr for level in evidence.levels], 1),
        "mean": vae.encoder.head.moved(vae.encoder(x)),
    }


def _of_codes(vae: VAE, x: Tensor, num_samples: int) -> dict[str, Tensor]:
    # Most of the weights are one number, that of the encoder's codes: there is no effective number of draws.
    evidence = log_evidence(vae, x, num_samples, defensive=Defensive())
    return _told(evidence, _TOLD) | {"codes": vae.encoder(x).codes}


def _told(evidence: Evidence, names: tuple[str, ...]) -> dict[str, Tensor]:
    found = {name: value for name in names if (value := getattr(evidence, name)) is not None}
    return found | {"posterior_gap": evidence.log_px - evidence.elbo}


def _split(
    vae: VAE, source: Source, split: Tensor, plan: Plan, device: torch.device, tick: Callable[[int], None]
) -> dict[str, Tensor]:
    """Splits the posterior gap on some examples; nothing where q is of a kind whose parameters cannot be freed."""
    measured: dict[str, list[Tensor]] = {}
    for part, batch in enumerate(batches(source, split, _SPLIT_BATCH, device)):
        one = vae.given(batch.label)
        if not is_freeable(one.encoder(batch.x)):
            return {}
        seed_everything(derive_seed(plan.seed, 4, part), device)
        gap = posterior_gap(one, batch.x, plan.split_draws, refinement=_SEARCH)
        for name in ("approximation", "amortisation", "total"):
            kept = "split_gap" if name == "total" else f"{name}_gap"
            measured.setdefault(kept, []).append(getattr(gap, name).cpu())
            measured.setdefault(f"{kept}_mc", []).append(getattr(gap, f"{name}_stderr").cpu())
        measured.setdefault("split_khat", []).append(gap.khat.cpu())
        measured.setdefault("split_far", []).append(gap.far.double().cpu())
        tick(len(batch))
    return {name: torch.cat(parts) for name, parts in measured.items()}


def _information(vae: VAE, source: Source, order: Tensor, seed: int, device: torch.device) -> Information | None:
    size = vae.encoder.head.density_cost
    if not vae.has_density or vae.has_codes or size is None:
        return None
    fewest, most = _AGGREGATE
    at_most = max(fewest, min(most, _MATRIX // (_OUTER * size)))
    seed_everything(derive_seed(seed, 5), device)
    return information(vae, source, index=order[_some(len(order), at_most, _INFORMATION_SEED)], outer=_OUTER)
