r"""What is missing, given what is there.

For a row with observed cells \(x_o\) and missing ones \(x_m\) (Mattei and Frellsen, 2019, "MIWAE: deep generative
modelling and imputation of incomplete data sets"),

$$E[h(x_m)|x_o] = \int E[h(x_m)|z]\,p(z|x_o)\,dz \approx \sum_{k=1}^K \tilde w_k\,E[h(x_m)|z_k], \qquad
  \tilde w_k \propto \frac{p(x_o|z_k)\,p(z_k)}{q(z_k|x_o)}, \quad z_k \sim q(z|x_o)$$

is self-normalised importance sampling: exact as K grows, whatever q is. Drawing k with probability \(\tilde w_k\), and
then \(x_m\) from \(p(x_m|z_k)\), gives completed rows (sampling importance resampling; Rubin, 1987): several of them,
carried through an analysis, tell how much of its result hangs on what was not known.

**Several models.** Trainings that differ in their seed, or in their settings, err in different cells, so the mean of M
models errs less, as that of the trees of a forest does. What is filled in is then of the mixture

$$p(x_m|x_o) = \frac1M \sum_{i=1}^M p_i(x_m|x_o)$$

with the same weight for each, as in deep ensembles (Lakshminarayanan, Pritzel and Blundell, 2017): not \(p_i(x_o)\), by
which the model that overfitted most would speak alone. A completed table comes from one model, the i-th from that at
place i modulo M: its rows share what is uncertain about the weights, as in multiple imputation the rows of a table
share one draw of the parameters (Rubin, 1987).

Of a model whose training repeated rows of rare classes, what is filled in is of the table all the same
(`lowerbound.data.tables.balance`).

All of it assumes that cells are missing at random: that whether a cell is missing depends on nothing but what was
observed. Where large values are withheld because they are large, what is filled in is too small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowerbound.data import Column
from lowerbound.errors import UsageError
from lowerbound.evidence.checks import check_density, check_draws
from lowerbound.evidence.checks import draw as draw_z
from lowerbound.heads import Columns
from lowerbound.mixed import Row
from lowerbound.model import VAE, Trace
from lowerbound.tasks import inference

# Decoder inputs a pass: draws times rows.
_CHUNK = 20_000
# Proposals for each row that is wanted of those with given cells, and bounds on their number.
_PROPOSALS, _FEWEST, _MOST = 200, 10_000, 200_000


@dataclass(frozen=True)
class Imputation:
    """Rows with their holes filled, in units of x.

    Attributes:
        x: The rows, `[B, D]`; a missing cell is filled with its conditional mean, the nearest count to that, or the
            likeliest label. (Of a positive column the mean is that of the logarithm.)
        low: The lower end of an interval that holds a missing cell with the probability asked for, `[B, D]`; the cell
            itself where it was there, NaN for labels.
        high: The upper end.
        draws: Completed rows, drawn independently given what was observed, `[M, B, D]`.
        ess: The effective number of draws of z for each row, from 1 to `num_samples` times the models, `[B]`.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    draws: Tensor
    ess: Tensor


