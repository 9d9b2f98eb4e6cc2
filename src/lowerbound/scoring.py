r"""How strange an example is to a model: novelty, honestly.

**A likelihood is no novelty score.** Where x has many dimensions, models of images give simple pictures of another kind
a higher density than their own training data (Nalisnick, Matsukawa, Teh, Gorur and Lakshminarayanan, 2019, "Do deep
generative models know what they don't know?"), and how well a picture compresses explains much of what its likelihood
says (Serrà et al., 2020, "Input complexity and out-of-distribution detection with likelihood-based generative models").
A VAE trained on the other nine digits finds most 1s more probable than what it knows. So `log_px`, `elbo`, `distortion`
and `rate` are given for what they are, and beside them scores that were made for the question:

* the **likelihood regret** (Xiao, Yan and Amit, 2020) is what the bound gains when q is fitted to this one example,
  \(L[q^*] - L[q]\): the encoder does badly where it has seen nothing alike. They fit the encoder's weights; here the
  parameters of q themselves are fitted, as in `lowerbound.evidence.posterior_gap`.
* **typicality** is \(|-\log p(x) - \bar H| / s\), with the mean and deviation of -log p over training examples. It is a
  test for batches, whose mean of -log p is held against \(\bar H\) (Nalisnick, Matsukawa, Teh and Lakshminarayanan,
  2019, "Detecting out-of-distribution inputs to deep generative models using typicality"). Of one example it says
  little.

**The anomaly score** is the one to use, for every kind of data. It says how x stands to the reference examples
(training examples, some thousand), and is the sum of two parts, each in deviations over the reference.

* How **rare** x is. Three statistics, \(t(x) = (D(x), R(x), \delta(x))\), are the distortion, the rate, and the mean
  distance of the features of x to those of the ten nearest reference examples, each in units of its deviation over the
  reference. The part is the mean distance of t(x) to the ten nearest t of the reference. It is two-sided: what is
  reconstructed too well is strange as well. That is density-of-states estimation (Morningstar et al., 2021, "Density
  of states estimation for out-of-distribution detection") with a statistic of neighbourhood, and distances to
  neighbours in place of a density.
* How far x is **for where it is**: \(\lambda(x) = \log \delta(x) - \log \bar\delta(x)\), with \(\bar\delta\) the mean
  \(\delta\) of those ten neighbours. What is complex lies far from everything, and so do its neighbours. It is the
  logarithm of a local outlier factor (Breunig, Kriegel, Ng and Sander, 2000, "LOF: identifying density-based local
  outliers") with distances in place of reachability distances, and the neighbours' arithmetic mean in place of the
  harmonic.

The features f are what the encoder's network hands to q, and distances are between their directions
\(f / \|f\|\), as in Sun, Ming, Zhu and Li (2022, "Out-of-distribution detection with deep nearest neighbors"), who do
so with classifiers and take the distance to the k-th nearest. q itself keeps of all features the few components of z
that the decoder needs for what is known, and what tells the strange apart need not be among them.

Both parts were chosen on validation examples (`docs/score.md`). Besides its draws, an example costs a product of its
direction with those of the reference, R F multiplications for F features, and the reference R² F once. More than
1,024 features are sketched: the components of a direction are added up, with random signs, in 1,024 random places,
which keeps squared distances but for an error of some 4 % (feature hashing: Weinberger, Dasgupta, Langford, Smola and
Attenberg, 2009, "Feature hashing for large scale multitask learning").

A reference example is never its own neighbour. One that is scored as if it were new is, and comes out as familiar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lowerbound.data import Batch, Source, batches, derive_seed, generator
from lowerbound.errors import UsageError
from lowerbound.evaluation.measuring import measure
from lowerbound.evidence import Refinement, posterior_gap
from lowerbound.evidence.checks import check_density, check_draws
from lowerbound.model import VAE
from lowerbound.tasks import inference
from lowerbound.training import seed_everything

Report = Callable[[int, int], None]

# Reference examples, unless told otherwise; and neighbours, among the features and among the statistics.
REFERENCE = 10_000
_NEIGHBOURS = 10
_FEWEST = 3
# Examples measured at a time (an encoder pass is shared by a chunk of draws), and examples given out at a time.
_BATCH = 20
_BLOCK = 500
_REFERENCE_SEED = 95
# Numbers of a direction at most: features that lie on a picture can be tens of thousands.
_SKETCH = 1024
_SKETCH_SEED = 94
# Draws behind each of the two bounds of a regret, at least: it is a small difference of large numbers.
_REGRET = 200
# Less of a deviation than this share of the size is rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Scores:
    """How strange examples are, in nats unless said otherwise; float64 on the CPU.

    Attributes:
        row: Which examples of the source these are, int64 `[N]`.
        log_px: The importance-weighted bound on log p(x) (`lowerbound.evidence`), `[N]`.
        log_px_stderr: Its Monte-Carlo standard error, `[N]`; NaN from 1 draw.
        elbo: The evidence lower bound, `[N]`.
        distortion: The reconstruction term -E_q log p(x|z), `[N]`.
        rate: KL(q(z|x) || p(z)), `[N]`.
        typicality: How far -log p(x) is from its mean over the reference, in its standard deviations, `[N]`. Made for
            batches; weak for single examples.
        anomaly: The recommended score, higher is stranger, `[N]`, in standard deviations over the reference; it may be
            negative.
        regret: The likelihood regret, 0 or above but for noise, `[N]`; None where it was not asked for.
        label: Labels, int64 `[N]`, where the source has some. They are no part of any score but a conditional model's,
            whose numbers are all of p(x|label).
    """

    row: Tensor
    log_px: Tensor
    log_px_stderr: Tensor
    elbo: Tensor
    distortion: Tensor
    rate: Tensor
    typicality: Tensor
    anomaly: Tensor
    regret: Tensor | None = None
    label: Tensor | None = None

    def __len__(self) -> int:
        return len(self.row)

    def columns(self) -> dict[str, Tensor]:
        """Returns what there is by name, in the order of a table."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @staticmethod
    def joined(parts: list[Scores]) -> Scores:
        """Returns the scores of several blocks as one."""
        found = [part.columns() for part in parts]
        return Scores(**{name: torch.cat([part[name] for part in found]) for name in found[0]})


