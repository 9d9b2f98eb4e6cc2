"""`evaluate` and `compare`: tables of numbers that mean what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowerbound.cli.options import Data, DataDir, Device, Json, Precision, Run, Samples, Seed, Split, precision_of
from lowerbound.cli.show import job, print_comparison, print_evaluation, print_json
from lowerbound.errors import UsageError

if TYPE_CHECKING:
    from lowerbound.cli.saved import Saved

# As `lowerbound.evaluation` has it; that would import torch for `--help`.
SPLIT_EXAMPLES = 32


def evaluate(
    run: Run,
    /,
    *,
    data: Data = None,
    split: Split = None,
    samples: Samples = 100,
    limit: int | None = None,
    gap: int = SPLIT_EXAMPLES,
    seed: Seed = 0,
    data_dir: DataDir = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure a run: ELBO, rate, distortion and log p(x), each with its standard error.

    Example: lowerbound evaluate runs/first --samples 1000

    Parameters
    ----------
    limit
        Measure only so many examples, picked by a fixed seed.
    gap
        Split the posterior gap into what the family of q and what the encoder falls
        short of, on so many of these; 0 to leave it out. An example takes as long as
        some thousand samples.
    """
    from lowerbound.cli.saved import open_saved
    from lowerbound.evaluation import evaluate as measure
    from lowerbound.training import resolve_device

    saved = open_saved(run, data, data_dir)
    source = saved.split(split)
    vae = saved.vae.to(resolve_device(device))
    with job("evaluating") as report:
        result = measure(
            vae,
            source,
            num_samples=samples,
            limit=limit,
            gap=gap,
            seed=seed,
            precision=precision_of(precision),
            objective=saved.objective,
            notes=saved.notes,
            on_progress=report,
        )
    if json:
        print_json(result.to_json())
    else:
        print_evaluation(f"{run}: {saved.source}, {saved.named(split)}", result)


def compare(
    *runs: Path,
    split: str = "test",
    samples: Samples = 100,
    limit: int | None = None,
    gap: int = SPLIT_EXAMPLES,
    seed: Seed = 0,
    data_dir: DataDir = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure several runs on the same examples, with paired differences and their errors.

    The runs must see x in the same way (the same data, binarised by the same draw); the first is what the others are
    held against.

    Example: lowerbound compare runs/first runs/second --samples 1000

    Parameters
    ----------
    runs
        The run folders, two or more.
    split
        test, valid or train.
    limit
        Measure only so many examples, the same for all, picked by a fixed seed.
    gap
        Split the posterior gap on so many of these, the same for all; 0 to leave it
        out.
    """
    from lowerbound.cli.saved import open_saved
    from lowerbound.evaluation import compare as measure
    from lowerbound.training import resolve_device

    if len(set(runs)) < 2:
        raise UsageError(f"A comparison needs at least 2 different runs; got {len(set(runs))}.")
    saved = {str(run): open_saved(run, None, data_dir) for run in runs}
    prints = {name: (one.data.split(split).fingerprint, _units(one)) for name, one in saved.items()}
    (first, expected), *others = prints.items()
    for name, found in others:
        if found != expected:
            raise UsageError(
                f"{first} and {name} do not see the same {split} examples: they were trained on other data, or "
                "these were read in another way: in other units, columns or binarisations. Runs can be compared when "
                "both are the same."
            )
    with job("comparing") as report:
        result = measure(
            {name: one.vae.to(resolve_device(device)) for name, one in saved.items()},
            saved[first].data.split(split),
            num_samples=samples,
            limit=limit,
            gap=gap,
            seed=seed,
            precision=precision_of(precision),
            objectives={name: one.objective for name, one in saved.items()},
            notes={name: one.notes for name, one in saved.items()},
            on_progress=report,
        )
    if json:
        print_json(result.to_json())
    else:
        print_comparison(f"{saved[first].data.name}, {split}, {result.evaluations[0].n:,} examples", result)


def _units(saved: Saved) -> tuple[tuple[float, float], ...]:
    """Returns the units that log p(x) of a table is in, which x has lost; nothing of other data."""
    from lowerbound.data import Table

    table = saved.view.reading
    return tuple((c.loc, c.scale) for c in table.columns if c.kind.is_measured) if isinstance(table, Table) else ()
