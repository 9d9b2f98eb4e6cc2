r"""Annealed importance sampling: log p(x) by way of many distributions between one that can be drawn from and p(z|x).

Importance weighting fails where no proposal is near p(z|x). Annealed importance sampling (Neal, 2001) gets there in
small steps. Between a start r (the prior, or q(z|x)) and the joint density lies the geometric path

$$f_\beta(z) = r(z)^{1 - \beta}\, p(x, z)^\beta, \qquad 0 = \beta_0 < \beta_1 < \dots < \beta_T = 1.$$

A chain begins at \(z_0 \sim r\), and for t = 1, ..., T is weighed, then moved by a transition that leaves
\(f_{\beta_t}\) as it is:

$$\log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \big(\log p(x, z_{t-1}) - \log r(z_{t-1})\big).$$

E[w] = p(x) whatever the transitions are, so the log-mean of the weights of C chains is a lower bound on log p(x) in
expectation, and by Markov's inequality exceeds it by more than b nats with a probability of at most exp(-b).

As Wu, Burda, Salakhutdinov and Grosse (2017, "On the quantitative analysis of decoder-based generative models") do,
the transitions are Hamiltonian Monte Carlo (Neal, 2011, "MCMC using Hamiltonian dynamics"), the temperatures
\(\beta_t\) follow a sigmoid, dense at both ends, and the step size is tuned to an acceptance rate of 0.65. Three things
are done otherwise than there:

* **The step sizes are found in a preliminary run** of a few chains, one for each example and temperature, and are then
  held fixed. A chain whose step size depends on its own past has transitions that do not leave \(f_\beta\) as it is,
  and E[w] = p(x) no longer holds exactly; here it does, for the price of those few chains.
* **Momenta are scaled** by the standard deviations of r, one for each component: steps are in units of the start's own
  width. With the prior N(0, I) that changes nothing.
* **The step size is jittered** by up to 10% for each trajectory, so that none can come back to where it began again and
  again (Neal, 2011).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.distributions import Distribution

from lowerbound.errors import UsageError
from lowerbound.evidence.checks import CHUNK, check_continuous, check_density, check_examples, draw, parts, within
from lowerbound.evidence.streams import LogSums
from lowerbound.model import VAE

# How far into its flat ends the sigmoid of the schedule reaches, and how fast the step size is learned.
_SIGMOID_REACH = 4.0
_LEARNING_RATE = 0.3
_JITTER = 0.1


class Start(enum.StrEnum):
    """Where a chain begins.

    The prior covers every z that the model can mean, but is far from p(z|x); q(z|x) is near, but where it misses a part
    of p(z|x), so may its chains.
    """

    PRIOR = "prior"
    POSTERIOR = "posterior"


@dataclass(frozen=True)
class Annealing:
    """How to anneal. The cost is temperatures * leapfrog * (chains + pilot_chains) gradients of the decoder an example.

    Attributes:
        temperatures: T, the steps from the start to the joint density. The bound tightens with it: see `bidirectional`.
        chains: C, independent chains an example; with one there is no error to state.
        leapfrog: Leapfrog steps a transition.
        start: Where chains begin.
        acceptance: The acceptance rate that the step sizes are tuned to, between 0 and 1. Beskos, Pillai, Roberts,
            Sanz-Serna and Stuart (2013) find 0.651 optimal in many dimensions.
        pilot_chains: Chains an example in the preliminary run that finds the step sizes.

    Raises:
        UsageError: A number is below 1, or `acceptance` is not between 0 and 1.
    """

    temperatures: int = 500
    chains: int = 16
    leapfrog: int = 10
    start: Start = Start.PRIOR
    acceptance: float = 0.65
    pilot_chains: int = 4

    def __post_init__(self) -> None:
        least = min(self.temperatures, self.chains, self.leapfrog, self.pilot_chains)
        if least < 1 or not 0 < self.acceptance < 1:
            raise UsageError(
                "Annealing needs at least 1 each of temperatures, chains, leapfrog steps and pilot_chains, and an "
                f"acceptance rate between 0 and 1; got {self}. The defaults are a fair start."
            )

    def schedule(self) -> list[float]:
        """Returns the T + 1 temperatures from 0 to 1, on a sigmoid.

        Example:
            >>> [round(beta, 3) for beta in Annealing(temperatures=4).schedule()]
            [0.0, 0.105, 0.5, 0.895, 1.0]
        """
        reach = _SIGMOID_REACH
        points = [reach * (2 * t / self.temperatures - 1) for t in range(self.temperatures + 1)]
        rises = [1 / (1 + math.exp(-point)) for point in points]
        return [(rise - rises[0]) / (rises[-1] - rises[0]) for rise in rises]


@dataclass(frozen=True)
class AnnealedEvidence:
    """What annealing says of log p(x) for each example, in nats.

    Attributes:
        log_px: The log-mean of the chains' weights, `[B]`: a lower bound on log p(x) in expectation. (Of the backward
            chains of `bidirectional`: an upper bound.)
        stderr: Its Monte-Carlo standard error by the delta method, `[B]`; too small when `ess` is near 1, NaN for one
            chain.
        ess: Effective number of chains, in [1, C], `[B]`.
        acceptance: The mean acceptance rate over chains and temperatures, `[B]`; NaN for one temperature, which has no
            transitions.
        annealing: How it was measured.
    """

    log_px: Tensor
    stderr: Tensor
    ess: Tensor
    acceptance: Tensor
    annealing: Annealing


@torch.no_grad()
def annealed_evidence(
    vae: VAE, x: Tensor, annealing: Annealing | None = None, *, chunk: int = CHUNK
) -> AnnealedEvidence:
    """Estimates log p(x) for each example by annealed importance sampling (module docstring).

    Started from the prior it asks nothing of q, and so works for a plain autoencoder too. z must be continuous, and
    log p(x|z) differentiable in it.

    Args:
        vae: The model, in evaluation mode.
        x: Examples, `[B, *event]`.
        annealing: How to anneal; the defaults of `Annealing` when None.
        chunk: Decoder inputs (chains times examples) a pass at most, fewer where x is large; memory is proportional to
            it.

    Raises:
        UsageError: There are no examples, or chains are to start from a q that has no density.
    """
    annealing = Annealing() if annealing is None else annealing
    check_examples(x)
    betas = annealing.schedule()
    found = []
    for one, some in parts(vae, x, max(1, within(chunk, vae) // max(annealing.chains, annealing.pilot_chains))):
        path = Path.of(one, some, annealing.start)
        steps = tuned_steps(path, annealing)
        log_w, acceptance = anneal(path, path.at(path.draw(annealing.chains)), betas, steps, annealing.leapfrog)
        found.append(summary(log_w, acceptance, annealing))
    return joined(found)


@dataclass(frozen=True)
class Point:
    """Chains' places on the path, and what leads on from there.

    Attributes:
        z: `[C, B, *latent]`.
        base: log r(z), `[C, B]`.
        tilt: log p(x, z) - log r(z), `[C, B]`.
        base_slope: The gradient of `base` in z, as `z`.
        tilt_slope: The gradient of `tilt` in z, as `z`.
    """

    z: Tensor
    base: Tensor
    tilt: Tensor
    base_slope: Tensor
    tilt_slope: Tensor

    def slope(self, beta: float) -> Tensor:
        """Returns the gradient of log f_beta."""
        return self.base_slope + beta * self.tilt_slope

    def log_f(self, beta: float) -> Tensor:
        """Returns log f_beta, `[C, B]`."""
        return self.base + beta * self.tilt

    def where(self, accepted: Tensor, proposed: Point) -> Point:
        """Returns the proposed point for the chains that accepted it (`[C, B]`), this one for the others."""

        def pick(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(_spread(accepted, new), new, old)

        return Point(*(pick(getattr(proposed, f.name), getattr(self, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Path:
    """The geometric path from r(z) to p(x, z) for some examples.

    Attributes:
        start: r.
        draw: Draws so many z from r for each example, `[C, B, *latent]`.
        tilt: log p(x, z) - log r(z), given z and log r(z).
        scale: The standard deviations of r, broadcastable to z.
        examples: B.
    """

    start: Distribution
    draw: Callable[[int], Tensor]
    tilt: Callable[[Tensor, Tensor], Tensor]
    scale: Tensor
    examples: int

    @classmethod
    def of(cls, vae: VAE, x: Tensor, start: Start) -> Path:
        """The path of a model."""
        check_continuous(vae, "to anneal along")
        p = vae.prior()
        if start is Start.PRIOR:
            return cls(
                p,
                lambda chains: draw(p, chains, len(x)),
                # The prior cancels; subtracting it from itself would only cost digits.
                lambda z, _: vae.decoder(z).log_prob(x),
                _stddev(p, x),
                len(x),
            )
        check_density(vae, "cannot start annealing from it")
        q = vae.encoder(x)
        return cls(
            q,
            lambda chains: draw(q, chains, len(x)),
            lambda z, base: vae.decoder(z).log_prob(x) + p.log_prob(z) - base,
            _stddev(q, x),
            len(x),
        )

    def at(self, z: Tensor) -> Point:
        """Evaluates the path, and its gradient, at z `[C, B, *latent]`."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            base = self.start.log_prob(z)
            tilt = self.tilt(z, base)
            (tilt_slope,) = torch.autograd.grad(tilt.sum(), z, retain_graph=True)
            (base_slope,) = torch.autograd.grad(base.sum(), z)
        return Point(z.detach(), base.detach().double(), tilt.detach().double(), base_slope, tilt_slope)

    def move(self, here: Point, beta: float, step: Tensor, leapfrog: int) -> tuple[Point, Tensor]:
        """One transition of Hamiltonian Monte Carlo that leaves f_beta as it is.

        Args:
            here: Where the chains are.
            beta: The temperature.
            step: The step size for each example, `[B]`, in units of `scale`.
            leapfrog: How many steps.

        Returns:
            Where they go, and the probability with which each accepted, `[C, B]`.
        """
        momentum = torch.randn_like(here.z)
        jitter = 1 + _JITTER * (2 * torch.rand_like(here.base) - 1)
        stride = _spread((step * jitter).to(here.z.dtype), here.z)
        there, pushed = here, momentum + 0.5 * stride * self.scale * here.slope(beta)
        for i in range(leapfrog):
            there = self.at(there.z + stride * self.scale * pushed)
            last = i == leapfrog - 1
            pushed = pushed + (0.5 if last else 1.0) * stride * self.scale * there.slope(beta)
        gain = there.log_f(beta) - here.log_f(beta) + _kinetic(momentum) - _kinetic(pushed)
        # A trajectory that left the range of its arithmetic is refused.
        probability = gain.nan_to_num(nan=-math.inf).clamp_max(0).exp()
        return here.where(torch.rand_like(probability) < probability, there), probability


