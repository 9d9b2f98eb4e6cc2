r"""Quadrature: log p(x) and p(z|x) on a grid, exact for all practical purposes, for 1 or 2 latent components.

$$p(x) = \int p(x|z)\,p(z)\,dz \approx h^D \sum_i p(x|z_i)\,p(z_i)$$

is the trapezoidal rule on equally spaced points \(z_i\). For a smooth function that has vanished at both ends of the
grid its error falls exponentially as the spacing h shrinks (Trefethen and Weideman, 2014, "The exponentially convergent
trapezoidal rule"): a normal density is integrated to all digits of float64 once h is below two thirds of its standard
deviation.

Each example has its own grid. The first covers what the prior and q reach, with points spaced for either, so that
neither a broad nor a sharp p(z|x) is missed; then the grid closes in, round by round, on the region where p(x, z) is
within 40 nats of its peak. Two numbers say whether to trust the result: `border`, the part of the mass in the outermost
points, and `error`, the difference from the rule with every other point left out: far more than the spacing costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from lowerbound.errors import UsageError
from lowerbound.evidence.checks import CHUNK, check_continuous, check_examples, draw, within
from lowerbound.model import VAE

# Nats below the peak at which the integrand is cut off, and the largest share of the mass that may lie at the border.
_CUT = 40.0
_MAX_BORDER = 1e-6
_ROUNDS = 10
_MOMENT_DRAWS = 2000


@dataclass(frozen=True)
class QuadratureEvidence:
    """log p(x) by quadrature and the posterior on a grid, for each example.

    Attributes:
        log_px: log p(x), nats, `[B]`.
        error: |log p(x) - log p(x) with twice the spacing|, nats, `[B]`.
        border: The part of the mass that lies in the outermost points of the grid, `[B]`.
        axes: The grid's points along each component of z, `[B, D, P]`.
        log_posterior: log p(z|x) at the grid's points, `[B, P]` for one component and `[B, P, P]` for two; it
            integrates to 1.
    """

    log_px: Tensor
    error: Tensor
    border: Tensor
    axes: Tensor
    log_posterior: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of p(z|x), `[B, D]`."""
        mass = self.log_posterior.flatten(1).softmax(1).unflatten(1, self.log_posterior.shape[1:])
        components = self.axes.shape[1]
        marginals = [mass.flatten(2).sum(2), mass.sum(1)] if components == 2 else [mass]
        return torch.stack([(m * self.axes[:, d]).sum(1) for d, m in enumerate(marginals)], 1)


@torch.no_grad()
def quadrature_evidence(
    vae: VAE, x: Tensor, *, points: int = 201, reach: float = 10.0, chunk: int = CHUNK
) -> QuadratureEvidence:
    """Integrates p(x|z) p(z) on a grid for each example (module docstring).

    It asks nothing of q but where it lies, and so works for a plain autoencoder too.

    Args:
        vae: The model, in evaluation mode, with 1 or 2 latent components.
        x: Examples, `[B, *event]`.
        points: P, grid points along each component, at least 9; an odd number. The decoder sees
            points^D inputs an example a round, of which there are 3 to 5 as a rule.
        reach: How far the first grid goes from the means of the prior and of q, in their standard deviations.
        chunk: Decoder inputs a pass at most, fewer where x is large.

    Raises:
        UsageError: The model has more than 2 latent components, there are no examples, `points` will not do, or mass
            lies at the border of the grid.
    """
    check_examples(x)
    check_continuous(vae, "to integrate on a grid")
    _check_grid(vae, points, reach)
    joint = _Joint(vae, x, within(chunk, vae))
    axes = _first_axes(vae, x, points, reach)
    log_joint = joint(axes)
    for _ in range(_ROUNDS):
        low, high = _region(axes, log_joint)
        before, axes = axes, _uniform(low, high, points)
        log_joint = joint(axes)
        if _settled(before, axes):
            break
    return _integrated(axes, log_joint)


def _check_grid(vae: VAE, points: int, reach: float) -> None:
    latent = math.prod(vae.latent_shape)
    if latent > 2:
        raise UsageError(
            f"A grid is for 1 or 2 latent components, and this model has {latent}, so that it would take "
            f"{points}^{latent} points. Use log_evidence (importance weighting), or annealed_evidence where its k-hat "
            "is above 0.7."
        )
    if points < 9 or points % 2 == 0 or not reach > 0:
        raise UsageError(
            f"Quadrature needs an odd number of points of at least 9 along each component, and a reach above 0; got "
            f"points={points}, reach={reach}. The defaults are 201 and 10."
        )


