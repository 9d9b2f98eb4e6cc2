"""An experiment: a `Run` carried out in a run folder.

Training itself is `lowerbound.training.train`; this is the body of its loop for those who want everything kept: a line
of metrics now and then, validation, checkpoints, trackers, an exact resume, and at the end the weights to use and the
figures. It is a generator too: it yields after every update, prints nothing, and stops when it is told to.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors
import torch

import lowerbound
from lowerbound import figures, spec
from lowerbound.checkpoint import RunFolder
from lowerbound.data import Binarise, Data, View, derive_seed
from lowerbound.errors import CheckpointError, DivergedError, UsageError
from lowerbound.objectives import Objective
from lowerbound.recipes import Run
from lowerbound.trackers import Trackers
from lowerbound.training import (
    Means,
    Selection,
    Step,
    Training,
    TrainState,
    check_run,
    end_epoch,
    seed_everything,
    train,
)

# Log points an epoch: enough for a curve of a short training, few enough for a long one.
_LOGS_AN_EPOCH = 10
# What is shown of a setting that is not the one of before.
_LONGEST = 200


@dataclass(frozen=True)
class Update:
    """What the experiment tells after each update.

    Attributes:
        step: The update.
        logged: The line just added to metrics.jsonl, if one was.
    """

    step: Step
    logged: dict[str, Any] | None


def prepare(
    recipe: Callable[..., Run], data: Data, settings: dict[str, Any], changes: dict[str, Any] | None = None
) -> Run:
    """Calls a recipe with seeded initial weights.

    Args:
        recipe: The recipe.
        data: The data set.
        settings: The recipe's settings; the rest have its defaults.
        changes: Fields of `Training` to change in what the recipe returns (`minutes`, `seed`, `precision`).

    Raises:
        UsageError: A setting is unknown to the recipe, cannot be, or asks for more memory than there is.
    """
    changes = dict(changes or {})
    if changes.get("minutes") is not None and "epochs" not in settings:
        changes["epochs"] = None
    seed = changes.get("seed", 0)
    if not 0 <= seed < 1 << 62:
        raise UsageError(f"The seed should be from 0 to 2^62 - 1; got {seed}.")
    seed_everything(derive_seed(seed, 0), torch.device("cpu"))
    try:
        run = recipe(data, **settings)
    except (RuntimeError, MemoryError, OverflowError) as error:
        given = ", ".join(f"{k} = {v}" for k, v in settings.items()) or "the recipe's defaults"
        raise UsageError(
            f"No model can be built on this machine with {given} ({error}). Give smaller sizes."
        ) from error
    if not isinstance(run, Run):
        raise UsageError(f"A recipe returns a lowerbound.Run; this one returned {type(run).__name__}.")
    return replace(run, training=replace(run.training, **changes))


class Experiment:
    """A run in its folder.

    Args:
        run: What to do.
        folder: Where to keep it.
        device: Where to train.
        provenance: What else run.json should say: the recipe's name and settings, the command line.
        trackers: Where else to report to; a tracker that fails is dropped, training goes on.
        save_every: Seconds between checkpoints; one is also written when training stops.

    Attributes:
        stop: Set to True from outside (a signal handler, say) to save after the current update and stop.
        stopped: Whether it was stopped before its budget was used.
    """

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        *,
        device: torch.device,
        provenance: dict[str, Any] | None = None,
        trackers: Trackers | None = None,
        save_every: float = 30.0,
    ) -> None:
        check_run(run.vae, run.data.train, run.objective, run.training)
        if not 0 <= save_every < math.inf:
            raise UsageError(
                f"Seconds between checkpoints (--save-every) should be a number from 0 on; got {save_every}."
            )
        self.run = run
        self.folder = folder
        self.state = TrainState(run.vae, run.training, device)
        self.provenance = provenance or {}
        self.trackers = trackers or Trackers()
        self.save_every = save_every
        self.selection = Selection(run.training.patience, run.data.valid)
        self.means = Means()
        self.stop = False
        self.stopped = False

    def begin(self, *, overwrite: bool = False) -> None:
        """Begins anew.

        Raises:
            UsageError: Something is in the folder already and `overwrite` is False.
        """
        self.folder.check_free(may_exist=overwrite)
        self.folder.begin(describe_run(self.run, self.state.device, self.provenance))
        # The initial weights: whatever happens from here on, there is something to go on from.
        self._save()

    def resume(self) -> None:
        """Goes back to the last checkpoint.

        Raises:
            UsageError: The folder's run was made with other settings.
            CheckpointError: There is nothing to go on from, or it is damaged.
        """
        record = self.folder.record()
        self._check_same(record)
        saved = self.folder.latest_checkpoint()
        if saved is None:
            raise CheckpointError(f"The run in {self.folder.path} has no checkpoint to go on from. Use --overwrite.")
        tensors, scalars = saved
        try:
            self.state.restore(tensors, scalars)
            self.means.restore(scalars["means"])
            best = scalars["best"]
            self.selection.best = math.inf if best is None else float(best)
            self.selection.waited = int(scalars["waited"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"The last checkpoint in {self.folder.path} does not fit its run ({error}); it is damaged."
            ) from error
        weights = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        self.selection.weights = weights or None
        self.folder.rewind_metrics(self.state.step)

    def updates(self) -> Iterator[Update]:
        """Trains until the budget is used, patience runs out or `stop` is set, yielding after every update.

        Raises:
            DivergedError: The loss is no number any more; the last checkpoint is from before.
            ResourceError: The disk refuses; earlier checkpoints are intact.
        """
        run, state = self.run, self.state
        batches = math.ceil(len(run.data.train) / run.training.batch_size)
        log_every = max(1, batches // _LOGS_AN_EPOCH)
        saved_at = time.monotonic()
        self.trackers.config(self.folder.record())
        steps = train(run.vae, run.data.train, run.objective, run.training, state=state)
        for step in () if self.selection.over else steps:
            self.means.add(step.terms)
            logged, patience_over = None, False
            if step.epoch_ends or step.step % log_every == 0 or step.progress >= 1:
                logged, patience_over = self._log(step)
            if time.monotonic() - saved_at >= self.save_every:
                self._save()
                saved_at = time.monotonic()
            yield Update(step, logged)
            if patience_over or self.stop:
                self.stopped = self.stop and step.progress < 1 and not patience_over
                break
        self._save()
        if not self.stopped:
            self.folder.finish(self.selection.kept(state))
        self.trackers.close()

    def draw_figures(self) -> list[Path]:
        """Draws the figures of the finished run into its folder and returns their paths."""
        return figures.draw_run(self.folder.figures, self.folder.read().vae, self.run.data, self.folder.read_metrics())

    def _log(self, step: Step) -> tuple[dict[str, Any], bool]:
        line: dict[str, Any] = {"step": step.step, "epoch": step.epoch, "progress": step.progress, "lr": step.lr}
        line |= self.means.read()
        patience_over = False
        if not math.isfinite(line["loss"]):
            raise DivergedError(
                f"Training diverged: the mean loss up to update {step.step} is {line['loss']:g}. Lower the learning "
                f"rate (--lr). The last checkpoint in {self.folder.checkpoints} is from before."
            )
        if step.epoch_ends:
            valid, patience_over = end_epoch(self.state, self.run.data, self.run.objective, self.selection)
            line |= {f"valid_{k}": v for k, v in valid.items()}
        line["seconds"] = round(self.state.seconds, 3)
        self.folder.append_metrics(line)
        self.trackers.scalars(line, step.step)
        return line, patience_over

    def _save(self) -> None:
        tensors = self.state.tensors()
        tensors |= {f"kept.{k}": v for k, v in self.selection.kept(self.state).items()}
        tensors |= {f"best.{k}": v for k, v in (self.selection.weights or {}).items()}
        scalars = self.state.scalars() | {
            "means": self.means.sums(),
            "best": self.selection.best if math.isfinite(self.selection.best) else None,
            "waited": self.selection.waited,
        }
        self.folder.save_checkpoint(self.state.step, tensors, scalars)

    def _check_same(self, record: dict[str, Any]) -> None:
        mine = describe_run(self.run, self.state.device, self.provenance)
        for part in ("data", "model", "objective", "training"):
            if differing := _differences(_completed(record.get(part)), mine[part], part):
                name, before, now = differing[0]
                raise UsageError(
                    f"The run in {self.folder.path} cannot go on with other settings or other data: {name} was "
                    f"{before} and is now {now}. Give the same options and the same files as before, or another --out "
                    "for a new run."
                )


def describe_run(run: Run, device: torch.device, provenance: dict[str, Any]) -> dict[str, Any]:
    """Returns what run.json says of a run: everything that was resolved, and where it came from."""
    splits = {"train": run.data.train, "valid": run.data.valid, "test": run.data.test}
    there = {name: source for name, source in splits.items() if source is not None}
    return {
        **provenance,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "source": run.data.name,
            "view": spec.describe(run.data.view),
            "event_shape": list(run.data.event_shape),
            "support": run.data.support.value,
            "sizes": {name: len(source) for name, source in there.items()},
            "fingerprint": {name: source.fingerprint for name, source in there.items()},
        },
        "model": spec.describe(run.vae),
        "objective": spec.describe(run.objective),
        "training": spec.describe(run.training),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "lowerbound": lowerbound.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
            "platform": f"{sys.platform}-{platform.machine()}",
        },
    }


def training_of(record: dict[str, Any]) -> Training:
    """Returns how a saved run was trained."""
    training = spec.build(record.get("training"))
    if not isinstance(training, Training):
        raise CheckpointError("run.json does not describe a training; the run is damaged.")
    return training


def objective_of(record: dict[str, Any]) -> Objective:
    """Returns what a saved run minimised."""
    objective = spec.build(record.get("objective"))
    if not isinstance(objective, Objective):
        raise CheckpointError("run.json does not describe an objective; the run is damaged.")
    return objective


def notes_of(record: dict[str, Any]) -> tuple[str, ...]:
    """Returns what a reader must know of how a saved run was trained."""
    said, view = list(objective_of(record).notes()), view_of(record)
    if view.joined:
        said.append("the model was trained on all training examples, validation included: nothing was selected on it")
    if view.binarise is Binarise.DYNAMIC:
        said.append(
            "x is binarised: afresh at each look in training, by one fixed draw in validation and test "
            f"(seed {view.seed})"
        )
    if view.balance:
        said.append(
            f"rows with rare values of {view.balance!r} were repeated in training, in proportion to the root of their "
            "number: log p(x) is of such a table; what is generated has the table's own shares again"
        )
    return tuple(said)


def view_of(record: dict[str, Any]) -> View:
    """Returns how the data of a saved run were looked at."""
    described = record.get("data")
    view = spec.build(described.get("view")) if isinstance(described, dict) else None
    if not isinstance(view, View):
        raise CheckpointError("run.json does not say how the data were seen; the run is damaged.")
    return view


def _completed(described: Any) -> Any:
    """Returns what a run was described by, with the defaults of arguments that its parts did not have then."""
    if not isinstance(described, dict):
        return described
    if "class" not in described:
        return {name: _completed(value) for name, value in described.items()}
    with torch.device("meta"):
        return spec.describe(spec.build(described))


def _differences(before: Any, now: Any, name: str) -> list[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{name}.{k}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [d for place, pair in pairs for d in _differences(*pair, f"{name}.{place}")]
    return [] if before == now else [(name, _short(before), _short(now))]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
