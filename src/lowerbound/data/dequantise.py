r"""Dequantisation: from 8-bit levels to a density on [0, 1], and back to the probability of the levels.

A density evaluated at values that lie on a grid can be made as large as one likes, by putting narrow peaks on the
grid, so it is comparable with nothing. Uniform noise takes the grid away (Theis, van den Oord and Bethge, 2016, "A note
on the evaluation of generative models"):

$$x = (k + u) / 256, \qquad u \sim U[0, 1)^D, \quad k \in \{0, \dots, 255\}^D$$

A density p of x gives a probability of the levels, \(P(k) = \int p((k + u)/256)\,256^{-D}\,du\), and by Jensen's
inequality

$$E_u[\log p((k + u)/256)] - D \log 256 \le \log P(k)$$

So a log-density of x is made comparable with a log-probability of levels by adding \(-D \log 256\), the source's
`log_correction`, and errs on the modest side.

As with binarisation, training draws the noise afresh at each look, and what is judged has one fixed draw. The noise is
a multiple of 2^-16: then k + u is exact in float32, never rounds up to the next level, and k can be had back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lowerbound.data.order import generator
from lowerbound.data.source import Redecoded, Source, Support
from lowerbound.data.stored import kept
from lowerbound.errors import UsageError

_LEVELS = 256
_NOISE_STEPS = 1 << 16


class Dequantised(Redecoded):
    """x = (k + u) / 256, with noise u from torch's global generator each time an example is decoded.

    Args:
        source: 8-bit levels.

    Raises:
        UsageError: The source's values are not 8-bit levels.

    Example:
        >>> from lowerbound.data import ArraySource
        >>> source = Dequantised(ArraySource(torch.tensor([[0, 255]], dtype=torch.uint8)))
        >>> source.support.value, round(source.log_correction, 4)
        ('unit-interval', -11.0904)
        >>> (source.examples(torch.tensor([0])).x * 256).floor()
        tensor([[  0., 255.]])
    """

    way = "dequantised"
    support = Support.UNIT_INTERVAL

    def __init__(self, source: Source) -> None:
        if source.support is not Support.EIGHT_BIT:
            raise UsageError(
                f"Dequantisation spreads 8-bit levels over [0, 1], but this source has support {source.support.value}. "
                "Use the data as they are."
            )
        super().__init__(source)
        self.log_correction = -math.prod(source.event_shape) * math.log(_LEVELS)

    def decode(self, raw: Tensor) -> Tensor:
        x = self.source.decode(raw)
        return _spread(x, torch.rand_like(x))


def fixed_noise(source: Source, seed: int, chunk: int = 1000) -> Source:
    """Dequantises every example once, with noise that follows from the seed and the example's place alone.

    Args:
        source: 8-bit levels.
        seed: The draw's seed.
        chunk: Examples to a generator of their own. It belongs to the definition of the draw: change it and the draw
            changes.

    Returns:
        A source of float32 values in [0, 1) with the `log_correction` of `Dequantised`; in a file where they are many.

    Raises:
        UsageError: The source's values are not 8-bit levels.
    """
    correction = Dequantised(source).log_correction

    def drawn() -> Iterator[Tensor]:
        for start in range(0, len(source), chunk):
            x = source.examples(torch.arange(start, min(start + chunk, len(source)))).x.cpu()
            yield _spread(x, torch.rand(x.shape, generator=generator(seed, start // chunk)))

    labels = None if source.labels is None else source.labels.cpu()
    factors = None if source.factors is None else source.factors.to(torch.device("cpu"))
    described = {"support": Support.UNIT_INTERVAL, "log_correction": correction, "factors": factors}
    return kept(drawn(), len(source), source.event_shape, torch.float32, labels, **described)


def _spread(x: Tensor, uniform: Tensor) -> Tensor:
    noise = torch.floor(uniform * _NOISE_STEPS) / _NOISE_STEPS
    return (torch.round(x * (_LEVELS - 1)) + noise) / _LEVELS
