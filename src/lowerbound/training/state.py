"""What changes in a training: weights, moments and averages; running means of the terms; which weights are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lowerbound.data import Source
from lowerbound.errors import UsageError
from lowerbound.model import VAE
from lowerbound.objectives import Terms
from lowerbound.training.devices import Precision, resolve_device, resolve_precision
from lowerbound.training.settings import Training


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


class Means:
    """Running means of the terms, kept on the device: reading them is the only thing that waits for it."""

    def __init__(self) -> None:
        # Of the terms with those names, so many numbers in one tensor: one operation a batch, not one a term.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._count = 0

    def add(self, terms: Terms) -> None:
        """Takes in the terms of one batch."""
        values = {"loss": terms.loss, "distortion": terms.distortion, "rate": terms.kl, "elbo": terms.elbo}
        if terms.rate_per_layer is not None:
            values |= {f"rate_{layer}": rate for layer, rate in enumerate(terms.rate_per_layer.unbind(-1), 1)}
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
