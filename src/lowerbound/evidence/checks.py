"""What every measurement of the evidence asks of a model and its examples before it starts, and a few shared steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor
from torch.distributions import Distribution

from lowerbound.errors import UsageError
from lowerbound.model import VAE

# Decoder inputs a pass: enough to fill the matrix units, few enough to stay in the processor's cache.
CHUNK = 2000
# Numbers of x in such a pass, which is shorter where x is large: a likelihood makes a dozen arrays of that size.
_VALUES = 1 << 21


def check_examples(x: Tensor) -> None:
    """Raises `UsageError` when there are none."""
    if x.ndim == 0 or len(x) == 0:
        raise UsageError(
            f"log p(x) is measured for each example of a batch [B, *event] with B >= 1; got a tensor of shape "
            f"{tuple(x.shape)}. Pass at least one example, as x[None] if it is a single one."
        )


def check_draws(num_samples: int) -> None:
    """Raises `UsageError` when there are none."""
    if num_samples < 1:
        raise UsageError(
            f"The evidence needs at least 1 draw an example; got num_samples={num_samples}. With 1 it is a noisy ELBO; "
            "1000 is a usual number."
        )


def check_density(vae: VAE, purpose: str) -> None:
    """Raises `UsageError` when q(z|x) is a point; `purpose` says what its density is needed for."""
    if not vae.has_density:
        raise UsageError(
            f"A Delta posterior has no density, so it {purpose}. These ask nothing of q: annealed_evidence, which "
            "starts from the prior, and quadrature_evidence for 1 or 2 latent components; or train with a "
            "DiagonalNormal posterior."
        )


def parts(vae: VAE, x: Tensor, size: int) -> Iterator[tuple[VAE, Tensor]]:
    """Yields at most `size` examples at a time, with the model for them."""
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        yield vae.part(rows), x[rows]


def check_continuous(vae: VAE, purpose: str) -> None:
    """Raises `UsageError` when z is discrete; `purpose` says what cannot be done with it."""
    if vae.has_codes:
        raise UsageError(
            f"z is a sequence of discrete codes here, so that there is no density over real z {purpose}. What can be "
            "had is the bound log p(x|z) + log p(z) at the encoder's own codes, by log_evidence or evaluate; with "
            "defensive=Defensive(), log_evidence looks at draws from the prior as well."
        )


def draw(distribution: Distribution, draws: int, examples: int) -> Tensor:
    """Draws z, `[draws, examples, *latent]`, whether there is one distribution for all examples or one for each."""
    z: Tensor = distribution.sample((draws,) if distribution.batch_shape else (draws, examples))
    return z


def within(chunk: int, vae: VAE) -> int:
    """Returns how many decoder inputs a pass may really have: fewer than asked for where x is large."""
    return max(1, min(chunk, _VALUES // math.prod(vae.event_shape)))


def passes(total: int, examples: int, chunk: int) -> Iterator[int]:
    """Yields how many draws an example to make at a time, until there are `total`."""
    each = max(1, chunk // examples)
    while total > 0:
        yield min(each, total)
        total -= each
