"""How to train: a budget, a schedule of the learning rate, and the rest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from lowerbound.errors import UsageError
from lowerbound.optimisers import Adam, Optimiser
from lowerbound.training.devices import Precision


class Schedule(ABC):
    """The learning rate's factor over a training."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Returns the factor in [0, 1] when a fraction `progress` of the budget is used."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate throughout."""

    def __call__(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """A linear rise over the fraction `warmup`, then a linear fall to `final`.

    Example:
        >>> [round(Linear(warmup=0.5)(p), 3) for p in (0, 0.25, 0.5, 0.75, 1)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    warmup: float = 0.0
    final: float = 0.0

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        fallen = (progress - self.warmup) / (1 - self.warmup)
        return 1 - (1 - self.final) * min(fallen, 1.0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """A linear rise over the fraction `warmup`, then half a cosine down to `final`."""

    warmup: float = 0.0
    final: float = 0.0

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        fallen = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fallen))


@dataclass(frozen=True)
class Training:
    """How to train: everything but the model, the data and the objective.

    Attributes:
        epochs: Passes over the training examples; None for no limit but `minutes`.
        minutes: Time spent on updates (validation and saving are not counted); None for no limit but `epochs`.
        batch_size: Examples an update.
        lr: The learning rate.
        betas: The decay rates of the gradient's mean and mean square.
        weight_decay: Decoupled weight decay.
        schedule: The learning rate's factor over the budget.
        clip: The gradient's norm is cut to this; None to leave it.
        average: The decay of an exponential moving average of the weights, which is then what is validated and kept;
            None to keep the last weights.
        patience: Stop after so many epochs without a better validation loss, and keep the best weights; None to train
            through.
        precision: The networks' arithmetic.
        optimiser: What an update makes of a gradient.
        seed: Determines the initial weights, the order and the noise.

    Raises:
        UsageError: A value cannot be.
    """

    epochs: int | None = 20
    minutes: float | None = None
    batch_size: int = 128
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Constant)
    clip: float | None = None
    average: float | None = None
    patience: int | None = None
    precision: Precision = Precision.AUTO
    optimiser: Optimiser = field(default_factory=Adam)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs is None and self.minutes is None:
            raise UsageError("A training needs a budget: epochs, minutes, or both.")
        bounds = {
            "epochs": (self.epochs, 1, math.inf),
            "minutes": (self.minutes, 1e-3, math.inf),
            "batch_size": (self.batch_size, 1, math.inf),
            "lr": (self.lr, 0, 100),
            "weight_decay": (self.weight_decay, 0, 100),
            "clip": (self.clip, 1e-9, math.inf),
            "average": (self.average, 0, 1),
            "patience": (self.patience, 1, math.inf),
            "seed": (self.seed, 0, 1 << 62),
        }
        for name, (value, low, high) in bounds.items():
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name} should be from {low:g} to {high:g}; got {value}.")