@dataclass(frozen=True)
class Reference:
    """What is known of the examples that others are held against; `reference_of` makes one.

    Attributes:
        num_samples: K, the draws an example that it was measured with; what is scored is measured with as many.
        directions: Of the features, float64 `[R, F]`, sketched where there are more than 1,024 features.
        far: The mean distance of each to its ten nearest others, `[R]`.
        centre: The means of the three statistics, `[3]`.
        spread: Their standard deviations, `[3]`; 1 where there is none.
        statistics: The statistics in these units, `[R, 3]`.
        rarity: The mean and the standard deviation of the anomaly score's first part, before it is put in its units.
        locality: Those of its second.
        surprise: The mean and the standard deviation of -log p(x), nats.
        anomaly: The anomaly score of each reference example, itself left out, `[R]`.
    """

    num_samples: int
    directions: Tensor
    far: Tensor
    centre: Tensor
    spread: Tensor
    statistics: Tensor
    rarity: tuple[float, float]
    locality: tuple[float, float]
    surprise: tuple[float, float]
    anomaly: Tensor

    def __len__(self) -> int:
        return len(self.directions)


def reference_of(
    vae: VAE,
    source: Source,
    *,
    num_samples: int = 100,
    limit: int = REFERENCE,
    seed: int = 0,
    on_progress: Report | None = None,
) -> Reference:
    """Measures the examples that others will be held against.

    Args:
        vae: The model.
        source: What is normal: as a rule the training examples.
        num_samples: K, draws an example.
        limit: At most so many, picked by a fixed seed.
        seed: Seeds the draws.
        on_progress: Told how many examples are done, and of how many.

    Raises:
        UsageError: There are fewer than 3 examples, q has no density, or the likelihood or labels do not fit.
    """
    check_scorable(vae, source, num_samples, limit)
    order = _some(source, limit)
    if len(order) < _FEWEST:
        raise UsageError(f"What is normal is told by at least {_FEWEST} examples; got {len(order)}.")
    found: list[dict[str, Tensor]] = []
    with inference(vae, seed) as device:
        for number, batch in enumerate(batches(source, order, _BATCH, device)):
            found.append(_measured(vae, batch, num_samples, derive_seed(seed, 7, number)))
            _tell(on_progress, number, len(order))
    return _made_of({name: torch.cat([part[name] for part in found]) for name in found[0]}, num_samples)


