"""Sources that tell the true factors of a few examples: all that a weakly supervised training may know."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from lowerbound.data.order import generator
from lowerbound.data.source import Batch, Factors, Source, Support
from lowerbound.errors import UsageError

# Which examples are told follows from a seed, kept apart from other uses of it.
_TOLD = 0x746F6C64


class PartlyTold(Source):
    """A source of whose examples only some tell their factors; of the others they are NaN.

    Args:
        source: Examples with factors.
        told: Which of them tell theirs, bool `[N]`.

    Raises:
        UsageError: The source has no factors.
    """

    def __init__(self, source: Source, told: Tensor) -> None:
        if source.factors is None:
            raise UsageError("Some examples can tell their true factors only where the source knows them; camera does.")
        self.source = source
        self.told = told
        self.event_shape: tuple[int, ...] = source.event_shape
        self.support: Support = source.support
        self.log_correction = source.log_correction

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, index: Tensor) -> Batch:
        batch = self.source.gather(index)
        assert batch.factors is not None
        told = self.told[index.to(self.told.device)].to(batch.factors.device)
        return replace(batch, factors=batch.factors.masked_fill(~told[:, None], torch.nan))

    def decode(self, raw: Tensor) -> Tensor:
        return self.source.decode(raw)

    def to(self, device: torch.device) -> PartlyTold:
        return PartlyTold(self.source.to(device), self.told.to(device))

    @property
    def labels(self) -> Tensor | None:
        return self.source.labels

    @property
    def factors(self) -> Factors:
        factors = self.source.factors
        assert factors is not None
        told = self.told.to(factors.values.device)
        return replace(factors, values=factors.values.masked_fill(~told[:, None], torch.nan))

    @cached_property
    def fingerprint(self) -> str:
        told = self.told.cpu().numpy().tobytes()
        return hashlib.sha256(self.source.fingerprint.encode() + told).hexdigest()


def partly_told(source: Source, share: float, presence: float, seed: int = 0) -> Source:
    """Tells the factors of a share of the examples, drawn by a seed, and shows these more often than the others.

    An epoch has every example once, and those that are told as often again as it takes for them to be about `presence`
    of it. So a batch has some, however few there are.

    Args:
        source: Examples with factors.
        share: The share whose factors are told, in (0, 1].
        presence: Their share of an epoch, in [0, 1); no smaller than `share` comes out.
        seed: Seeds which they are.

    Raises:
        UsageError: The source has no factors, or a share cannot be.

    Example:
        >>> factors = Factors(("a", "b"), torch.rand(100, 2), (False, False))
        >>> from lowerbound.data import ArraySource
        >>> whole = ArraySource(torch.zeros(100, 4, dtype=torch.uint8), factors=factors)
        >>> few = partly_told(whole, share=0.02, presence=0.2)
        >>> len(few), int(few.factors.values[:100].isfinite().all(1).sum())
        (122, 2)
    """
    if not 0 < share <= 1 or not 0 <= presence < 1:
        raise UsageError(
            "The share of examples whose factors are told is above 0 and at most 1, and their presence in an epoch at "
            f"least 0 and below 1; got {share:g} and {presence:g}."
        )
    count = len(source)
    chosen = torch.randperm(count, generator=generator(seed, _TOLD))[: max(1, round(share * count))]
    told = torch.zeros(count, dtype=torch.bool)
    told[chosen] = True
    others = count - len(chosen)
    again = max(0, round(presence / (1 - presence) * others / len(chosen)) - 1)
    return PartlyTold(source, told).take(torch.cat([torch.arange(count), chosen.sort().values.repeat(again)]))
