"""Sources: examples by index, in batches.

A source answers `gather(index)` with the raw values of many examples in one vectorised call, as small as they are
stored (images stay `uint8`), and `decode(raw)` turns them into x on whatever device they are by then. So what
travels to an accelerator is a quarter of what arrives in the model, and no example is ever touched by Python alone.

The support says which values x can take, and with it which likelihoods mean something:

* `BINARY` {0, 1},
* `EIGHT_BIT` {0, 1/255, ..., 1},
* `UNIT_INTERVAL` [0, 1],
* `COUNT` {0, 1, 2, ...},
* `REAL`,
* `TOKENS` {0, 1, 2, ...}: numbers of symbols, of which none is more than another; 0 ends a sequence,
* `TABLE` one number a column of a table, whatever the column means by it, and NaN where a cell is missing.
"""

from __future__ import annotations

import enum
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from lowerbound.errors import DataError, UsageError

# Which examples: by index, or a run of them.
_Rows = Tensor | slice


class Support(enum.StrEnum):
    """The values that x can take."""

    BINARY = "binary"
    EIGHT_BIT = "eight-bit"
    UNIT_INTERVAL = "unit-interval"
    COUNT = "count"
    REAL = "real"
    TOKENS = "tokens"
    TABLE = "table"


# Whole numbers from 0 on.
_WHOLE = {Support.COUNT: "counts", Support.TOKENS: "token numbers"}


@dataclass(frozen=True)
class Factors:
    """The true causes of examples, where they are known.

    Attributes:
        names: What they are called, F of them.
        values: float32 `[N, F]`; NaN where a cause of an example is not told. A kind is numbered from 0.
        discrete: Of each whether it is a kind, and not a quantity.
    """

    names: tuple[str, ...]
    values: Tensor
    discrete: tuple[bool, ...]

    def __getitem__(self, index: _Rows) -> Factors:
        return replace(self, values=self.values[index])

    def to(self, device: torch.device) -> Factors:
        """Returns the same on a device."""
        return replace(self, values=self.values.to(device))


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        x: The values, `[B, *event]`; raw from `Source.gather`, float from `batches`.
        label: Class labels, int64 `[B]`, where the source has them.
        index: Which examples of the source these are, int64 `[B]`.
        factors: Their true causes, float32 `[B, F]`, where the source has them.
    """

    x: Tensor
    label: Tensor | None = None
    index: Tensor | None = None
    factors: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]


class Source(ABC):
    """Examples by index.

    Attributes:
        event_shape: The shape of one x.
        support: The values that x can take.
        log_correction: What must be added to a log-density of x, in nats per example, to bound the log-probability of
            the levels that x was made from (`lowerbound.data.dequantise`); 0 where x are the data themselves.
        notes: What a reader of numbers measured on these examples must know, in words.
    """

    event_shape: tuple[int, ...]
    support: Support
    log_correction: float = 0.0
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def gather(self, index: Tensor) -> Batch:
        """Returns the raw examples at `index` (int64 `[B]`)."""

    @abstractmethod
    def decode(self, raw: Tensor) -> Tensor:
        """Turns raw values into x, float32 `[B, *event]`, on the device where they are."""

    @abstractmethod
    def to(self, device: torch.device) -> Source:
        """Returns this source with its values on `device`, if they are held in memory; else itself."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A sha256 in hex that changes when any value does."""

    @property
    def labels(self) -> Tensor | None:
        """All labels, int64 `[N]`, or None."""
        return None

    @property
    def factors(self) -> Factors | None:
        """The true causes of all examples, or None."""
        return None

    def examples(self, index: Tensor) -> Batch:
        """Gathers and decodes: x float32 `[B, *event]`."""
        batch = self.gather(index)
        return replace(batch, x=self.decode(batch.x), index=index)

    def take(self, index: Tensor) -> Source:
        """Returns the examples at `index` as a source of their own."""
        return Subset(self, index)

    def slice(self, start: int, stop: int) -> Source:
        """Returns examples `start` to `stop` as a source, without copying."""
        return self.take(torch.arange(start, stop))

    def joined(self, other: Source) -> Source:
        """Returns these examples followed by those of `other`.

        Raises:
            UsageError: They are not parts of one source.
        """
        raise UsageError(
            f"{type(self).__name__} and {type(other).__name__} are no parts of one source; none is joined."
        )