def _made_of(whole: dict[str, Tensor], num_samples: int) -> Reference:
    """Returns the reference that measured examples make, each held against all others."""
    directions = whole["direction"]
    rows = range(0, len(directions), _BLOCK)
    near = [_nearest(directions[start : start + _BLOCK], directions, own=start) for start in rows]
    distances, places = (torch.cat(part) for part in zip(*near, strict=True))
    far = distances.mean(1)
    raw = _statistics(whole, far)
    centre, spread = raw.mean(0), _unit(raw.std(0), raw)
    placed = (raw - centre) / spread
    rare = torch.cat([_nearest(placed[start : start + _BLOCK], placed, own=start)[0].mean(1) for start in rows])
    local = _local(far, far[places])
    rarity, locality = _spread(rare), _spread(local)
    return Reference(
        num_samples=num_samples,
        directions=directions,
        far=far,
        centre=centre,
        spread=spread,
        statistics=placed,
        rarity=rarity,
        locality=locality,
        surprise=_spread(-whole["log_px"]),
        anomaly=_within(rare, rarity) + _within(local, locality),
    )


def score(
    vae: VAE,
    source: Source,
    reference: Source | Reference,
    *,
    num_samples: int = 100,
    limit: int | None = None,
    regret: Refinement | None = None,
    seed: int = 0,
) -> Scores:
    """Scores examples by how strange they are to a model (module docstring).

    Args:
        vae: The model.
        source: The examples.
        reference: What is normal: the training examples, or what `reference_of` made of them.
        num_samples: K, draws an example; those of a `Reference` that is at hand count instead.
        limit: Score only so many examples, picked by a fixed seed.
        regret: How to look for the best q of each example, for `Scores.regret`; it is left out without. It costs
            3 * steps * draws passes an example.
        seed: Seeds the draws.

    Raises:
        UsageError: There is nothing to score, q has no density, or (asked for the regret) cannot be fitted to one
            example, or the likelihood or labels do not fit.

    Example:
        >>> import lowerbound as lb
        >>> vae = lb.VAE(
        ...     lb.heads.Conditional(lb.nn.MLP((4,), (8,)), lb.heads.DiagonalNormal((8,), (2,))),
        ...     lb.heads.Conditional(lb.nn.MLP((2,), (8,)), lb.heads.Normal((8,), (4,))),
        ...     lb.priors.StandardNormal(2),
        ... )
        >>> known = lb.ArraySource(torch.rand(50, 4), support=lb.Support.REAL)
        >>> new = lb.ArraySource(torch.tensor([[0.5, 0.5, 0.5, 0.5], [9.0, -9.0, 9.0, -9.0]]), support=lb.Support.REAL)
        >>> found = score(vae, new, known, num_samples=10)
        >>> found.anomaly.argmax().item(), found.log_px.shape
        (1, torch.Size([2]))
    """
    check_scorable(vae, source, num_samples, limit)
    if not isinstance(reference, Reference):
        reference = reference_of(vae, reference, num_samples=num_samples, seed=seed)
    return Scores.joined(list(scored(vae, source, reference, limit=limit, regret=regret, seed=seed)))


