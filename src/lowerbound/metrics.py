"""Diagnostics of the latent space."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVE_THRESHOLD = 0.01


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
