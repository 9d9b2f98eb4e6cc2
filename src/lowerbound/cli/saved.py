"""A run and its data, as the verbs that work on a trained model need them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowerbound.checkpoint import RunFolder
from lowerbound.cli.show import job
from lowerbound.data import Data, Source
from lowerbound.experiment import notes_of, objective_of, view_of
from lowerbound.model import VAE
from lowerbound.objectives import Objective


@dataclass(frozen=True)
class Saved:
    """A run and the data asked for.

    Attributes:
        vae: The model.
        data: The source asked for, or the run's own, seen as in training.
        notes: What a reader of its numbers must know.
        objective: What trained the model.
    """

    vae: VAE
    data: Data
    notes: tuple[str, ...]
    objective: Objective

    def split(self, name: str) -> Source:
        """Returns the split called `name`, or `all` of a file, in its own order.

        Raises:
            UsageError: There is no such split.
        """
        reading = self.data.view.reading
        return self.data.split(name) if name != "all" or reading is None else reading.whole(Path(self.data.name))


def open_saved(run: Path, source: str | None = None, data_dir: Path | None = None) -> Saved:
    """Opens a run with a source, by default the one it was trained on.

    Raises:
        CheckpointError: The folder is no run, or it is damaged.
        DataError: The source cannot be had.
    """
    saved = RunFolder(run).read()
    notes, described = list(notes_of(saved.record)), saved.record["data"]
    if not saved.finished:
        notes.append("training has not ended: these are the weights of the last checkpoint")
    with job("reading") as report:
        data = view_of(saved.record).of(source or str(described.get("source")), data_dir, report)
    fingerprints = described.get("fingerprint")
    if source is None and isinstance(fingerprints, dict) and data.test.fingerprint != fingerprints.get("test"):
        notes.append(f"the test split of {data.name} is not the one of the training any more: its values have changed")
    return Saved(saved.vae, data, tuple(notes), objective_of(saved.record))