def scored(
    vae: VAE,
    source: Source,
    reference: Reference,
    *,
    limit: int | None = None,
    regret: Refinement | None = None,
    seed: int = 0,
    on_progress: Report | None = None,
) -> Iterator[Scores]:
    """Yields the same, 500 examples at a time, so that memory does not grow with their number.

    Args:
        vae: The model.
        source: The examples.
        reference: What `reference_of` made of what is normal.
        limit: See `score`.
        regret: See `score`.
        seed: Seeds the draws.
        on_progress: Told how many examples are done, and of how many.

    Raises:
        UsageError: See `score`.
    """
    check_scorable(vae, source, reference.num_samples, limit)
    order = torch.arange(len(source)) if limit is None else _some(source, limit)
    for start in range(0, len(order), _BLOCK):
        rows, found = order[start : start + _BLOCK], []
        # Anew for each block: what the caller does between two of them must see neither mode nor generator changed.
        with inference(vae, seed) as device:
            for number, batch in enumerate(batches(source, rows, _BATCH, device), start // _BATCH):
                found.append(_measured(vae, batch, reference.num_samples, derive_seed(seed, 6, number), regret))
                _tell(on_progress, number, len(order))
        whole = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        label = None if source.labels is None else source.labels.cpu()[rows]
        yield replace(_held_against(reference, whole, rows), label=label)


def check_scorable(vae: VAE, source: Source, num_samples: int = 100, limit: int | None = None) -> None:
    """Raises `UsageError` when a source cannot be scored by a model: see `score`. It takes no time."""
    if len(source) == 0 or (limit is not None and limit < 1):
        raise UsageError(f"Scoring needs at least 1 example; got {len(source)} and a limit of {limit}.")
    vae.check_shape(source.event_shape)
    check_draws(num_samples)
    check_density(vae, "gives no bound on log p(x) to score by")
    vae.likelihood.check(source.support)
    vae.check_labels(source.labels)


def _some(source: Source, limit: int) -> Tensor:
    return torch.randperm(len(source), generator=generator(_REFERENCE_SEED))[:limit].sort().values


def _tell(on_progress: Report | None, number: int, total: int) -> None:
    if on_progress is not None:
        on_progress(min((number + 1) * _BATCH, total), total)


def _measured(
    vae: VAE, batch: Batch, num_samples: int, seed: int, regret: Refinement | None = None
) -> dict[str, Tensor]:
    """Returns what a model says of each example of a batch, float64 on the CPU."""
    seed_everything(seed, batch.x.device)
    one = vae.given(batch.label)
    evidence = measure(one, batch.x, num_samples, (num_samples,))
    features, _ = one.encoder.features(batch.x)
    found = {name: evidence[name] for name in ("log_px", "stderr", "elbo", "distortion", "rate")}
    if regret is not None:
        found["regret"] = posterior_gap(one, batch.x, max(_REGRET, num_samples), refinement=regret).amortisation
    known = {name: value.cpu().double() for name, value in found.items()}
    return known | {"direction": _directions(features.flatten(1).cpu().double())}


def _directions(features: Tensor) -> Tensor:
    """Returns where features `[N, F]` point to: vectors of length 1, sketched where they have too many components."""
    whole = F.normalize(features)
    size = whole.shape[1]
    if size <= _SKETCH:
        return whole
    draws = generator(_SKETCH_SEED)
    place = torch.randint(_SKETCH, (size,), generator=draws)
    sign = 2 * torch.randint(2, (size,), generator=draws) - 1
    return whole.new_zeros(len(whole), _SKETCH).index_add(1, place, whole * sign)


def _held_against(reference: Reference, found: dict[str, Tensor], rows: Tensor) -> Scores:
    distances, places = _nearest(found["direction"], reference.directions)
    far = distances.mean(1)
    rare = _nearest((_statistics(found, far) - reference.centre) / reference.spread, reference.statistics)[0].mean(1)
    local = _local(far, reference.far[places])
    return Scores(
        row=rows,
        log_px=found["log_px"],
        log_px_stderr=found["stderr"],
        elbo=found["elbo"],
        distortion=found["distortion"],
        rate=found["rate"],
        typicality=_within(-found["log_px"], reference.surprise).abs(),
        anomaly=_within(rare, reference.rarity) + _within(local, reference.locality),
        regret=found.get("regret"),
    )


def _statistics(found: dict[str, Tensor], far: Tensor) -> Tensor:
    """Returns the three statistics of examples, `[N, 3]`."""
    return torch.stack([found["distortion"], found["rate"], far], 1)


def _local(far: Tensor, theirs: Tensor) -> Tensor:
    """Returns how far examples are, `[N]`, for where they are: beside how far their neighbours are, `[N, k]`."""
    # Directions are of length 1: distances below the bound are rounding, or examples that occur more than once.
    return far.clamp_min(_ROUNDING).log() - theirs.mean(1).clamp_min(_ROUNDING).log()


def _spread(values: Tensor) -> tuple[float, float]:
    """Returns the mean of values, and their deviation or what stands for it."""
    return values.mean().item(), _unit(values.std(), values).item()


def _within(values: Tensor, spread: tuple[float, float]) -> Tensor:
    mean, deviation = spread
    return (values - mean) / deviation


def _nearest(points: Tensor, among: Tensor, own: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns the distances of points, `[N, D]`, to their nearest among others, and which these are, `[N, k]` each.

    Args:
        points: The points.
        among: The others.
        own: The place of the first point where the points are a part of the others; they are not their own neighbours.
    """
    distances = torch.cdist(points, among)
    if own is not None:
        places = torch.arange(len(points))
        distances[places, own + places] = torch.inf
    count = min(_NEIGHBOURS, len(among) - (own is not None))
    found = distances.topk(count, largest=False)
    return found.values, found.indices


def _unit(deviation: Tensor, values: Tensor) -> Tensor:
    """Returns what to measure values in: a deviation, or 1 where there is none but of rounding."""
    size = values.abs().amax(0)
    return torch.where(deviation > _ROUNDING * size.clamp_min(1e-30), deviation, torch.ones_like(deviation))
