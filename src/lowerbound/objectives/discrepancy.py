r"""Discrepancies between the codes of the data and the prior, and the objectives that penalise them.

The aggregate posterior \(q(z) = E_{p(x)}[q(z|x)]\) is where the decoder is taught; the prior is where it is asked to
generate. The maximum mean discrepancy compares the two by draws alone, without a density of either:

$$MMD^2(q, p) = E[k(z, z')] + E[k(\bar z, \bar z')] - 2 E[k(z, \bar z)],
  \qquad z, z' \sim q(z), \quad \bar z, \bar z' \sim p(z)$$

It is zero when they are the same and positive otherwise (for a characteristic kernel). It is a property of a batch, not
of an example, and is added to the loss of each, so that the mean of the loss is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.model import VAE, Trace
from lowerbound.objectives.base import Objective, Terms, kl_of, rates_of, refuse_codes, require_density, require_weights

_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class InverseMultiquadratic:
    r"""The kernel of Tolstikhin, Bousquet, Gelly and Schölkopf (2018), summed over several widths.

    $$k(a, b) = \sum_s \frac{s C}{s C + \|a - b\|^2}, \qquad C = 2 D \sigma^2$$

    C is the expected squared distance between two draws of a normal prior with variance \(\sigma^2\) in each of D
    components. The paper has the one width C; the sum over `scales` is what its authors' program computes.

    Attributes:
        variance: The variance of a component of z under the prior.
        scales: s, multiples of C.

    Raises:
        UsageError: A number is not above 0, or there are no scales.

    Example:
        >>> kernel = InverseMultiquadratic(scales=(1.0,))
        >>> kernel(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        tensor([[1.0000, 0.5000]])
    """

    variance: float = 1.0
    scales: tuple[float, ...] = _SCALES

    def __post_init__(self) -> None:
        if not self.scales or not min(self.variance, *self.scales) > 0:
            raise UsageError(
                f"A kernel needs a variance above 0 and at least one scale above 0; got variance={self.variance}, "
                f"scales={self.scales}."
            )

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns k for each pair, `[n, m]`, from `[n, D]` and `[m, D]`."""
        # Differences before squares: products of matrices would cancel, and run in half precision under autocast.
        distance = (a[:, None] - b).square().sum(-1)
        widths = (2 * a.shape[1] * self.variance * scale for scale in self.scales)
        return torch.stack([width / (width + distance) for width in widths]).sum(0)


def mmd(a: Tensor, b: Tensor, kernel: InverseMultiquadratic) -> Tensor:
    """Estimates the squared maximum mean discrepancy between what a and b were drawn from.

    The U-statistic (Gretton, Borgwardt, Rasch, Schölkopf and Smola, 2012, lemma 6): no draw is paired with itself,
    which makes the estimate unbiased, and now and then negative.

    Args:
        a: Independent draws, `[n, D]`.
        b: Independent draws, `[m, D]`.
        kernel: k.

    Returns:
        A scalar; zero if n or m is 1, when there is no pair to compare.
    """
    if min(len(a), len(b)) < 2:
        return a.new_zeros(())
    return _mean_of_pairs(kernel(a, a)) + _mean_of_pairs(kernel(b, b)) - 2 * kernel(a, b).mean()


def _mean_of_pairs(k: Tensor) -> Tensor:
    count = len(k)
    return (k.sum() - k.diagonal().sum()) / (count * (count - 1))


def _penalty(trace: Trace, kernel: InverseMultiquadratic) -> Tensor:
    """Returns the discrepancy between one draw of q(z|x) an example, and as many of the prior."""
    z = trace.z[0]
    draw = trace.p.rsample if trace.p.has_rsample else trace.p.sample
    prior = draw() if trace.p.batch_shape else draw((len(z),))
    return mmd(z.flatten(1), prior.flatten(1), kernel)


@dataclass(frozen=True)
class InfoVAE(Objective):
    r"""The ELBO with its KL traded for a discrepancy of the aggregate posterior (Zhao, Song and Ermon, 2019).

    $$-E_q[\log p(x|z)] + (1 - \alpha)\,KL(q(z|x)\,\|\,p(z)) + (\alpha + \lambda - 1)\,MMD^2(q(z), p(z))$$

    The KL makes every single q(z|x) resemble the prior, which costs information about x; the discrepancy asks it of
    their mixture only. With alpha = 1 there is no KL left; with alpha = 0 and lambda_ = 1, no discrepancy.

    Attributes:
        alpha: What is taken from the weight of the KL; at most 1.
        lambda_: The weight of the discrepancy is alpha + lambda_ - 1, at least 0.
        kernel: The kernel of the discrepancy.
        closed_form: Use the closed form of the KL where there is one, instead of the draw.

    Raises:
        UsageError: A weight would be negative.
    """

    alpha: float = 0.0
    lambda_: float = 10.0
    kernel: InverseMultiquadratic = InverseMultiquadratic()
    closed_form: bool = True

    def __post_init__(self) -> None:
        require_weights("an InfoVAE", **{"1 - alpha": 1 - self.alpha, "alpha + lambda_ - 1": self._mmd_weight})

    @property
    def _mmd_weight(self) -> float:
        return self.alpha + self.lambda_ - 1

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x)
        distortion, kl = -trace.log_px_z[0], kl_of(trace, self.closed_form)
        loss = distortion + (1 - self.alpha) * kl + self._mmd_weight * _penalty(trace, self.kernel)
        return Terms(loss, distortion, kl, -distortion - kl, rates_of(trace))

    def check(self, vae: VAE) -> None:
        require_density(vae)

    def notes(self) -> list[str]:
        weights = f"the KL weighted by {1 - self.alpha:g} and the discrepancy of q(z) from p(z) by {self._mmd_weight:g}"
        return [f"the model was trained with {weights} (InfoVAE); the numbers here are of the plain bound"]


@dataclass(frozen=True)
class WAE(Objective):
    r"""The Wasserstein autoencoder with MMD (Tolstikhin, Bousquet, Gelly and Schölkopf, 2018, algorithm 2).

    $$-E_q[\log p(x|z)] + \lambda\,MMD^2(q(z), p(z))$$

    The encoder may be a single point (`Delta`), as in the paper, or have noise. The cost of a reconstruction is the
    distortion, where the paper has any cost: a `Normal` likelihood of a fixed scale s makes it the paper's squared
    distance over 2 s² and a constant.

    Attributes:
        lambda_: The weight of the discrepancy.
        kernel: The kernel of the discrepancy.

    Raises:
        UsageError: `lambda_` is negative.
    """

    lambda_: float = 10.0
    kernel: InverseMultiquadratic = InverseMultiquadratic()

    def __post_init__(self) -> None:
        require_weights("a WAE", lambda_=self.lambda_)

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x)
        distortion = -trace.log_px_z[0]
        loss = distortion + self.lambda_ * _penalty(trace, self.kernel)
        if not vae.has_density:
            return Terms(loss, distortion)
        kl = kl_of(trace)
        return Terms(loss, distortion, kl, -distortion - kl, rates_of(trace))

    def check(self, vae: VAE) -> None:
        """Accepts any model but one of discrete codes."""
        refuse_codes(vae)

    def notes(self) -> list[str]:
        weight = f"the discrepancy of q(z) from p(z) weighted by {self.lambda_:g}"
        return [f"the model was trained to reconstruct, with {weight} (WAE), not to bound log p(x)"]
