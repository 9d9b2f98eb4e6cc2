"""The narrow waist: K draws of z for each x, and their log-densities.

Objectives, evidence and diagnostics are written against a `Trace` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from lowerbound.distributions import analytic_kl, analytic_kl_each


@dataclass(frozen=True)
class Trace:
    """K draws z ~ q(z|x) for each of B examples, and what the model makes of them.

    All log-densities are in nats and carry their constants. Those of z are evaluated when they are asked for: an
    objective with a closed-form KL never pays for them.

    Attributes:
        z: The draws, `[K, B, *latent]`.
        log_px_z: log p(x|z), `[K, B]`.
        q: q(z|x), batch shape `[B]`.
        p: p(z), batch shape `[]` or `[B]`.
    """

    z: Tensor
    log_px_z: Tensor
    q: Distribution
    p: Distribution

    @property
    def log_pz(self) -> Tensor:
        """Log p(z), `[K, B]`."""
        log_prob: Tensor = self.p.log_prob(self.z)
        return log_prob

    @property
    def log_qz(self) -> Tensor:
        """Log q(z|x), `[K, B]`."""
        log_prob: Tensor = self.q.log_prob(self.z)
        return log_prob

    @property
    def log_w(self) -> Tensor:
        """The log importance weight log p(x|z) + log p(z) - log q(z|x), `[K, B]`; its mean over q is the ELBO."""
        return self.log_px_z + self.log_pz - self.log_qz

    @property
    def kl(self) -> Tensor | None:
        """KL(q(z|x) || p(z)), `[B]`: in closed form, or None where there is none.

        A model that can integrate part of the noise out gives an unbiased estimate instead (`LadderTrace`).
        """
        return analytic_kl(self.q, self.p)

    @property
    def kl_draws(self) -> Tensor:
        """What each draw says of KL(q(z|x) || p(z)), `[K, B]`: an unbiased estimate.

        It is as free of noise as the model allows: the closed form, the same for every draw, where there is one; else
        log q(z|x) - log p(z).
        """
        kl = self.kl
        return self.log_qz - self.log_pz if kl is None else kl.expand(len(self.z), -1)

    @property
    def kl_each(self) -> Tensor | None:
        """The KL of each component of z, `[B, *latent]`, which add up to `kl`; None where it cannot be divided."""
        return analytic_kl_each(self.q, self.p)

    @property
    def rate_per_layer(self) -> Tensor | None:
        """The rate of each layer of a ladder, `[B, L]`; None where z has no layers."""
        return None

    def log_qz_split(self) -> tuple[Tensor, Tensor]:
        r"""Returns log q(z|x) twice, each with one half of its gradient, `[K, B]`.

        The parameters \(\phi\) of q move log q(z(phi)|x) along two ways, and some estimators need them apart:

        $$\frac{d \log q_\phi(z_\phi|x)}{d\phi} = \frac{\partial \log q}{\partial z}\frac{dz}{d\phi}
          + \frac{\partial \log q_\phi(z|x)}{\partial \phi}$$

        It asks nothing of q but a density that can be differentiated with respect to z: that derivative is taken here
        and now, and the first way is the straight line that has it as its slope.

        Returns:
            The *path*, with the gradient through z alone (as if q's parameters were detached), and the *score*, with
            the gradient of q's parameters alone (as if z were detached).
        """
        if not torch.is_grad_enabled():
            return (log_qz := self.log_qz), log_qz
        z = self.z.detach().requires_grad_()
        score: Tensor = self.q.log_prob(z)
        (slope,) = torch.autograd.grad(score.sum(), z, retain_graph=True)
        along = (slope * (self.z - z.detach())).flatten(score.ndim).sum(-1)
        return score.detach() + along, score
