"""A run and its data, as the verbs that work on a trained model need them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lowerbound.checkpoint import RunFolder
from lowerbound.cli.show import job
from lowerbound.data import SPLITS, Data, Source, View
from lowerbound.errors import UsageError, did_you_mean
from lowerbound.experiment import notes_of, objective_of, view_of
from lowerbound.model import VAE
from lowerbound.objectives import Objective

# All examples of a source in the order in which they stand there.
ALL = "all"


@dataclass(frozen=True)
class Saved:
    """A run and the data asked for, which are opened when they are wanted.

    Attributes:
        vae: The model.
        view: How the data were looked at in training.
        source: The source asked for, or the run's own.
        is_own: Whether it is the run's own.
        notes: What a reader of its numbers must know.
        objective: What trained the model.
        data_dir: A folder in which named data sets are looked for first.
    """

    vae: VAE
    view: View
    source: str
    is_own: bool
    notes: tuple[str, ...]
    objective: Objective
    data_dir: Path | None = None

    @cached_property
    def data(self) -> Data:
        """The source in its splits, seen as in training."""
        with job("reading") as report:
            return self.view.of(self.source, self.data_dir, report)

    def named(self, split: str | None) -> str:
        """Returns which split is meant where none may have been said.

        Of the run's own data, and of a source that says what is to be tested on, that is the test split. A file that
        the run has never seen has nothing to hide from it, and all of it is meant.
        """
        if split is not None:
            return split
        return "test" if self.is_own or self.view.has_splits(self.source) else ALL

    def split(self, name: str | None = None) -> Source:
        """Returns the split called `name`, or `all` in the source's own order; see `named` where there is no name.

        Raises:
            UsageError: There is no such split, or x has another shape than the model's.
            DataError: The source cannot be had.
        """
        name = self.named(name)
        if name not in (ALL, *SPLITS):
            raise UsageError(f"There is no split {name!r}. {did_you_mean(name, (ALL, *SPLITS))}")
        if name != ALL:
            found = self.data.split(name)
        else:
            with job("reading") as report:
                found = self.view.whole(self.source, self.data_dir, report)
        self.vae.check_shape(found.event_shape)
        return found


def open_saved(run: Path, source: str | None = None, data_dir: Path | None = None) -> Saved:
    """Opens a run with a source, by default the one it was trained on.

    Raises:
        CheckpointError: The folder is no run, or it is damaged.
        DataError: The source cannot be had.
    """
    record = RunFolder(run).read()
    notes, described = list(notes_of(record.record)), record.record["data"]
    if not record.finished:
        notes.append("training has not ended: these are the weights of the last checkpoint")
    own = str(described.get("source"))
    found = own if source is None else source
    is_own = found == own or str(Path(found).resolve()) == own
    view, objective = view_of(record.record), objective_of(record.record)
    saved = Saved(record.vae, view, found, is_own, tuple(notes), objective, data_dir)
    fingerprints = described.get("fingerprint")
    if source is None and isinstance(fingerprints, dict) and saved.data.test.fingerprint != fingerprints.get("test"):
        changed = f"the test split of {own} is not the one of the training any more: its values have changed"
        return replace(saved, notes=(*saved.notes, changed))
    return saved
