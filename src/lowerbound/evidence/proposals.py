r"""Proposals that importance weighting can fall back on when q(z|x) is too narrow.

Where q is narrower than p(z|x), a draw from its edge has an enormous weight, and none that is drawn lies where the rest
of the mass is: the estimate is too low and its stated error is too small. A *defensive* proposal (Hesterberg, 1995,
"Weighted average importance sampling and defensive mixture distributions") mixes q with something wider,

$$r(z|x) = \sum_c \alpha_c\, r_c(z|x), \qquad w(z) = \frac{p(x, z)}{\sum_c \alpha_c\, r_c(z|x)},$$

here with q itself, with q widened, and with the prior. Dividing by the density of the whole mixture, whichever
component a draw came from, is the balance heuristic (Veach and Guibas, 1995, "Optimally combining sampling techniques
for Monte Carlo rendering"). With the prior in it no weight exceeds \(\max_z p(x|z) / \alpha_{prior}\), so that the
weights have a variance whatever q is. What it costs is \(\alpha_q\): the draws that the others take.

The draws are stratified: of K, \(n_c\) come from component c, and \(\alpha_c = n_c / K\) exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from lowerbound.errors import UsageError
from lowerbound.evidence.checks import draw, passes

_MIN_STRATUM = 2


@runtime_checkable
class Widenable(Protocol):
    """A distribution that can be made wider."""

    def widened(self, factor: float) -> Distribution:
        """Returns the same distribution with its scale multiplied by `factor`."""


@dataclass(frozen=True)
class Defensive:
    """How a defensive proposal is mixed (module docstring).

    Attributes:
        widen: What the scale of q is multiplied by in its widened component, above 1.
        widened_weight: The share of the draws from the widened q; it falls to q where q cannot be widened (has no
            method `widened`).
        prior_weight: The share of the draws from the prior.

    Raises:
        UsageError: `widen` is not above 1, or a share is negative, or they leave nothing for q.

    Example:
        >>> Defensive().counts(1000, widenable=True), Defensive().counts(10, widenable=False)
        ((600, 300, 100), (8, 0, 2))
    """

    widen: float = 2.0
    widened_weight: float = 0.3
    prior_weight: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.widened_weight, self.prior_weight)
        if not self.widen > 1 or not min(shares) >= 0 or not sum(shares) < 1:
            raise UsageError(
                f"A defensive proposal widens q by a factor above 1 and takes shares of the draws, none negative, "
                f"that leave some for q; got widen={self.widen}, widened_weight={self.widened_weight}, prior_weight="
                f"{self.prior_weight}. The defaults are 2, 0.3 and 0.1."
            )

    def counts(self, num_samples: int, *, widenable: bool) -> tuple[int, int, int]:
        """Returns how many of `num_samples` draws come from q, from q widened and from the prior.

        A component that is used gets at least 2 draws, so that there is an error to state. With too few draws for
        that, all come from q.
        """

        def stratum(share: float) -> int:
            return max(_MIN_STRATUM, round(share * num_samples)) if share > 0 else 0

        widened, prior = stratum(self.widened_weight if widenable else 0.0), stratum(self.prior_weight)
        left = num_samples - widened - prior
        return (left, widened, prior) if left >= _MIN_STRATUM else (num_samples, 0, 0)


@dataclass(frozen=True)
class Mixture:
    """A stratified mixture.

    Attributes:
        components: Those that are drawn from, each with batch shape `[B]` or `[]`; the first is q.
        counts: How many draws each gives.
    """

    components: Sequence[Distribution]
    counts: Sequence[int]

    @classmethod
    def of(cls, q: Distribution, p: Distribution, num_samples: int, defensive: Defensive) -> Mixture:
        """Mixes q, q widened and the prior."""
        wide = q.widened(defensive.widen) if isinstance(q, Widenable) else q
        counts = defensive.counts(num_samples, widenable=isinstance(q, Widenable))
        used = [(component, count) for component, count in zip((q, wide, p), counts, strict=True) if count]
        return cls([component for component, _ in used], [count for _, count in used])

    def draws(self, examples: int, chunk: int) -> Iterator[tuple[int, Tensor]]:
        """Yields each draw with the number of its component, a chunk at a time: z `[k, examples, *latent]`."""
        for stratum, (component, count) in enumerate(zip(self.components, self.counts, strict=True)):
            for k in passes(count, examples, chunk):
                yield stratum, draw(component, k, examples)

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns the log-density of the mixture, `[k, B]`."""
        total = sum(self.counts)
        terms = [c.log_prob(z) + math.log(n / total) for c, n in zip(self.components, self.counts, strict=True)]
        return torch.stack(terms).logsumexp(0)
