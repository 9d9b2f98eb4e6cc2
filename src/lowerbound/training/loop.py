"""The loop: one update after another, each yielded; validation, and a loop for those who want only the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowerbound.data import Batch, Data, Source, batches, derive_seed, epoch_order
from lowerbound.errors import DivergedError, UsageError
from lowerbound.model import VAE
from lowerbound.objectives import ELBO, Objective, Terms
from lowerbound.training.devices import autocast, seed_everything
from lowerbound.training.settings import Training
from lowerbound.training.state import Means, Selection, TrainState

_VALIDATION_SEED = 20_140_410
_VALIDATION_BATCH = 500


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
    rest = (None if t is None else t.detach() for t in (terms.kl, terms.elbo, terms.rate_per_layer))
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
    vae.check_shape(source.event_shape)
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
        Records with `epoch`, `step`, and the means of loss, distortion, rate and elbo (`valid_...` on validation); of a
        ladder also those of each layer's rate, `rate_1` of the lowest.
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
