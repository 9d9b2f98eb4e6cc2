"""Time to quality: seconds of training until the test loss is that of the notebook after its 100 epochs.

The loss is binary cross-entropy on grey pixels plus KL, nats a test digit, one draw of z each: the notebook's. All
60,000 training digits are learned from, as the notebook does; settings must have been chosen without the test digits.
The test loss is taken after every epoch with the weights that would be kept, while the clock stands still. What counts
is the mean of several seeds: both the seconds to the first epoch that meets the target, and the loss at the end.

The notebook's time is that of one epoch times 100, an epoch of it before each training and in the same run.
"""

from __future__ import annotations

import enum
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from contestants import Contestant, running
from digits import write
from measure import Result
from settings import Settings

import lowerbound as lb
from lowerbound.experiment import prepare
from lowerbound.recipes import RECIPES
from lowerbound.training import TrainState, validate

TARGET = 98.71
NOTEBOOK = Contestant("notebook", "with_torch.py", "notebook")
NOTEBOOK_EPOCHS = 100


@dataclass(frozen=True)
class Curve:
    """One training.

    Attributes:
        seconds: At the end of each epoch, from before the model was built, without what measuring took.
        losses: The test loss then.
    """

    seconds: tuple[float, ...]
    losses: tuple[float, ...]

    def reached(self, target: float) -> float | None:
        """Seconds at the end of the first epoch whose loss is at most `target`; None if there is none."""
        return next((s for s, loss in zip(self.seconds, self.losses, strict=True) if loss <= target), None)


def quality(settings: Settings) -> Result:
    """Measures the track."""
    seeds = range(settings.sized(settings.seeds, 1))
    changes = typed(settings.recipe, settings.changes | settings.sized({}, {"epochs": 1}))
    data = lb.open_data(settings.sized(settings.digits, "mnist-5k")).joined()
    curves, epochs = [], []
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits.npy"
        count = write(settings.digits, settings.sized(60_000, 2_000), digits)
        with running((NOTEBOOK,), digits, Path(folder)) as (ready, left_out):
            if left_out:
                raise RuntimeError(" ".join(left_out))
            ready[NOTEBOOK.name]("epoch")
            for seed in seeds:
                epochs.append(float(ready[NOTEBOOK.name]("epoch")["seconds"]))
                curves.append(trained(settings.recipe, data, changes, seed))
    return told(settings, changes, curves, statistics.median(epochs), count)


def typed(recipe: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings with names of choices made the choices that the recipe's signature asks for."""
    hints = get_type_hints(RECIPES[recipe])
    choices = {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, enum.Enum)}
    return {name: choices[name](value) if name in choices else value for name, value in changes.items()}


def trained(recipe: str, data: lb.Data, changes: dict[str, Any], seed: int) -> Curve:
    """Trains once."""
    began, measuring = time.perf_counter(), 0.0
    run = prepare(RECIPES[recipe], data, changes, {"seed": seed})
    state = TrainState(run.vae, run.training, torch.device("cpu"))
    seconds, losses = [], []
    for step in lb.train(run.vae, run.data.train, run.objective, run.training, state=state):
        if step.epoch_ends:
            stopped = time.perf_counter()
            seconds.append(stopped - began - measuring)
            with state.averaged() as vae:
                losses.append(-validate(vae, run.data.test, lb.ELBO(), state.device)["elbo"])
            measuring += time.perf_counter() - stopped
    return Curve(tuple(seconds), tuple(losses))


def told(settings: Settings, changes: dict[str, Any], curves: list[Curve], epoch: float, count: int) -> Result:
    """Puts the curves into words."""
    reached = [curve.reached(TARGET) for curve in curves]
    finals = [curve.losses[-1] for curve in curves]
    theirs = NOTEBOOK_EPOCHS * epoch
    command = " ".join([settings.recipe, *(f"{name}={value}" for name, value in changes.items())])
    result = Result(
        "quality",
        f"Seconds until the test loss is at most {TARGET}: {command}; {settings.threads} threads",
        ("seed", "seconds to the target", "seconds in all", "loss at the end"),
        rows=[
            (str(seed), "not reached" if s is None else f"{s:.1f}", f"{curve.seconds[-1]:.1f}", f"{final:.2f}")
            for seed, (curve, s, final) in enumerate(zip(curves, reached, finals, strict=True))
        ],
        values={
            "recipe": settings.recipe,
            "changes": changes,
            "target": TARGET,
            "curves": [{"seconds": curve.seconds, "losses": curve.losses} for curve in curves],
            "notebook_epoch": epoch,
            "notebook_digits": count,
        },
    )
    mean_final = statistics.fmean(finals)
    verdict = "meets" if mean_final <= TARGET else "does not meet"
    result.notes.append(f"The mean loss at the end is {mean_final:.2f}, which {verdict} {TARGET}.")
    result.notes.append(f"The notebook: {epoch:.2f} s an epoch of {count:,} digits, {theirs:.0f} s for 100 epochs.")
    known = [s for s in reached if s is not None]
    if len(known) == len(reached):
        mean = statistics.fmean(known)
        result.notes.append(f"The mean time to the target is {mean:.1f} s: {theirs / mean:.1f} times faster.")
        result.values |= {"mean_seconds": mean, "times_faster": theirs / mean}
    else:
        result.notes.append(f"{len(reached) - len(known)} of {len(reached)} trainings never met the target.")
    return result