def anneal(path: Path, point: Point, betas: Sequence[float], steps: Tensor, leapfrog: int) -> tuple[Tensor, Tensor]:
    """Carries chains along the temperatures, up or down.

    Args:
        path: The path.
        point: Draws from f at `betas[0]`.
        betas: The temperatures in the order in which they are visited.
        steps: The step size at each of the inner ones, `[len(betas) - 2, B]`.
        leapfrog: Leapfrog steps a transition.

    Returns:
        The log-weights `[C, B]`, whose mean weight is the ratio of the last normaliser to the first; and the mean
        acceptance rate, `[B]`.
    """
    log_w = torch.zeros_like(point.tilt)
    accepted = torch.zeros_like(point.tilt)
    inner = len(betas) - 2
    for t in range(inner):
        log_w = log_w + (betas[t + 1] - betas[t]) * point.tilt
        point, probability = path.move(point, betas[t + 1], steps[t], leapfrog)
        accepted = accepted + probability
    log_w = log_w + (betas[-1] - betas[-2]) * point.tilt
    return log_w, accepted.mean(0) / inner if inner else torch.full_like(accepted[0], math.nan)


def tuned_steps(path: Path, annealing: Annealing) -> Tensor:
    """Runs a few chains only to find a step size for each inner temperature and example, `[T - 1, B]`.

    After each transition the logarithm of the step size moves in proportion to how far the acceptance rate of the
    example's chains is from the one wanted, and what it is then is kept for that temperature.
    """
    point = path.at(path.draw(annealing.pilot_chains))
    dimensions = math.prod(point.z.shape[2:])
    log_step = torch.full_like(point.base[0], -0.25 * math.log(dimensions))
    found = []
    for beta in annealing.schedule()[1:-1]:
        point, probability = path.move(point, beta, log_step.exp(), annealing.leapfrog)
        log_step = log_step + _LEARNING_RATE * (probability.mean(0) - annealing.acceptance)
        found.append(log_step.exp())
    return torch.stack(found) if found else log_step[:0].reshape(0, path.examples)


