r"""The evidence: log p(x), measured.

$$\log p(x) = \log \int p(x|z)\,p(z)\,dz$$

has no closed form, but with draws from q(z|x) and weights \(w_k = p(x|z_k)\,p(z_k) / q(z_k|x)\),

$$L_K = \log \tfrac1K \sum_k w_k, \qquad E[L_K] \le \log p(x), \qquad L_1 \to ELBO$$

rises with K to log p(x) (Burda, Grosse and Salakhutdinov, 2016, theorem 1). It stays a lower bound in expectation, so
the number errs on the modest side; by how much, the weights themselves tell:

* the **effective sample size** \((\sum w)^2 / \sum w^2\), from 1 (one draw carries everything) to K;
* **k-hat**, the shape of a generalised Pareto distribution fitted to the largest weights (Vehtari, Simpson, Gelman, Yao
  and Gabry, 2024, "Pareto smoothed importance sampling"). Above 0.7 the weights have so heavy a tail that the estimate
  cannot be trusted.

The K draws of an example go through the decoder a chunk at a time and only sums and the largest weights are kept, so
memory grows neither with K nor with the number of examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.model import VAE

KHAT_LIMIT = 0.7
# Decoder inputs a pass: enough to fill the matrix units, few enough to stay in the processor's cache.
_CHUNK = 2000
_MIN_TAIL = 5


@dataclass(frozen=True)
class Evidence:
    """log p(x) and its parts for each example, in nats.

    Attributes:
        log_px: The importance-weighted bound L_K, `[B]`.
        elbo: -distortion - rate, `[B]`.
        distortion: -log p(x|z), averaged over the draws, `[B]`.
        rate: KL(q(z|x) || p(z)), in closed form where there is one and else from the draws, `[B]`.
        ess: Effective sample size, in [1, K], `[B]`.
        khat: Pareto shape of the largest weights, `[B]`; NaN where there are too few draws to tell.
        num_samples: K.
    """

    log_px: Tensor
    elbo: Tensor
    distortion: Tensor
    rate: Tensor
    ess: Tensor
    khat: Tensor
    num_samples: int

    @property
    def stderr(self) -> Tensor:
        """The Monte-Carlo standard error of `log_px`, `[B]`, by the delta method: sqrt(1 / ess - 1 / K).

        It is itself an estimate from the same draws, and too small where k-hat is above 0.7.
        """
        return (1 / self.ess - 1 / self.num_samples).clamp_min(0).sqrt()


@torch.no_grad()
def log_evidence(vae: VAE, x: Tensor, num_samples: int = 1000, *, chunk: int = _CHUNK) -> Evidence:
    """Estimates log p(x) for each example by importance weighting (module docstring).

    Args:
        vae: The model, in evaluation mode.
        x: Examples, `[B, *event]`.
        num_samples: K, the draws from q(z|x) an example.
        chunk: Decoder inputs a pass (draws times examples); memory is proportional to it, the result does not depend
            on it but for the noise.

    Raises:
        UsageError: `num_samples` is below 1, or q has no density.
    """
    if num_samples < 1:
        raise UsageError(f"The evidence needs at least 1 draw an example; got num_samples={num_samples}.")
    if not vae.has_density:
        raise UsageError(
            "A Delta posterior has no density, so it cannot propose: log p(x) cannot be estimated from it."
        )
    draws = max(1, min(num_samples, chunk // max(len(x), 1)))
    weights = _Weights(num_samples)
    distortion = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    rate_draws = torch.zeros_like(distortion)
    left, kl = num_samples, None
    while left:
        trace = vae.trace(x, min(draws, left))
        left -= len(trace.z)
        log_ratio = trace.log_qz - trace.log_pz
        weights.add(trace.log_px_z - log_ratio)
        distortion -= trace.log_px_z.double().sum(0)
        rate_draws += log_ratio.double().sum(0)
        kl = trace.kl if kl is None else kl
    distortion = distortion / num_samples
    rate = rate_draws / num_samples if kl is None else kl.double()
    return Evidence(
        log_px=weights.log_mean(),
        elbo=-distortion - rate,
        distortion=distortion,
        rate=rate,
        ess=weights.ess(),
        khat=weights.khat(),
        num_samples=num_samples,
    )


class _Weights:
    """What must be remembered of K log-weights: two log-sums and the largest few."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        # The tail that Pareto smoothing looks at (Vehtari et al., 2024, section 3), and the cut-off below it.
        self.tail = min(int(0.2 * num_samples), int(3 * math.sqrt(num_samples)))
        self.log_sum: Tensor | None = None
        self.log_sum_squares: Tensor | None = None
        self.largest: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Takes in log-weights `[k, B]`."""
        log_w = log_w.double()
        once, twice = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
        self.log_sum = once if self.log_sum is None else torch.logaddexp(self.log_sum, once)
        self.log_sum_squares = twice if self.log_sum_squares is None else torch.logaddexp(self.log_sum_squares, twice)
        if self.tail >= _MIN_TAIL:
            seen = log_w if self.largest is None else torch.cat([self.largest, log_w])
            self.largest = seen.topk(min(self.tail + 1, len(seen)), dim=0).values

    def log_mean(self) -> Tensor:
        assert self.log_sum is not None
        return self.log_sum - math.log(self.num_samples)

    def ess(self) -> Tensor:
        assert self.log_sum is not None
        assert self.log_sum_squares is not None
        return (2 * self.log_sum - self.log_sum_squares).exp()

    def khat(self) -> Tensor:
        if self.largest is None:
            assert self.log_sum is not None
            return torch.full_like(self.log_sum, math.nan)
        relative = (self.largest - self.largest[0]).exp()
        return pareto_shape(relative[:-1] - relative[-1])


def pareto_shape(exceedances: Tensor) -> Tensor:
    """Fits a generalised Pareto distribution and returns its shape k for each column.

    The estimator of Zhang and Stephens (2009, "A new and efficient estimation method for the generalized Pareto
    distribution"), pulled towards 1/2 by a weak prior as in Vehtari et al. (2024, appendix C).

    Args:
        exceedances: Amounts above the cut-off, non-negative, `[M, B]` with M >= 5.

    Returns:
        k, `[B]`; -inf where all exceedances are zero (there is no tail).

    Example:
        >>> u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        >>> round(pareto_shape((((1 - u) ** -0.5 - 1) / 0.5)[:, None]).item(), 1)
        0.5
    """
    x = exceedances.double().sort(0).values
    count = len(x)
    candidates = 30 + int(math.sqrt(count))
    largest = x[-1].clamp_min(torch.finfo(x.dtype).tiny)
    quartile = x[int(count / 4 + 0.5) - 1].clamp_min(torch.finfo(x.dtype).tiny)
    grid = torch.arange(1, candidates + 1, dtype=x.dtype, device=x.device)
    theta = 1 / largest + (1 - torch.sqrt(candidates / (grid[:, None] - 0.5))) / (3 * quartile)  # [candidates, B]

    def shape(t: Tensor) -> Tensor:
        return torch.log1p(-t.unsqueeze(-2) * x).mean(-2)

    k = shape(theta)
    log_likelihood = count * (torch.log(-theta / k) - k - 1)
    weight = torch.softmax(log_likelihood.nan_to_num(nan=-math.inf), 0)
    fitted = shape((theta * weight).sum(0, keepdim=True))[0]
    shrunk = (fitted * count + 0.5 * 10) / (count + 10)
    return torch.where(x[-1] > 0, shrunk, torch.full_like(shrunk, -math.inf))
