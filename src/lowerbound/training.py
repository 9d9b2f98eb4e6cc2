"""Training: a generator of steps, and the loop is the caller's.

```python
for step in train(vae, data.train, ELBO(), Training(epochs=10)):
    if step.epoch_ends:
        print(step.epoch, step.terms.elbo.mean())
```

`train` makes one update after another and yields; logging, validation, saving and stopping are what the caller does in
the body of the loop. `fit` is that loop for those who want no more than a trained model.

**Determinism.** Torch's generator is seeded before every update by `(seed, update)`, and the order of an epoch follows
from `(seed, epoch)`. A training is therefore a function of its seed alone: drawing samples in the loop, or stopping and
going on in another process, changes nothing. On one CPU machine, with the same versions and number of threads, weights
agree bit for bit.
"""

from __future__ import annotations

import enum
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowerbound.data import Batch, Data, Source, batches, derive_seed, epoch_order
from lowerbound.errors import DivergedError, UsageError
from lowerbound.model import VAE
from lowerbound.objectives import ELBO, Objective, Terms
from lowerbound.optimisers import Adam, Optimiser

_VALIDATION_SEED = 20_140_410
_VALIDATION_BATCH = 500


class Precision(enum.StrEnum):
    """The arithmetic of the networks; densities, sums, weights and the optimiser are always float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


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


class TrainState:
    """Everything that changes in a training, so everything that must be saved to go on exactly.

    Args:
        vae: The model; it is moved to `device`.
        training: How it is trained.
        device: Where.

    Attributes:
        step: Updates made.
        seconds: Time spent on updates.
        average: The averaged weights, by name; None if nothing is averaged.
    """

    def __init__(self, vae: VAE, training: Training, device: torch.device | None = None) -> None:
        self.device = resolve_device("auto") if device is None else device
        self.vae = vae.to(self.device)
        self.training = training
        self.step = 0
        self.seconds = 0.0
        self.parameters = {name: p for name, p in vae.named_parameters() if p.requires_grad}
        self.optimiser = training.optimiser.build(
            self.parameters.values(),
            training.lr,
            training.betas,
            training.weight_decay,
            torch.bfloat16 if resolve_precision(training.precision, self.device) is Precision.BF16 else torch.float32,
        )
        self.average: dict[str, Tensor] | None = None
        if training.average is not None:
            self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the state by name: weights, buffers, averages and the optimiser's moments."""
        named = {f"model.{k}": v for k, v in self.vae.state_dict().items()}
        named |= {f"average.{k}": v for k, v in (self.average or {}).items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            named |= {f"optimiser.{index}.{k}": v for k, v in moments.items()}
        return named

    def scalars(self) -> dict[str, Any]:
        """Returns the numbers of the state."""
        return {"step": self.step, "seconds": self.seconds}

    def restore(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Goes back to a saved state.

        Raises:
            KeyError, ValueError, RuntimeError: The tensors are not those of this model and training.
        """

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.vae.load_state_dict(under("model."), strict=True)
        if self.average is not None:
            saved = under("average.")
            for name, mean in self.average.items():
                mean.copy_(saved[name])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in under("optimiser.").items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        state = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
        if int(scalars["step"]) < 0:
            raise ValueError(f"it was saved after {scalars['step']} updates")
        self.step = int(scalars["step"])
        self.seconds = float(scalars["seconds"])

    @contextmanager
    def averaged(self) -> Iterator[VAE]:
        """Puts the averaged weights into the model for a while, in evaluation mode, and yields it."""
        was_training = self.vae.training
        self.vae.eval()
        self._swap()
        try:
            yield self.vae
        finally:
            self._swap()
            self.vae.train(was_training)

    def kept_weights(self) -> dict[str, Tensor]:
        """Returns a copy of the weights to use, on the CPU: the averaged ones where there are any."""
        with self.averaged() as vae:
            return {k: v.detach().cpu().clone() for k, v in vae.state_dict().items()}

    def _swap(self) -> None:
        if self.average is None:
            return
        with torch.no_grad():
            for name, p in self.parameters.items():
                held = p.detach().clone()
                p.copy_(self.average[name])
                self.average[name].copy_(held)


@dataclass(frozen=True)
class Step:
    """One update.

    Attributes:
        step: Updates made, this one included.
        epoch: The epoch it belongs to, counted from 1.
        epoch_ends: Whether it was the last of its epoch.
        progress: The fraction of the budget that is used.
        terms: The objective's terms for the batch, detached.
        lr: The learning rate used.
        state: The training's state after the update.
    """

    step: int
    epoch: int
    epoch_ends: bool
    progress: float
    terms: Terms
    lr: float
    state: TrainState


def train(
    vae: VAE,
    source: Source,
    objective: Objective,
    training: Training | None = None,
    *,
    device: torch.device | None = None,
    state: TrainState | None = None,
) -> Iterator[Step]:
    """Trains, yielding after every update until the budget is used.

    Args:
        vae: The model.
        source: The training examples.
        objective: What is minimised.
        training: How.
        device: Where; the best there is by default. Ignored when `state` is given.
        state: A state to go on from.

    Raises:
        UsageError: The objective or the likelihood means nothing here, or a batch is larger than the data.
        DivergedError: The loss is no finite number; the update is not made.
    """
    training = training or Training()
    check_run(vae, source, objective, training)
    if state is None:
        state = TrainState(vae, training, device)
    resident = source.to(state.device)
    batches_an_epoch = math.ceil(len(source) / training.batch_size)
    vae.train()
    while (progress := _progress(state, batches_an_epoch)) < 1:
        epoch, start = divmod(state.step, batches_an_epoch)
        order = epoch_order(len(source), training.seed, epoch).to(state.device)
        stream = batches(resident, order, training.batch_size, state.device, start=start)
        for place in range(start, batches_an_epoch):
            began = time.perf_counter()
            # Before the batch is decoded: a dynamic binarisation draws too.
            seed_everything(derive_seed(training.seed, 1, state.step), state.device)
            lr = training.lr * training.schedule(progress)
            terms = _update(state, objective, next(stream), lr)
            state.seconds += time.perf_counter() - began
            progress = _progress(state, batches_an_epoch)
            yield Step(state.step, epoch + 1, place + 1 == batches_an_epoch, progress, terms, lr, state)
            if progress >= 1:
                return


def _update(state: TrainState, objective: Objective, batch: Batch, lr: float) -> Terms:
    training = state.training
    parameters: list[Tensor] = list(state.parameters.values())
    with autocast(training.precision, state.device):
        terms = objective.given(batch.factors)(state.vae.given(batch.label), batch.x, state.step)
    loss = terms.loss.mean()
    # On an accelerator reading the loss would wait for it; there whoever reads the terms finds out.
    if state.device.type == "cpu" and not math.isfinite(loss.item()):
        raise _diverged(f"the loss is {loss.item():g}", terms, state.step, lr)
    loss.backward()
    norm = torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None])).norm()
    if training.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, training.clip, norm)
    shown = terms.loss.detach()
    if state.device.type == "cpu":
        if not math.isfinite(norm.item()):
            raise _diverged(f"the gradient's norm is {norm.item():g}", terms, state.step, lr)
    elif state.device.type == "cuda":
        # The fused optimiser leaves the weights alone when it is told so, and the loss of that update becomes NaN, so
        # whoever reads it next finds out. Nothing waits for the device.
        bad = ~torch.isfinite(norm)
        state.optimiser.found_inf = bad.float()  # type: ignore[attr-defined]
        shown = torch.where(bad, torch.nan, shown)
    state.optimiser.param_groups[0]["lr"] = lr
    state.optimiser.step()
    for p in parameters:
        p.grad = None
    state.step += 1
    if state.average is not None and training.average is not None:
        # A short memory at first, so that the initial weights are soon forgotten.
        decay = min(training.average, state.step / (state.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(state.average.values()), parameters, 1 - decay)
    rest = (None if t is None else t.detach() for t in (terms.kl, terms.elbo))
    return Terms(shown, terms.distortion.detach(), *rest)


def _diverged(what: str, terms: Terms, step: int, lr: float) -> DivergedError:
    kl = "" if terms.kl is None else f", the KL {terms.kl.mean().item():g}"
    return DivergedError(
        f"Training diverged: at update {step + 1} {what} (the distortion is {terms.distortion.mean().item():g}{kl}; "
        f"learning rate {lr:g}). The update was not made. Lower the learning rate (--lr)."
    )


def _progress(state: TrainState, batches_an_epoch: int) -> float:
    used = 0.0
    if state.training.epochs is not None:
        used = state.step / (state.training.epochs * batches_an_epoch)
    if state.training.minutes is not None:
        used = max(used, state.seconds / (60 * state.training.minutes))
    return min(used, 1.0)


def check_run(vae: VAE, source: Source, objective: Objective, training: Training) -> None:
    """Raises `UsageError` when model, data, objective and training do not go together."""
    if source.event_shape != vae.event_shape:
        raise UsageError(f"The model is built for x of shape {vae.event_shape}, the data's is {source.event_shape}.")
    if len(source) == 0:
        raise UsageError("There are no training examples to learn from: the source is empty. Give at least one batch.")
    if training.batch_size > len(source):
        raise UsageError(
            f"A batch of {training.batch_size:,} is larger than the training data, which has {len(source):,} examples. "
            "Lower --batch-size."
        )
    vae.likelihood.check(source.support)
    vae.check_labels(source.labels)
    objective.check(vae)


class Means:
    """Running means of the terms, kept on the device: reading them is the only thing that waits for it."""

    def __init__(self) -> None:
        # Of the terms with those names, so many numbers in one tensor: one operation a batch, not one a term.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._count = 0

    def add(self, terms: Terms) -> None:
        """Takes in the terms of one batch."""
        values = {"loss": terms.loss, "distortion": terms.distortion, "rate": terms.kl, "elbo": terms.elbo}
        there = {name: value for name, value in values.items() if value is not None}
        names, total = tuple(there), torch.stack(list(there.values())).sum(1, dtype=torch.float32)
        self._sums[names] = total + self._sums[names].to(total.device) if names in self._sums else total
        self._count += len(terms.loss)

    def read(self) -> dict[str, float]:
        """Returns the means per example, in nats, since the last reading, and begins anew."""
        means = {name: total / self._count for name, total in self._totals().items()}
        self._sums, self._count = {}, 0
        return means

    def sums(self) -> dict[str, Any]:
        """Returns what was taken in since the last reading, to be saved."""
        return {"count": self._count, "sums": self._totals()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes back to what `sums` returned."""
        self._count = int(saved["count"])
        self._sums = {tuple(saved["sums"]): torch.tensor(list(saved["sums"].values()), dtype=torch.float32)}

    def _totals(self) -> dict[str, float]:
        pairs = [pair for names, sums in self._sums.items() for pair in zip(names, sums.tolist(), strict=True)]
        return {name: math.fsum(v for other, v in pairs if other == name) for name, _ in pairs}


class Selection:
    """Which weights to keep: the best on validation if there is patience, the last otherwise.

    Args:
        patience: See `Training`.
        valid: What it selects on.

    Raises:
        UsageError: There is patience, and nothing to select on.

    Attributes:
        best: The best validation loss so far.
        waited: Epochs since then.
        weights: The weights that gave it.
    """

    def __init__(self, patience: int | None, valid: Source | None) -> None:
        if patience is not None and valid is None:
            raise UsageError(
                f"A patience of {patience} waits for a better validation loss, but all training examples are learned "
                "from and none is left to validate on. Leave some out (--valid), or leave patience out."
            )
        self.patience = patience
        self.best = math.inf
        self.waited = 0
        self.weights: dict[str, Tensor] | None = None

    @property
    def over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def update(self, loss: float | None, state: TrainState) -> bool:
        """Takes in one epoch's validation loss and returns whether to stop."""
        if self.patience is None or loss is None:
            return False
        if loss < self.best:
            self.best, self.waited, self.weights = loss, 0, state.kept_weights()
        else:
            self.waited += 1
        return self.over

    def kept(self, state: TrainState) -> dict[str, Tensor]:
        """Returns the weights to keep, on the CPU."""
        return state.kept_weights() if self.weights is None else self.weights


def validate(vae: VAE, source: Source, objective: Objective, device: torch.device) -> dict[str, float]:
    """Returns the mean of each of the objective's terms over a source, with any warm-up over, in nats.

    The noise is the same at each call, so two epochs can be compared.
    """
    means = Means()
    seed_everything(_VALIDATION_SEED, device)
    with torch.no_grad():
        for batch in batches(source, torch.arange(len(source)), _VALIDATION_BATCH, device):
            means.add(objective.given(batch.factors)(vae.given(batch.label), batch.x))
    return means.read()


def end_epoch(
    state: TrainState, data: Data, objective: Objective, selection: Selection
) -> tuple[dict[str, float], bool]:
    """Validates with the weights that would be kept, and says whether it is time to stop.

    Returns:
        The validation terms (empty without a validation split), and whether patience has run out.
    """
    if data.valid is None or len(data.valid) == 0:
        return {}, False
    with state.averaged() as vae:
        terms = validate(vae, data.valid, objective, state.device)
    if not math.isfinite(terms["loss"]):
        raise DivergedError(
            f"The validation loss after update {state.step} is {terms['loss']:g}. Lower the learning rate."
        )
    return terms, selection.update(terms["loss"], state)


def fit(
    vae: VAE,
    data: Data,
    objective: Objective | None = None,
    training: Training | None = None,
    *,
    device: torch.device | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Trains a model in place and returns one record an epoch.

    Args:
        vae: The model; afterwards it holds the weights to use (averaged, or the best on validation), in evaluation
            mode.
        data: `train` is learned from; `valid`, where there is one, is measured after each epoch.
        objective: What is minimised; the plain ELBO by default.
        training: How.
        device: Where; the best there is by default.
        on_epoch: Called with each record.

    Returns:
        Records with `epoch`, `step`, and the means of loss, distortion, rate and elbo (`valid_...` on validation).
    """
    objective, training = objective or ELBO(), training or Training()
    state = TrainState(vae, training, device)
    selection, means, history = Selection(training.patience, data.valid), Means(), []
    for step in train(vae, data.train, objective, training, state=state):
        means.add(step.terms)
        if step.epoch_ends:
            valid, stop = end_epoch(state, data, objective, selection)
            record = {"epoch": step.epoch, "step": step.step, **means.read()}
            history.append(record | {f"valid_{k}": v for k, v in valid.items()})
            if on_epoch is not None:
                on_epoch(history[-1])
            if stop:
                break
    vae.load_state_dict(selection.kept(state))
    vae.eval()
    return history


def seed_everything(seed: int, device: torch.device) -> None:
    """Seeds torch's generators for the CPU and `device`, and no others."""
    # torch.manual_seed would queue a traceback for every backend that is not initialised: too slow for every step.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def resolve_device(name: str) -> torch.device:
    """Returns the device called `name`; `auto` is the first of cuda, mps, cpu that there is.

    Raises:
        UsageError: The device is unknown or not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in there.items() if present)
    if not there.get(name.split(":")[0], False):
        found = ", ".join(kind for kind, present in there.items() if present)
        raise UsageError(f"There is no device {name!r} here; found: {found}. Use --device auto.")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device: {str(error).splitlines()[0]} Use --device auto.") from error


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which networks run in that precision."""
    if resolve_precision(precision, device) is Precision.FP32:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Returns what `AUTO` means on a device: bf16 where its processor multiplies that natively."""
    if precision is not Precision.AUTO:
        return precision
    return Precision.BF16 if has_bf16(device) else Precision.FP32


def has_bf16(device: torch.device) -> bool:
    """Returns whether `device` multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Emulated bf16 is many times slower than float32, so the instruction must be there.
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(probe() for probe in probes if probe is not None)
    return False
