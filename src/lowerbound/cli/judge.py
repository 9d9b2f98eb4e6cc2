"""`evaluate` and `compare`: tables of numbers that mean what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lowerbound.cli.show import print_comparison, print_evaluation, print_json, stderr
from lowerbound.errors import UsageError

# As `lowerbound.evaluation` has it; that would import torch for `--help`.
SPLIT_EXAMPLES = 32


def evaluate(
    run: Path,
    /,
    *,
    data: str | None = None,
    split: str | None = None,
    samples: int = 100,
    limit: int | None = None,
    gap: int = SPLIT_EXAMPLES,
    seed: int = 0,
    data_dir: Path | None = None,
    device: str = "auto",
    json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure a run: ELBO, rate, distortion and log p(x), each with its standard error.

    Example: lowerbound evaluate runs/first --samples 1000

    Parameters
    ----------
    run
        The run folder.
    data
        Another source than the one it was trained on; binarised in the same way.
    split
        test, valid, train, or all in the source's own order; by default test, and all
        of another file that has no splits of its own.
    samples
        K, importance samples an example for log p(x).
    limit
        Measure only so many examples, picked by a fixed seed.
    gap
        Split the posterior gap into what the family of q and what the encoder falls
        short of, on so many of these; 0 to leave it out. An example takes as long as
        some thousand samples.
    seed
        Seeds the draws.
    data_dir
        A folder in which named data sets are looked for first.
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON document.
    """
    from rich.progress import Progress

    from lowerbound.cli.saved import open_saved
    from lowerbound.evaluation import evaluate as measure
    from lowerbound.training import resolve_device

    saved = open_saved(run, data, data_dir)
    source = saved.split(split)
    vae = saved.vae.to(resolve_device(device))
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("evaluating", total=None)
        result = measure(
            vae,
            source,
            num_samples=samples,
            limit=limit,
            gap=gap,
            seed=seed,
            objective=saved.objective,
            notes=saved.notes,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        print_json(result.to_json())
    else:
        print_evaluation(f"{run}: {saved.source}, {saved.named(split)}", result)


def compare(
    *runs: Path,
    split: str = "test",
    samples: int = 100,
    limit: int | None = None,
    gap: int = SPLIT_EXAMPLES,
    seed: int = 0,
    data_dir: Path | None = None,
    device: str = "auto",
    json: Annotated[bool, Parameter(name="--json")] = False,
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
    samples
        K, importance samples an example for log p(x).
    limit
        Measure only so many examples, the same for all, picked by a fixed seed.
    gap
        Split the posterior gap on so many of these, the same for all; 0 to leave it
        out.
    seed
        Seeds the draws.
    data_dir
        A folder in which named data sets are looked for first.
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON document.
    """
    from rich.progress import Progress

    from lowerbound.cli.saved import open_saved
    from lowerbound.evaluation import compare as measure
    from lowerbound.training import resolve_device

    if len(set(runs)) < 2:
        raise UsageError(f"A comparison needs at least 2 different runs; got {len(set(runs))}.")
    saved = {str(run): open_saved(run, None, data_dir) for run in runs}
    prints = {name: one.data.split(split).fingerprint for name, one in saved.items()}
    (first, expected), *others = prints.items()
    for name, found in others:
        if found != expected:
            raise UsageError(
                f"{first} and {name} do not see the same {split} examples: they were trained on other data, or on "
                "other binarisations of it. Runs can be compared when both are the same."
            )
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("comparing", total=None)
        result = measure(
            {name: one.vae.to(resolve_device(device)) for name, one in saved.items()},
            saved[first].data.split(split),
            num_samples=samples,
            limit=limit,
            gap=gap,
            seed=seed,
            objectives={name: one.objective for name, one in saved.items()},
            notes={name: one.notes for name, one in saved.items()},
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        print_json(result.to_json())
    else:
        print_comparison(f"{saved[first].data.name}, {split}, {result.evaluations[0].n:,} examples", result)