class Subset(Source):
    """Some examples of a source, in an order of their own, without copying them.

    Args:
        source: All examples.
        index: Which of them, whole numbers `[N]`.
    """

    def __init__(self, source: Source, index: Tensor) -> None:
        self.source = source
        # Half the memory: of narrow examples there can be many.
        self.index = index.to(torch.int32) if len(source) <= torch.iinfo(torch.int32).max else index
        self.event_shape = source.event_shape
        self.support = source.support
        self.log_correction = source.log_correction
        self.notes = source.notes

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, index: Tensor) -> Batch:
        return self.source.gather(self.index[index.to(self.index.device)].long())

    def decode(self, raw: Tensor) -> Tensor:
        return self.source.decode(raw)

    def to(self, device: torch.device) -> Subset:
        return Subset(self.source.to(device), self.index)

    def take(self, index: Tensor) -> Subset:
        return Subset(self.source, self.index[index])

    def slice(self, start: int, stop: int) -> Subset:
        return Subset(self.source, self.index[start:stop])

    def joined(self, other: Source) -> Source:
        if isinstance(other, Subset) and other.source is self.source:
            return Subset(self.source, torch.cat([self.index, other.index]))
        return super().joined(other)

    @property
    def labels(self) -> Tensor | None:
        labels = self.source.labels
        return None if labels is None else labels[self.index.long()]

    @property
    def factors(self) -> Factors | None:
        factors = self.source.factors
        return None if factors is None else factors[self.index.long()]

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint.encode())
        digest.update(self.index.numpy().data)
        return digest.hexdigest()


class Redecoded(Source):
    """All examples of a source, decoded in another way.

    Args:
        source: The examples.

    Attributes:
        way: What the way is called, for the fingerprint.
    """

    way: ClassVar[str]

    def __init__(self, source: Source) -> None:
        self.source = source
        self.event_shape = source.event_shape

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, index: Tensor) -> Batch:
        return self.source.gather(index)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.source.to(device))

    @property
    def fingerprint(self) -> str:
        return f"{self.way}:{self.source.fingerprint}"

    @property
    def labels(self) -> Tensor | None:
        return self.source.labels

    @property
    def factors(self) -> Factors | None:
        return self.source.factors