class _Joint:
    """log p(x, z) on grids."""

    def __init__(self, vae: VAE, x: Tensor, chunk: int) -> None:
        self.vae, self.x, self.p = vae, x, vae.prior()
        self.rows = max(1, chunk // len(x))

    def __call__(self, axes: Tensor) -> Tensor:
        """Takes axes `[B, D, P]`; returns log p(x, z) at each point of the grid, float64 `[P, B]` or `[P, P, B]`."""
        points = axes.shape[-1]
        shape = (points,) * axes.shape[1]
        index = torch.cartesian_prod(*[torch.arange(points, device=axes.device)] * len(shape)).reshape(-1, len(shape))
        values = [self._at(axes, rows) for rows in index.split(self.rows)]
        return torch.cat(values).reshape(*shape, len(self.x))

    def _at(self, axes: Tensor, rows: Tensor) -> Tensor:
        z = torch.stack([axes[:, d, rows[:, d]].T for d in range(rows.shape[1])], -1)
        z = z.to(self.x.dtype).reshape(*z.shape[:2], *self.vae.latent_shape)
        log_joint: Tensor = self.vae.decoder(z).log_prob(self.x) + self.p.log_prob(z)
        return log_joint.double()


def _first_axes(vae: VAE, x: Tensor, points: int, reach: float) -> Tensor:
    """Points spaced for the prior and for q together, sorted, `[B, D, P']`."""
    axes = []
    for distribution in (vae.prior(), vae.encoder(x)):
        moments = _moments(distribution, len(x))
        mean, spread = (m.expand(len(x), *vae.latent_shape).flatten(1).double() for m in moments)
        axes.append(_uniform(mean - reach * spread, mean + reach * spread, points // 2 + 1))
    return torch.cat(axes, -1).sort(-1).values


def _moments(distribution: Distribution, examples: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation; from draws where the distribution, as a flow, does not know them."""
    try:
        return distribution.mean, distribution.stddev
    except NotImplementedError:
        z = draw(distribution, _MOMENT_DRAWS, examples)
        return z.mean(0), z.std(0)


def _uniform(low: Tensor, high: Tensor, points: int) -> Tensor:
    """Returns equally spaced points from `low` to `high` (`[B, D]`), `[B, D, points]`."""
    fraction = torch.linspace(0, 1, points, dtype=low.dtype, device=low.device)
    return torch.lerp(low[..., None], high[..., None], fraction)


def _region(axes: Tensor, log_joint: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the ends, `[B, D]` each, of the box in which the integrand matters, one grid point wider on each side.

    Where it matters at the grid's very end the box goes further, by half of its width: a sharp peak between the points
    of one grid can lie outside the box that they suggest.
    """
    inside = log_joint > log_joint.flatten(0, -2).amax(0) - _CUT
    components, points = axes.shape[1:]
    lows, highs = [], []
    for d in range(components):
        others = [other for other in range(components) if other != d]
        kept = inside.any(others[0]) if others else inside  # [P, B]
        first = kept.double().argmax(0)
        last = points - 1 - kept.flip(0).double().argmax(0)
        around = torch.stack([(first - 1).clamp_min(0), (last + 1).clamp_max(points - 1)], -1)
        low, high = axes[:, d].gather(1, around).unbind(-1)
        margin = (high - low) / 2
        lows.append(low - margin * (first == 0))
        highs.append(high + margin * (last == points - 1))
    return torch.stack(lows, 1), torch.stack(highs, 1)


def _settled(before: Tensor, after: Tensor) -> bool:
    """Whether no box moved or shrank by more than a fifth of its width."""
    width = after[..., -1] - after[..., 0]
    moved = torch.stack([after[..., 0] - before[..., 0], after[..., -1] - before[..., -1]])
    return bool((moved.abs() <= 0.2 * width).all())


def _integrated(axes: Tensor, log_joint: Tensor) -> QuadratureEvidence:
    log_px = _trapezoid(axes, log_joint)
    every_other = (slice(None, None, 2),) * axes.shape[1]
    coarse = _trapezoid(axes[..., ::2], log_joint[every_other])
    inner = (slice(1, -1),) * axes.shape[1]
    shares = [part.flatten(0, -2).logsumexp(0) for part in (log_joint[inner], log_joint)]
    border = -torch.expm1(shares[0] - shares[1])
    if (border > _MAX_BORDER).any():
        raise UsageError(
            f"Up to {border.max().item():.2g} of the mass of p(x, z) lies at the border of the grid, so that more lies "
            "beyond it and log p(x) would come out too low. Give a larger reach, or use annealed_evidence."
        )
    return QuadratureEvidence(
        log_px=log_px,
        error=(log_px - coarse).abs(),
        border=border.clamp_min(0),
        axes=axes,
        log_posterior=(log_joint - log_px).movedim(-1, 0),
    )


def _trapezoid(axes: Tensor, log_joint: Tensor) -> Tensor:
    """Integrates exp(log_joint) over equally spaced axes; returns the logarithm, `[B]`."""
    points = axes.shape[-1]
    halved = torch.zeros(points, dtype=log_joint.dtype, device=log_joint.device)
    halved[[0, -1]] = -math.log(2)
    for _ in range(axes.shape[1]):
        # One axis of the grid goes at a time, the first of those that are left.
        log_joint = (log_joint + halved.reshape(-1, *[1] * (log_joint.ndim - 1))).logsumexp(0)
    spacing = axes[..., 1] - axes[..., 0]
    return log_joint + spacing.log().sum(1)
