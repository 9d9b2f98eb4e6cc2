"""What an objective is, and what several of them ask of a model.

An objective is called with the model and a batch and returns `Terms`. `loss` is what is minimised and may be anything;
`elbo`, `kl` and `distortion` always mean what their names say, whatever the loss weighs them with.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.model import VAE, Trace


@dataclass(frozen=True)
class Terms:
    """The terms of an objective, per example, in nats.

    Attributes:
        loss: What is minimised, `[B]`. Only its mean over the batch has a meaning where an objective says so.
        distortion: -log p(x|z), averaged over the draws, `[B]`.
        kl: KL(q(z|x) || p(z)), closed form or an unbiased estimate, `[B]`; None without a density for q.
        elbo: The plain bound, -distortion - kl, `[B]`; None without a density for q.
        rate_per_layer: Of a ladder the KL of each layer, the lowest first, `[B, L]`, to be looked at: without a
            gradient, and as free of noise as can be (`LadderTrace`), also where `kl` is taken from the draws.
    """

    loss: Tensor
    distortion: Tensor
    kl: Tensor | None = None
    elbo: Tensor | None = None
    rate_per_layer: Tensor | None = None


class Objective(ABC):
    """Something to minimise."""

    @abstractmethod
    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        """Evaluates the objective.

        Args:
            vae: The model.
            x: A batch, `[B, *event]`.
            step: How many updates were made before this one; None means that any warm-up is over.
        """

    @abstractmethod
    def check(self, vae: VAE) -> None:
        """Raises `UsageError` when this objective means nothing for that model."""

    def given(self, factors: Tensor | None) -> Objective:
        """Returns the objective for a batch whose true factors, `[B, F]`, are those; one that asks for none: itself."""
        return self

    def notes(self) -> list[str]:
        """Returns what a reader of the resulting numbers must know, in words."""
        return []


def kl_of(trace: Trace, closed_form: bool = True) -> Tensor:
    """Returns KL(q(z|x) || p(z)), `[B]`: in closed form as far as that is wanted and goes, else from the draws."""
    kl = trace.kl if closed_form else None
    return (trace.log_qz - trace.log_pz).mean(0) if kl is None else kl


def rates_of(trace: Trace) -> Tensor | None:
    """Returns the rate of each layer of a ladder, `[B, L]`, without a gradient; None of any other model."""
    with torch.no_grad():
        return trace.rate_per_layer


def risen(step: int | None, warmup: int) -> float:
    """Returns how much of a linear rise over `warmup` updates is done, in [0, 1].

    Example:
        >>> [risen(step, 4) for step in (0, 1, 3, 100, None)]
        [0.0, 0.25, 0.75, 1.0, 1.0]
    """
    return 1.0 if step is None or step >= warmup else step / warmup


def require_density(vae: VAE) -> None:
    """Raises `UsageError` for a posterior without a density, or over discrete codes."""
    refuse_codes(vae)
    if not vae.has_density:
        raise UsageError(
            "A Delta posterior has no density, so there is no bound to maximise and no KL: use the objective "
            "Reconstruction or WAE, or a posterior with a density, such as DiagonalNormal."
        )


def refuse_codes(vae: VAE) -> None:
    """Raises `UsageError` for a z of discrete codes, through which an ordinary objective cannot be differentiated."""
    if vae.has_codes:
        raise UsageError(
            f"A {type(vae.encoder.head).__name__} encoder gives discrete codes: its posterior is one sequence of codes "
            "without noise, several draws are the same draw, and the codes have a training of their own. Use the "
            "objective Quantised, which maximises the same bound, or a posterior over real z, such as DiagonalNormal."
        )


def require_weights(objective: str, **weights: float) -> None:
    """Raises `UsageError` naming the first weight that is negative or not finite."""
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} of {objective} should be a finite number of at least 0; got {value}.")
