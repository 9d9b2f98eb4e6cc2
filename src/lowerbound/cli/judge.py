"""`evaluate`: a table of numbers that mean what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lowerbound.cli.show import print_evaluation, print_json, stderr


def evaluate(
    run: Path,
    /,
    *,
    data: str | None = None,
    split: str = "test",
    samples: int = 100,
    limit: int | None = None,
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
        test, valid or train.
    samples
        K, importance samples an example for log p(x).
    limit
        Measure only so many examples, picked by a fixed seed.
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
    source = saved.data.split(split)
    vae = saved.vae.to(resolve_device(device))
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("evaluating", total=None)
        result = measure(
            vae,
            source,
            num_samples=samples,
            limit=limit,
            seed=seed,
            notes=saved.notes,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        print_json(result.to_json())
    else:
        print_evaluation(f"{run}: {saved.data.name}, {split}", result)
