"""Trackers: other places that a training reports to. metrics.jsonl is the source of truth; these are extras.

A tracker can never stop a training: one that raises is dropped, with a warning, and the training goes on.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from lowerbound.errors import ResourceError, UsageError, did_you_mean


class Tracker(Protocol):
    """What a tracker does."""

    def config(self, record: dict[str, Any]) -> None:
        """Takes what run.json says, once."""

    def scalars(self, values: dict[str, Any], step: int) -> None:
        """Takes one line of metrics."""

    def close(self) -> None:
        """Writes what is left."""


class Trackers:
    """Several trackers as one that never raises.

    Args:
        trackers: The trackers.
    """

    def __init__(self, trackers: Iterable[Tracker] = ()) -> None:
        self._alive = list(trackers)

    def config(self, record: dict[str, Any]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.config(record))

    def scalars(self, values: dict[str, Any], step: int) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.scalars(values, step))

    def close(self) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._alive):
            try:
                call(tracker)
            except Exception as error:  # whatever a third party raises, training goes on
                self._alive.remove(tracker)
                warnings.warn(f"{type(tracker).__name__} failed and is left out from here on: {error}", stacklevel=2)


class TensorBoard:
    """Writes event files for TensorBoard into the run folder.

    Args:
        folder: The run folder.

    Raises:
        ResourceError: The package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ResourceError(
                "--log tensorboard needs the package tensorboard. Install it with: pip install 'lowerbound[trackers]'"
            )
        self._folder = folder / "tensorboard"

    def config(self, record: dict[str, Any]) -> None:
        """Begins the event file, with the run's description as text."""
        from torch.utils.tensorboard.writer import SummaryWriter

        # Only now: a run is not begun in a folder that has something in it already.
        self._writer = SummaryWriter(str(self._folder))
        self._writer.add_text("recipe", f"{record.get('recipe')} {record.get('settings')}")

    def scalars(self, values: dict[str, Any], step: int) -> None:
        """Writes each number under its own name."""
        for name, value in values.items():
            if name not in ("step", "seconds"):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard}


def open_trackers(names: Iterable[str], folder: Path) -> Trackers:
    """Opens trackers by name.

    Raises:
        UsageError: A name is unknown.
        ResourceError: A package is not installed.
    """
    opened = []
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"There is no tracker {name!r}. {did_you_mean(name, TRACKERS)}")
        opened.append(TRACKERS[name](folder))
    return Trackers(opened)
