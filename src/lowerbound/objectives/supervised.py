r"""A bound that takes in the true factors of some examples.

Nothing but x does not tell which z is the one with a meaning: for each model there is another with the same p(x) whose
components mix the factors in any way (Locatello et al., 2019, theorem 1). A few examples whose factors v are known
settle it. With a model of the factors that looks at one component each,

$$p(x, v, z) = p(x|z)\,p(z) \prod_{k=1}^F N\big(u_k; z_k, s^2\big), \qquad u_k = (v_k - c_k) / w_k$$

the bound on log p(x, v) of an example that is told, and on log p(x) of one that is not, is

$$E_q[\log p(x|z)] - KL(q(z|x) \,\|\, p(z)) + \sum_{k\ \mathrm{told}} E_q[\log N(u_k; z_k, s^2)]$$

with the last expectation in closed form for a normal q of independent components, \(-((u_k - \mu_k)^2 + \sigma_k^2) /
2 s^2\) and constants. It is the supervised regularisation of Locatello et al. (2020, "Disentangling factors of
variation using few labels") read as a likelihood, and with all factors told it is the bound of a model of x and v
together. In contrast to model M2 of Kingma et al. (2014), an unknown factor is not summed out: q has it as a component
of z like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowerbound.distributions import DiagonalNormal
from lowerbound.errors import UsageError
from lowerbound.model import VAE
from lowerbound.objectives.base import Objective, Terms


@dataclass(frozen=True)
class WithFactors(Objective):
    """An objective on x, and the bound's term for the factors that are known (module docstring).

    The first F components of z are those of the factors, in order. `loss` takes the term in; `elbo`, `kl` and
    `distortion` are of x alone, so they mean what they mean elsewhere. Called without `given`, no factor is known.

    Attributes:
        objective: The objective on x.
        centres: c, the value of each factor that lies at z_k = 0.
        widths: w, how much of each factor lies in one unit of z_k, above 0. With the standard deviation of a factor,
            the standard normal prior fits it.
        scale: s, the standard deviation of a factor about its component, in units of z_k.

    Raises:
        UsageError: There is not one width for each centre, or a width or the scale is not above 0.

    Example:
        >>> from lowerbound.objectives import ELBO
        >>> WithFactors(ELBO(), centres=(0.0, 1.5), widths=(50.0, 0.9)).scale
        0.1
    """

    objective: Objective
    centres: tuple[float, ...]
    widths: tuple[float, ...]
    scale: float = 0.1

    def __post_init__(self) -> None:
        if len(self.centres) != len(self.widths) or not all(0 < w < math.inf for w in (*self.widths, self.scale)):
            raise UsageError(
                "WithFactors needs one width above 0 for each centre, and a scale above 0; got "
                f"centres={self.centres}, widths={self.widths} and scale={self.scale}."
            )

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        return self.objective(vae, x, step)

    def given(self, factors: Tensor | None) -> Objective:
        return self if factors is None else _Told(self, factors)

    def check(self, vae: VAE) -> None:
        self.objective.check(vae)
        q = vae.example_posterior()
        if not isinstance(q, DiagonalNormal) or len(vae.latent_shape) != 1 or vae.latent_shape[0] < len(self.centres):
            raise UsageError(
                f"WithFactors gives each of {len(self.centres)} factors a component of z, and takes its expectation "
                f"under q in closed form: it needs a DiagonalNormal posterior of at least as many components, not a "
                f"{type(q).__name__} over z of shape {tuple(vae.latent_shape)}."
            )

    def notes(self) -> list[str]:
        told = f"the model was told the true factors of some training examples ({len(self.centres)} components of z)"
        return [*self.objective.notes(), f"{told}; the numbers here are of x alone"]

    def cost(self, q: DiagonalNormal, factors: Tensor) -> Tensor:
        """Returns minus the expected log-density of the factors that are known, `[B]`, in nats.

        Args:
            q: q(z|x), batch shape `[B]`.
            factors: `[B, F]`; NaN where one is not known.
        """
        loc, variance = q.loc[:, : len(self.centres)], q.variance[:, : len(self.centres)]
        known = factors.isfinite()
        # A NaN that is masked afterwards would still make the gradient one.
        u = (torch.where(known, factors, 0.0) - loc.new_tensor(self.centres)) / loc.new_tensor(self.widths)
        constants = loc.new_tensor([math.log(self.scale * w * math.sqrt(2 * math.pi)) for w in self.widths])
        each = ((u - loc).square() + variance) / (2 * self.scale**2) + constants
        return torch.where(known, each, 0.0).sum(1)


class _Told(Objective):
    """A `WithFactors` for one batch."""

    def __init__(self, whole: WithFactors, factors: Tensor) -> None:
        self.whole, self.factors = whole, factors

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        # The posterior that the objective itself draws from: a second pass of the encoder would cost a third more.
        seen: list[DiagonalNormal] = []
        watch = vae.encoder.register_forward_hook(lambda _module, _x, q: seen.append(q))
        try:
            terms = self.whole.objective(vae, x, step)
        finally:
            watch.remove()
        return replace(terms, loss=terms.loss + self.whole.cost(seen[0], self.factors))

    def check(self, vae: VAE) -> None:
        self.whole.check(vae)
