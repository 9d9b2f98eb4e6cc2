r"""Objectives: what is optimised, per example.

The evidence lower bound (Kingma and Welling, 2014, eq. 3):

$$ELBO(x) = E_{q(z|x)}[\log p(x|z)] - KL(q(z|x)\,\|\,p(z)) = \log p(x) - KL(q(z|x)\,\|\,p(z|x))$$

Its first term, negated, is the *distortion*; the KL is the *rate*. The expectation is estimated with reparameterised
draws, so the gradient goes through them; the KL is taken in closed form where there is one.

An objective is called with the model and a batch and returns `Terms`. `loss` is what is minimised and may be anything;
`elbo`, `kl` and `distortion` always mean what their names say, whatever the loss weighs them with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.model import VAE


@dataclass(frozen=True)
class Terms:
    """The terms of an objective, per example, in nats.

    Attributes:
        loss: What is minimised, `[B]`.
        distortion: -log p(x|z), averaged over the draws, `[B]`.
        kl: KL(q(z|x) || p(z)), closed form or an unbiased estimate, `[B]`; None without a density for q.
        elbo: The plain bound, -distortion - kl, `[B]`; None without a density for q.
    """

    loss: Tensor
    distortion: Tensor
    kl: Tensor | None = None
    elbo: Tensor | None = None


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

    def notes(self) -> list[str]:
        """Returns what a reader of the resulting numbers must know, in words."""
        return []


@dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound, negated.

    Attributes:
        beta: The weight of the KL (Higgins et al., 2017, eq. 4); 1 is the bound itself.
        warmup: Updates over which the weight rises linearly from 0 to `beta` (Bowman et al., 2016; Sønderby et al.,
            2016).
        num_samples: Draws of z an example.
        closed_form: Use the closed form of the KL where there is one, instead of the draws.

    Raises:
        UsageError: `beta` or `warmup` is negative, or `num_samples` is below 1.
    """

    beta: float = 1.0
    warmup: int = 0
    num_samples: int = 1
    closed_form: bool = True

    def __post_init__(self) -> None:
        if not self.beta >= 0 or self.warmup < 0 or self.num_samples < 1:
            raise UsageError(
                f"An ELBO needs beta >= 0, warmup >= 0 and num_samples >= 1; got beta={self.beta}, "
                f"warmup={self.warmup}, num_samples={self.num_samples}."
            )

    def weight(self, step: int | None) -> float:
        """Returns the weight of the KL at an update.

        Example:
            >>> [ELBO(warmup=4).weight(step) for step in (0, 1, 3, 100, None)]
            [0.0, 0.25, 0.75, 1.0, 1.0]
        """
        if step is None or step >= self.warmup:
            return self.beta
        return self.beta * step / self.warmup

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x, self.num_samples)
        distortion = -trace.log_px_z.mean(0)
        kl = trace.kl if self.closed_form else None
        if kl is None:
            kl = (trace.log_qz - trace.log_pz).mean(0)
        weight = self.weight(step)
        loss = distortion + (kl if weight == 1 else weight * kl)
        return Terms(loss, distortion, kl, -distortion - kl)

    def check(self, vae: VAE) -> None:
        if not vae.has_density:
            raise UsageError(
                "A Delta posterior has no density, so there is no bound to maximise: use the objective Reconstruction, "
                "or a DiagonalNormal posterior."
            )

    def notes(self) -> list[str]:
        if self.beta == 1:
            return []
        weighted = f"the model was trained with the KL weighted by beta = {self.beta:g}"
        return [f"{weighted}; the numbers here are of the plain bound (beta = 1)"]


@dataclass(frozen=True)
class Reconstruction(Objective):
    """The distortion alone: what a plain autoencoder minimises.

    With a Delta posterior there is no rate to speak of: the code may hold any amount of information.
    """

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        distortion = -vae.trace(x).log_px_z[0]
        return Terms(distortion, distortion)

    def check(self, vae: VAE) -> None:
        """Accepts any model."""

    def notes(self) -> list[str]:
        return ["the model was trained to reconstruct, not to bound log p(x)"]