def summary(log_w: Tensor, acceptance: Tensor, annealing: Annealing) -> AnnealedEvidence:
    """Turns the chains' log-weights `[C, B]` into an estimate for each example."""
    sums = LogSums()
    sums.add(log_w)
    return AnnealedEvidence(sums.log_mean, sums.stderr, sums.ess, acceptance, annealing)


def joined(parts: Sequence[AnnealedEvidence]) -> AnnealedEvidence:
    """Joins the estimates for several groups of examples."""
    return AnnealedEvidence(
        log_px=torch.cat([part.log_px for part in parts]),
        stderr=torch.cat([part.stderr for part in parts]),
        ess=torch.cat([part.ess for part in parts]),
        acceptance=torch.cat([part.acceptance for part in parts]),
        annealing=parts[0].annealing,
    )


def _stddev(distribution: Distribution, like: Tensor) -> Tensor:
    try:
        return distribution.stddev
    except NotImplementedError:
        # A flow knows no moments. Units of 1 are as valid, and the step size is tuned anyhow.
        return torch.ones((), dtype=like.dtype, device=like.device)


def _spread(each: Tensor, over: Tensor) -> Tensor:
    """Gives `[C, B]` the trailing axes of z."""
    return each.reshape(each.shape + (1,) * (over.ndim - each.ndim))


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().flatten(2).sum(-1)
