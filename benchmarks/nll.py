"""log p(x) of dynamically binarised MNIST for a budget of time: a recipe, several seeds, the test digits at the end.

The recipe is what `lowerbound train RECIPE --data mnist` runs, on all 60,000 training digits; its settings were chosen
with a validation split. The test digits are looked at once, after all trainings, on one fixed binarisation of them.
The seconds of a training are those of its updates, as its metrics have them.

    python benchmarks/nll.py nll-10 --seeds 3
    python benchmarks/nll.py nll-10 --seeds 3 --table --limit 1000     only measure, and on fewer digits
    python benchmarks/nll.py nll-60 --seeds 1 --precision fp32         measure in float32, which takes longer

A run that is there is not trained again, and one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import lowerbound as lb
from lowerbound.checkpoint import RunFolder
from lowerbound.evaluation import Evaluation
from lowerbound.training import Precision

CONSOLE = Console(stderr=True)


def train(recipe: str, folder: Path, seed: int) -> None:
    """Trains by the command that users have; a finished run is left alone."""
    if RunFolder(folder).exists() and RunFolder(folder).read().finished:
        return
    command = [sys.executable, "-m", "lowerbound", "train", recipe, "--data", "mnist", "--out", str(folder)]
    subprocess.run([*command, "--seed", str(seed), "--resume"], check=True)


def record(folder: Path, seed: int, measured: Evaluation) -> dict[str, Any]:
    """What is kept of one seed."""
    run = RunFolder(folder)
    return {
        "seed": seed,
        "nll": -measured.log_px,
        "stderr": measured.log_px_stderr,
        "minus_elbo": -measured.elbo,
        "active_units": measured.active_units,
        "khat_bad": measured.khat_bad,
        "n": measured.n,
        "num_samples": measured.num_samples,
        "precision": measured.precision,
        "training_seconds": run.read_metrics()[-1]["seconds"],
        "threads": run.read().record["threads"],
        "notes": list(measured.notes),
    }


def table(
    recipe: str, folders: dict[int, Path], samples: int, limit: int | None, precision: Precision
) -> dict[str, Any]:
    """Measures the trained seeds on the test digits, prints them and returns the record."""
    test = lb.open_data("mnist").binarised(lb.Binarise.DYNAMIC).test
    rows = []
    with Progress(console=CONSOLE, disable=not CONSOLE.is_terminal) as bar:
        for seed, folder in folders.items():
            task = bar.add_task(f"measuring seed {seed}", total=None)
            measured = lb.evaluate(
                RunFolder(folder).read().vae,
                test,
                num_samples=samples,
                limit=limit,
                gap=0,
                precision=precision,
                on_progress=lambda done, total, task=task: bar.update(task, completed=done, total=total),
            )
            rows.append(record(folder, seed, measured))
            CONSOLE.print(f"{recipe}, seed {seed}: {rows[-1]['nll']:.2f}")
    found = [row["nll"] for row in rows]
    spread = statistics.stdev(found) if len(found) > 1 else None
    shown = Table("seed", "-log p(x)", "-ELBO", "active", "training")
    for row in rows:
        shown.add_row(
            str(row["seed"]),
            f"{row['nll']:.2f} ± {row['stderr']:.2f}",
            f"{row['minus_elbo']:.2f}",
            str(row["active_units"]),
            f"{row['training_seconds'] / 60:.1f} min, {row['threads']} threads",
        )
    Console().print(shown)
    Console().print(f"mean {statistics.fmean(found):.2f}" + ("" if spread is None else f", spread {spread:.2f}"))
    return {
        "recipe": recipe,
        "mean": statistics.fmean(found),
        "spread": spread,
        "test_fingerprint": test.fingerprint,
        "seeds": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="nll-10, or any other")
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ...")
    parser.add_argument("--runs", type=Path, default=Path("runs/nll"), help="where the runs are kept")
    parser.add_argument("--samples", type=int, default=5000, help="importance samples an example")
    parser.add_argument("--limit", type=int, help="measure so many digits only")
    parser.add_argument(
        "--precision", type=Precision, default=Precision.AUTO, help="the networks' arithmetic in measuring"
    )
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--json", type=Path, help="also write the record here")
    options = parser.parse_args()
    folders = {seed: options.runs / f"{options.recipe}-{seed}" for seed in range(options.seeds)}
    if not options.table:
        for seed, folder in folders.items():
            train(options.recipe, folder, seed)
    found = table(options.recipe, folders, options.samples, options.limit, options.precision)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
