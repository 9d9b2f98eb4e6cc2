r"""Bidirectional Monte Carlo: how far an annealed estimate can be from the truth, on data where that can be known.

Annealed importance sampling bounds log p(x) from below and never says by how much. Run backwards, from a draw of
p(z|x) down to the start, the chains' mean weight is an unbiased estimate of 1 / p(x), so that minus its logarithm is an
**upper** bound in expectation (Grosse, Ghahramani and Adams, 2015, "Sandwiching the marginal likelihood using
bidirectional Monte Carlo"):

$$E[\log \hat p_{forward}(x)] \le \log p(x) \le E[-\log \hat p^{-1}_{backward}(x)].$$

The catch is the exact draw of p(z|x) that the backward chain must begin with. There is one way to have it: draw
\(z \sim p(z)\) and \(x \sim p(x|z)\) from the model itself. Then (z, x) has the density p(z) p(x|z) = p(x) p(z|x), so
that z *is* a draw of p(z|x), one for each x. **For real x there is none**: neither the encoder's guess nor the end of a
long chain is one, and what is started from them is no upper bound.

So the sandwich is made on simulated data, and what it measures is the annealing: if T temperatures leave a gap of 0.1
nats there, they are about as good on real data, as far as the model's own samples resemble them (Wu et al., 2017;
Grosse, Ancha and Roy, 2016, "Measuring the reliability of MCMC inference with bidirectional Monte Carlo").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.evidence.annealed import AnnealedEvidence, Annealing, Path, anneal, joined, summary, tuned_steps
from lowerbound.evidence.checks import CHUNK, draw, within
from lowerbound.model import VAE


@dataclass(frozen=True)
class Bidirectional:
    """Both bounds on log p(x) for simulated examples, in nats.

    All backward chains of an example begin at the one exact draw there is of its p(z|x), so `backward.stderr` and
    `backward.ess` understate how much they vary. The errors of `gap` and of means over examples do not: examples are
    independent.

    Attributes:
        x: The simulated examples, `[n, *event]`.
        forward: Whose `log_px` is the lower bound, `[n]`.
        backward: Whose `log_px` is the upper bound, `[n]`.
    """

    x: Tensor
    forward: AnnealedEvidence
    backward: AnnealedEvidence

    @property
    def lower(self) -> Tensor:
        """The lower bound, `[n]`."""
        return self.forward.log_px

    @property
    def upper(self) -> Tensor:
        """The upper bound, `[n]`."""
        return self.backward.log_px

    @property
    def gap(self) -> Tensor:
        """The mean of upper - lower over the examples, `[]`.

        In expectation neither bound is further than that from log p(x).
        """
        return (self.upper - self.lower).mean()

    @property
    def gap_stderr(self) -> Tensor:
        """The standard error of `gap`, `[]`; NaN for one example."""
        n = len(self.upper)
        return (self.upper - self.lower).std() / math.sqrt(n) if n > 1 else self.gap.new_tensor(math.nan)


@torch.no_grad()
def bidirectional(vae: VAE, n: int, annealing: Annealing | None = None, *, chunk: int = CHUNK) -> Bidirectional:
    """Simulates examples from the model and bounds their log p(x) from both sides (module docstring).

    Both directions use the step sizes that a preliminary forward run finds, which depend on x but not on the draw that
    the backward chains begin with, so that neither bound is biased by the tuning.

    Args:
        vae: The model, in evaluation mode.
        n: How many examples to simulate, at least 1.
        annealing: How to anneal; the defaults of `Annealing` when None.
        chunk: Decoder inputs (chains times examples) a pass at most, fewer where x is large; memory is proportional to
            it.

    Raises:
        UsageError: `n` is below 1, or chains are to start from a q that has no density.
    """
    if n < 1:
        raise UsageError(f"Bidirectional Monte Carlo needs at least 1 simulated example; got n={n}. Ask for 20 or so.")
    annealing = Annealing() if annealing is None else annealing
    chunk = within(chunk, vae)
    size = max(1, chunk // max(annealing.chains, annealing.pilot_chains))
    rows = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    done = [_sandwich(vae.part(some), some.stop - some.start, annealing) for some in rows]
    xs, forward, backward = zip(*done, strict=True)
    return Bidirectional(torch.cat(xs), joined(forward), joined(backward))


def _sandwich(vae: VAE, n: int, annealing: Annealing) -> tuple[Tensor, AnnealedEvidence, AnnealedEvidence]:
    (z,) = draw(vae.prior(), 1, n)
    x = vae.decoder(z).sample()
    path, betas = Path.of(vae, x, annealing.start), annealing.schedule()
    steps = tuned_steps(path, annealing)
    up = anneal(path, path.at(path.draw(annealing.chains)), betas, steps, annealing.leapfrog)
    exact = path.at(z.expand(annealing.chains, *z.shape))
    log_w, acceptance = anneal(path, exact, betas[::-1], steps.flip(0), annealing.leapfrog)
    down = summary(log_w, acceptance, annealing)
    upper = AnnealedEvidence(-down.log_px, down.stderr, down.ess, down.acceptance, annealing)
    return x, summary(*up, annealing), upper