class ArraySource(Source):
    """Examples that are held in memory, or mapped into it, as one tensor.

    Args:
        values: `[N, *event]`, uint8, or float, or whole numbers of any type.
        labels: int64 `[N]`, or None.
        support: What x can be; checked for all values but uint8, in one pass.
        scale: What uint8 values are multiplied by: 1/255 for 8-bit images, 1 for counts.
        name: Used in messages.
        log_correction: See `Source`.
        factors: The true causes, or None.

    Raises:
        DataError: A value is not finite or lies outside the support; the message says where.

    Example:
        >>> source = ArraySource(torch.tensor([[0, 255], [51, 0]], dtype=torch.uint8))
        >>> source.support.value, source.examples(torch.tensor([1])).x
        ('eight-bit', tensor([[0.2000, 0.0000]]))
    """

    def __init__(
        self,
        values: Tensor,
        labels: Tensor | None = None,
        *,
        support: Support = Support.EIGHT_BIT,
        scale: float = 1 / 255,
        name: str = "the data",
        log_correction: float = 0.0,
        factors: Factors | None = None,
    ) -> None:
        if labels is not None and len(labels) != len(values):
            raise DataError(f"{name} has {len(values)} examples but {len(labels)} labels; give one label each.")
        self.values = values
        self.event_shape = tuple(values.shape[1:])
        self.support = support
        self.scale = scale
        self.name = name
        self.log_correction = log_correction
        self._labels = labels
        self._factors = factors
        if values.dtype != torch.uint8:
            check_support(values, support, name)
        elif support in _WHOLE and scale != 1:
            raise DataError(
                f"{name} should be {_WHOLE[support]}, but multiplied by {scale:g} they are none; give scale=1."
            )

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def labels(self) -> Tensor | None:
        return self._labels

    @property
    def factors(self) -> Factors | None:
        return self._factors

    def gather(self, index: Tensor) -> Batch:
        index = index.to(self.values.device)
        labels = None if self._labels is None else self._labels[index]
        factors = None if self._factors is None else self._factors.values[index]
        return Batch(self.values.index_select(0, index), labels, factors=factors)

    def decode(self, raw: Tensor) -> Tensor:
        return decoded(raw, self.scale)

    def to(self, device: torch.device) -> ArraySource:
        labels = None if self._labels is None else self._labels.to(device)
        factors = None if self._factors is None else self._factors.to(device)
        return self._with(self.values.to(device), labels, factors)

    def slice(self, start: int, stop: int) -> ArraySource:
        """Returns examples `start` to `stop` as a source, without copying."""
        return self._rows(slice(start, stop))

    def take(self, index: Tensor) -> ArraySource:
        """Returns the examples at `index` as a source of their own."""
        return self._rows(index)

    def joined(self, other: Source) -> Source:
        if not isinstance(other, ArraySource):
            return super().joined(other)
        labels = None if self._labels is None or other._labels is None else torch.cat([self._labels, other._labels])
        factors = None
        if self._factors is not None and other._factors is not None:
            factors = replace(self._factors, values=torch.cat([self._factors.values, other._factors.values]))
        return self._with(torch.cat([self.values, other.values]), labels, factors)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((tuple(self.values.shape), str(self.values.dtype), self.scale)).encode())
        for chunk in self.values.split(4096):
            digest.update(chunk.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _rows(self, rows: _Rows) -> ArraySource:
        labels = None if self._labels is None else self._labels[rows]
        return self._with(self.values[rows], labels, None if self._factors is None else self._factors[rows])

    def _with(self, values: Tensor, labels: Tensor | None, factors: Factors | None) -> ArraySource:
        # The values were checked when the first source was made: a view of them needs no second pass.
        source = object.__new__(ArraySource)
        source.__dict__ = {k: v for k, v in self.__dict__.items() if k != "fingerprint"}
        source.values, source._labels, source._factors = values, labels, factors
        return source


def decoded(raw: Tensor, scale: float) -> Tensor:
    """Returns stored values as x, float32: uint8 times `scale`, all others as they are."""
    return raw.to(torch.float32).mul_(scale) if raw.dtype == torch.uint8 else raw.to(torch.float32)


def check_support(values: Tensor, support: Support, name: str, *, first: int = 0) -> None:
    """Raises `DataError` naming the first offending places when values are not finite or not in `support`.

    Args:
        values: `[N, *event]`.
        support: What they should be.
        name: Used in the message.
        first: The number of the first example.
    """
    for start in range(0, len(values), 4096):
        chunk = values[start : start + 4096]
        bad = torch.isinf(chunk) if support is Support.TABLE else ~torch.isfinite(chunk)
        if support is Support.BINARY:
            bad |= (chunk != 0) & (chunk != 1)
        elif support in _WHOLE:
            bad |= (chunk < 0) | (chunk != chunk.round())
        elif support not in (Support.REAL, Support.TABLE):
            bad |= (chunk < 0) | (chunk > 1)
            if support is Support.EIGHT_BIT:
                # Wide enough for levels that were kept in half precision.
                bad |= (255 * chunk.float() - (255 * chunk.float()).round()).abs() > 0.2
        if bad.any():
            places = bad.nonzero()[:5]
            listed = "; ".join(
                f"example {first + start + int(p[0])}, position {tuple(p[1:].tolist())}: {chunk[tuple(p)].item():g}"
                for p in places
            )
            raise DataError(
                f"{name} should hold finite values with support {support.value}, but does not at {listed}. "
                "Clean or rescale the values, or choose a likelihood with a wider support."
            )


def batches(source: Source, order: Tensor, batch_size: int, device: torch.device, *, start: int = 0) -> Iterator[Batch]:
    """Yields the examples of `source` in `order`, `batch_size` at a time, decoded on `device`.

    Args:
        source: Where the examples are.
        order: int64 `[N]`, indices into the source; the last batch may be short.
        batch_size: Examples a batch, at least 1.
        device: Where x is wanted; raw values travel there before they are decoded.
        start: How many batches to leave out at the front (to go on inside an epoch).

    Raises:
        UsageError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise UsageError(f"A batch needs at least 1 example; got batch_size={batch_size}.")
    for low in range(start * batch_size, len(order), batch_size):
        index = order[low : low + batch_size]
        raw = source.gather(index)
        yield replace(
            raw,
            x=source.decode(raw.x.to(device, non_blocking=True)),
            label=None if raw.label is None else raw.label.to(device, non_blocking=True),
            factors=None if raw.factors is None else raw.factors.to(device, non_blocking=True),
            index=index,
        )


def mean(source: Source, at_most: int = 10_000) -> Tensor:
    """Returns the mean of x over a source, float32 `[*event]`, from evenly spread examples if there are more.

    The mean of a binarised source is that of its grey values, but for the noise of the draw.
    """
    index = torch.arange(0, len(source), max(1, -(-len(source) // at_most)))
    total = torch.zeros(source.event_shape)
    for part in index.split(1000):
        total += source.examples(part).x.cpu().sum(0)
    return total / len(index)
