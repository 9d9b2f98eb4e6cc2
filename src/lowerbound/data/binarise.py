"""Binarisation: from grey values in [0, 1] to {0, 1}, as sources that wrap sources.

Three ways are in use, and their likelihoods are not comparable with one another:

* **threshold**: x >= 1/2. The easiest to model.
* **dynamic**: x ~ Bernoulli(grey), a fresh draw each time an example is seen (Salakhutdinov and Murray, 2008).
  It works as augmentation: published numbers are lower than with one fixed draw.
* **fixed**: one draw, made once and for all from a seed, and known by its hash.

What is judged must not change between two looks, so a dynamic training set goes with *fixed* validation and test
sets: see `Binarise.splits`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import torch
from torch import Tensor

from lowerbound.data.order import generator
from lowerbound.data.source import Redecoded, Source, Support
from lowerbound.data.stored import kept
from lowerbound.errors import UsageError


class Binarise(enum.StrEnum):
    """How grey values become binary ones."""

    NONE = "none"
    THRESHOLD = "threshold"
    DYNAMIC = "dynamic"
    FIXED = "fixed"

    def for_training(self, source: Source, seed: int = 0) -> Source:
        """Returns `source` as it is trained on."""
        if self is not Binarise.NONE:
            _check(source)
        match self:
            case Binarise.NONE:
                return source
            case Binarise.THRESHOLD:
                return Thresholded(source)
            case Binarise.DYNAMIC:
                return DynamicallyBinarised(source)
            case Binarise.FIXED:
                return fixed_draw(source, seed)

    def for_judging(self, source: Source, seed: int = 0) -> Source:
        """Returns `source` as it is validated and tested on: a dynamic draw is replaced by a fixed one."""
        return (Binarise.FIXED if self is Binarise.DYNAMIC else self).for_training(source, seed)


def _check(source: Source) -> None:
    if source.support not in (Support.EIGHT_BIT, Support.UNIT_INTERVAL, Support.BINARY):
        raise UsageError(
            f"Binarisation reads a value in [0, 1] as a probability, but this source has support "
            f"{source.support.value}. Use --binarise none, or rescale the data."
        )


class Thresholded(Redecoded):
    """x = 1 where the grey value is at least 1/2, else 0."""

    way = "threshold"
    support = Support.BINARY

    def decode(self, raw: Tensor) -> Tensor:
        return (self.source.decode(raw) >= 0.5).to(torch.float32)


class DynamicallyBinarised(Redecoded):
    """x ~ Bernoulli(grey), drawn from torch's global generator each time an example is decoded."""

    way = "dynamic"
    support = Support.BINARY

    def decode(self, raw: Tensor) -> Tensor:
        grey = self.source.decode(raw)
        # In place, the comparison gives zeros and ones in float32 at once.
        return torch.rand_like(grey).lt_(grey)


def fixed_draw(source: Source, seed: int, chunk: int = 1000) -> Source:
    """Draws x ~ Bernoulli(grey) once for every example.

    Each thousand examples have a generator of their own, seeded by `(seed, which thousand)`, so the draw is the same
    on every machine and does not depend on how the source is read.

    Args:
        source: Grey values in [0, 1].
        seed: The draw's seed.
        chunk: Examples to a generator. It belongs to the definition of the draw: change it and the draw changes.

    Returns:
        A source of uint8 zeros and ones, whose `fingerprint` is the hash of the draw; in a file where they are many.
    """

    def drawn() -> Iterator[Tensor]:
        for start in range(0, len(source), chunk):
            grey = source.examples(torch.arange(start, min(start + chunk, len(source)))).x.cpu()
            uniform = torch.rand(grey.shape, generator=generator(seed, start // chunk))
            yield (uniform < grey).to(torch.uint8)

    described = {"support": Support.BINARY, "scale": 1.0, "factors": source.factors}
    return kept(drawn(), len(source), source.event_shape, torch.uint8, source.labels, **described)
