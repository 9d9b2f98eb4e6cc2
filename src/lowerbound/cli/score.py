"""`score`: how strange each example is to a model, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from lowerbound.cli.blocks import SUFFIXES, write_blocks
from lowerbound.cli.options import Data, DataDir, Device, Json, Run, Samples, Seed, Split
from lowerbound.cli.show import job, print_json, print_note, stdout
from lowerbound.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from lowerbound.cli.saved import Saved
    from lowerbound.scoring import Reference, Scores

# The share of reference examples that the threshold leaves below it.
_SHARE = 0.95


def score(
    run: Run,
    /,
    *,
    out: Path,
    data: Data = None,
    split: Split = None,
    samples: Samples = 100,
    limit: int | None = None,
    regret: int = 0,
    reference: str | None = None,
    seed: Seed = 0,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write how strange each example is: anomaly, higher is stranger, beside log p(x) and its parts.

    log p(x) alone is no novelty score: simple examples of another kind often have a high one.

    Example: lowerbound score runs/first --out scores.csv

    Parameters
    ----------
    out
        A .csv, .parquet or .npz with a row an example.
    limit
        Score only so many examples, picked by a fixed seed.
    regret
        Add the likelihood regret, by a search of so many steps an example (150 are
        enough as a rule); a step costs as much as some 25 samples.
    reference
        What is normal: a source, whose training split counts; by default that of the
        run. 10,000 examples of it are measured, picked by a fixed seed.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out should end in {' or '.join(SUFFIXES)}; got {out}.")
    if regret < 0:
        raise UsageError(f"--regret is a number of steps from 0 on; got {regret}.")
    from lowerbound.cli.saved import open_saved
    from lowerbound.evidence import Refinement
    from lowerbound.scoring import check_scorable, reference_of, scored
    from lowerbound.training import resolve_device

    saved = open_saved(run, data, data_dir)
    source = saved.split(split)
    check_scorable(saved.vae, source, samples, limit)  # before what takes long
    # The model learned from the run's own source, whichever is scored.
    known = saved if data == reference else open_saved(run, reference, data_dir)
    vae = saved.vae.to(resolve_device(device))
    with job("measuring what is normal") as report:
        normal = reference_of(vae, known.split("train"), num_samples=samples, seed=seed, on_progress=report)
    search = Refinement(steps=regret, draws=8) if regret else None
    totals = _Totals(normal)
    with job("scoring") as report:
        blocks = scored(vae, source, normal, limit=limit, regret=search, seed=seed, on_progress=report)
        write_blocks(out, totals.of(blocks))
    _report(out, totals, _notes(saved, known, vae, source), json)


def _notes(saved: Saved, known: Saved, vae: Any, source: Any) -> list[str]:
    from lowerbound.evaluation.caveats import caveats

    # What is true of the data of two runs, or of one, is said once.
    return list(dict.fromkeys([*saved.notes, *known.notes, *caveats(vae, source)]))


class _Totals:
    """Adds up what the summary says, block by block.

    Args:
        normal: What the examples are held against.
    """

    def __init__(self, normal: Reference) -> None:
        self.normal = normal
        self.threshold = float(normal.anomaly.quantile(_SHARE))
        self.count = self.above = 0
        self.sums: dict[str, float] = {}

    def of(self, blocks: Iterator[Scores]) -> Iterator[dict[str, Tensor]]:
        """Yields the columns of each block."""
        for block in blocks:
            columns = block.columns()
            self.count += len(block)
            self.above += int((block.anomaly > self.threshold).sum())
            for name, value in columns.items():
                if name not in ("row", "label", "log_px_stderr"):
                    self.sums[name] = self.sums.get(name, 0.0) + float(value.sum())
            yield columns

    @property
    def means(self) -> dict[str, float | None]:
        """The mean of each score; None where it is not finite."""
        found = {name: total / self.count for name, total in self.sums.items()}
        return {name: mean if math.isfinite(mean) else None for name, mean in found.items()}


def _report(out: Path, totals: _Totals, notes: list[str], json: bool) -> None:
    normal, share = totals.normal, totals.above / totals.count
    if json:
        document = {
            "out": str(out),
            "n": totals.count,
            "num_samples": normal.num_samples,
            "means": totals.means,
            "reference": {
                "n": len(normal),
                "surprise_mean": normal.surprise[0],
                "surprise_sd": normal.surprise[1],
                "anomaly_95": totals.threshold,
            },
            "share_above_95": share,
            "notes": notes,
            "units": "nats",
        }
        print_json(document)
        return
    for note in notes:
        print_note(f"Note: {note}.")
    stdout.print(
        f"Wrote {totals.count:,} scores to {escape(str(out))}. 95 % of {len(normal):,} training examples have an "
        f"anomaly below {totals.threshold:.3g}; {share:.1%} of these are above.",
        soft_wrap=True,
    )