def impute(
    vae: VAE | Sequence[VAE],
    x: Tensor,
    num_samples: int = 1000,
    *,
    draws: int = 0,
    interval: float = 0.9,
    seed: int = 0,
) -> Imputation:
    """Fills the holes of rows (module docstring).

    Args:
        vae: A model of tables (`heads.Columns`), or several of the same columns, on one device.
        x: Rows, `[B, D]`, NaN where a cell is missing.
        num_samples: K, draws of z a row, of each model.
        draws: M, how many completed tables to draw; of several models as many as there are of them, or a multiple.
        interval: The probability that an interval holds the cell, in (0, 1).
        seed: Seeds the draws.

    Raises:
        UsageError: A model is none of tables, their columns differ, q has no density, or a number is out of range.

    Example:
        >>> import lowerbound as lb
        >>> columns = (lb.data.Column("a", lb.data.Kind.REAL), lb.data.Column("b", lb.data.Kind.COUNT))
        >>> front = lb.nn.CellInput(columns, lb.nn.MLP((lb.nn.CellInput.width_of(columns),), (8,)))
        >>> vae = lb.VAE(
        ...     lb.heads.Conditional(front, lb.heads.DiagonalNormal((8,), (2,))),
        ...     lb.heads.Conditional(lb.nn.MLP((2,), (8,)), lb.heads.Columns((8,), columns)),
        ...     lb.priors.StandardNormal(2),
        ... )
        >>> filled = impute(vae, torch.tensor([[0.5, float("nan")]]), 50, draws=3)
        >>> filled.x[0, 0].item(), filled.draws.shape
        (0.5, torch.Size([3, 1, 2]))
    """
    vaes = [vae] if isinstance(vae, VAE) else list(vae)
    if not vaes:
        raise UsageError("Cells are filled in by one model or more; got none.")
    for each in vaes:
        _check(each, x)
        check_density(each, "cannot propose draws to weigh")
    check_same_columns({f"model {place}": each for place, each in enumerate(vaes)})
    check_draws(num_samples)
    if not 0 < interval < 1 or draws < 0:
        raise UsageError(
            f"Filling in takes an interval's probability between 0 and 1 and a number of draws from 0 on; got "
            f"interval={interval} and draws={draws}."
        )
    with ExitStack() as stack:
        devices = [stack.enter_context(inference(each, seed)) for each in vaes]
        rows = x.split(max(1, _CHUNK // (num_samples * len(vaes)))) if len(x) else (x,)
        parts = [_fill(vaes, part.to(devices[0]), num_samples, draws, interval) for part in rows]
    return Imputation(
        x=torch.cat([p.x for p in parts]).cpu(),
        low=torch.cat([p.low for p in parts]).cpu(),
        high=torch.cat([p.high for p in parts]).cpu(),
        draws=torch.cat([p.draws for p in parts], 1).cpu(),
        ess=torch.cat([p.ess for p in parts]).cpu(),
    )


def check_same_columns(models: Mapping[str, VAE]) -> None:
    """Checks that the same x means the same to models of tables, by their names.

    Raises:
        UsageError: The columns of one are not those of the first.
    """
    (first, known), *others = ((name, _meant(vae)) for name, vae in models.items())
    for name, columns in others:
        if columns == known:
            continue
        odd = sorted({c.name for c in set(columns) ^ set(known)})
        what = f"the columns {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}" if odd else "the order of columns"
        raise UsageError(
            f"Models fill in together if they read a table in the same way, with the same labels and units; {name} "
            f"differs from {first} in {what}. Train them on one file, with the same --columns and --ignore."
        )


def _meant(vae: VAE) -> tuple[Column, ...]:
    """Returns the columns without what only training made of them."""
    return tuple(replace(column, repeats=()) for column in _head(vae).columns)


def _check(vae: VAE, x: Tensor) -> None:
    if not isinstance(vae.likelihood, Columns):
        raise UsageError(
            f"Cells are filled in by a model of tables, with the likelihood Columns; this one has the likelihood "
            f"{type(vae.likelihood).__name__}. Train one on a table: lowerbound train tabular."
        )
    if x.shape[1:] != vae.event_shape:
        raise UsageError(f"The model has rows of shape {vae.event_shape}; got x of shape {tuple(x.shape)}.")


@dataclass(frozen=True)
class _Posterior:
    """Draws of z from q(z|x_o), `[K, B, D_z]`, what they say of x_m, and their weights, float64 `[K, B]`."""

    vae: VAE
    z: Tensor
    p: Row
    weights: Tensor

    @classmethod
    def of(cls, vae: VAE, x: Tensor, num_samples: int) -> _Posterior:
        q = vae.encoder(x)
        z = q.rsample((num_samples,))
        p, log_px_z = _rows(vae, z, x)
        return cls(vae, z, p, Trace(z, log_px_z, q, vae.prior()).log_w.double().softmax(0))

    def completed(self, x: Tensor, draws: int) -> Tensor:
        """Returns rows drawn given what is there, `[M, B, D]`."""
        if not draws:
            return x.new_empty(0, *x.shape)
        chosen = torch.multinomial(self.weights.T, draws, replacement=True).T
        kept = self.z.gather(0, chosen[..., None].expand(-1, -1, self.z.shape[-1]))
        return torch.where(torch.isnan(x), _rows(self.vae, kept, x)[0].sample(), x)


def _fill(vaes: list[VAE], x: Tensor, num_samples: int, draws: int, interval: float) -> Imputation:
    each = [_Posterior.of(vae, x, num_samples) for vae in vaes]
    missing = torch.isnan(x)
    expected = zip(*(one.p.expected(one.weights.to(x.dtype)) for one in each), strict=True)
    guess = torch.where(missing, each[0].p.guess([torch.stack(parts).mean(0) for parts in expected]), x)
    weights = torch.cat([one.weights for one in each]) / len(each)
    low, high = _quantiles(torch.cat([one.p.sample() for one in each]), weights.to(x.dtype), interval)
    labels = torch.tensor([column.kind.has_levels for column in _head(vaes[0]).columns], device=x.device)
    low, high = (torch.where(missing, end.masked_fill(labels, torch.nan), x) for end in (low, high))
    made = x.new_empty(draws, *x.shape)
    for place, one in enumerate(each):
        made[place :: len(each)] = one.completed(x, len(range(place, draws, len(each))))
    return Imputation(guess, low, high, made, 1 / weights.square().sum(0))


def _rows(vae: VAE, z: Tensor, x: Tensor) -> tuple[Row, Tensor]:
    """Returns p(x_m|z) and log p(x_o|z), both of the table also where training repeated rows of rare classes.

    Where the class is missing, draws of x_m are kept with probability 1 / repeats: what the weight of z loses by that
    counts with the observed cells.
    """
    p = vae.decoder(z)
    restored, log_kept = vae.likelihood.restored(p)
    assert isinstance(restored, Row)
    log_prob: Tensor = p.log_prob(x)
    return restored, log_prob if log_kept is None else log_prob + (log_kept * torch.isnan(x)).sum(-1)


def _head(vae: VAE) -> Columns:
    head = vae.likelihood
    assert isinstance(head, Columns)
    return head


def _quantiles(draws: Tensor, weights: Tensor, interval: float) -> tuple[Tensor, Tensor]:
    """Returns the quantiles of weighted draws, `[K, B, D]` with `[K, B]`, at both ends of a central interval."""
    values, order = draws.sort(0)
    mass = weights[..., None].expand_as(draws).gather(0, order).cumsum(0)
    last = len(draws) - 1
    places = [(mass < level).sum(0, keepdim=True).clamp_max(last) for level in ((1 - interval) / 2, (1 + interval) / 2)]
    low, high = (values.gather(0, place).squeeze(0) for place in places)
    return low, high


def sample_given(vae: VAE, given: Tensor, n: int, *, seed: int = 0) -> tuple[Tensor, float]:
    """Generates rows some of whose cells are given: z from the prior, resampled by p(given cells|z), then the rest.

    It is exact as the number of proposals grows (200 for each row, from 10,000 to 200,000). Where the given cells are
    improbable under the model, few of the proposals carry all the weight, and rows repeat each other's z.

    Args:
        vae: A model of tables (`heads.Columns`).
        given: One row, `[D]`, NaN where a cell is free.
        n: How many rows, at least 1.
        seed: Seeds the draws.

    Returns:
        The rows, `[n, D]`, and the effective number of proposals: much less than n means that the rows are few in
        truth.

    Raises:
        UsageError: The model is none of tables, or `n` is below 1.
    """
    _check(vae, given[None])
    if n < 1:
        raise UsageError(f"A sample has at least 1 row; got n={n}.")
    with inference(vae, seed) as device:
        row = given.to(device)
        proposals = min(max(_PROPOSALS * n, _FEWEST), _MOST)
        z = draw_z(vae.prior(), 1, proposals)[0]
        log_w = torch.cat([_rows(vae, part, row)[1] for part in z.split(_CHUNK)])
        weights = log_w.double().softmax(0)
        chosen = z[torch.multinomial(weights, n, replacement=True)]
        made = torch.cat([_rows(vae, part, row)[0].sample() for part in chosen.split(_CHUNK)])
        return torch.where(torch.isnan(row), made, row).cpu(), float(1 / weights.square().sum())
