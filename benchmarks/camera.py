"""How well the recipe camera finds the factors of photographs: several seeds, with factors told and with none.

    python benchmarks/camera.py --seeds 10 --json docs/results/camera.json

A seed gives the initial weights, the order of the examples and, where some tell their factors, which those are. All
numbers are of the 2,000 test photographs, which nothing was selected on. The angle's error is the median over those in
focus (a blur below half a pixel): where factors are told it is read off its component, c + w E[z_2|x]; where none are
it is predicted from E[z|x] by a random forest that learned from 5,000 training photographs *and their true angles*,
which says what the code holds and not that it is found.

Results are written after each training, so that what was cut short says what it has.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.ensemble import RandomForestRegressor

import lowerbound as lb
from lowerbound.disentanglement import disentanglement
from lowerbound.experiment import prepare
from lowerbound.objectives import WithFactors
from lowerbound.recipes import RECIPES

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "told 1 in 100": {},
    "told none": {"labelled": 0.0},
    "told none, 6 components, beta 30": {"labelled": 0.0, "latent_dim": 6, "beta": 30.0},
}
ANGLE, DEFOCUS = 1, 2
IN_FOCUS = 0.5
CPU = torch.device("cpu")


def main() -> None:
    """Reads the command line, trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--untold-seeds", type=int, default=None, help="for the configurations that are told none")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args()
    data = lb.open_data("camera")
    rows: list[dict[str, Any]] = []
    for name, changes in CONFIGURATIONS.items():
        few = asked.untold_seeds is not None and "labelled" in changes
        for seed in range(asked.untold_seeds if few else asked.seeds):
            rows.append({"configuration": name, "seed": seed, **measured(data, changes, seed, asked.epochs)})
            print(json.dumps(rows[-1]), flush=True)
            if asked.json is not None:
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                asked.json.write_text(json.dumps(told(rows), indent=1) + "\n")
    print(table(told(rows)["medians"]))


def measured(data: lb.Data, changes: dict[str, Any], seed: int, epochs: int | None) -> dict[str, float]:
    """Trains once and measures."""
    settings = dict(changes) | ({} if epochs is None else {"epochs": epochs})
    if settings.get("labelled") != 0:
        settings["told_seed"] = seed
    began = time.process_time()
    run = prepare(RECIPES["camera"], data, settings, {"seed": seed})
    history = lb.fit(run.vae, run.data, run.objective, run.training, device=CPU)
    spent = time.process_time() - began
    factors = data.test.factors
    assert factors is not None
    codes = lb.encode(run.vae, data.test)["loc"]
    scores = disentanglement(codes, factors, seed).to_json()
    error = (angles(run, data, codes) - factors.values[:, ANGLE]).abs()
    sharp = factors.values[:, DEFOCUS] < IN_FOCUS
    return {
        **scores,
        "angle_error_in_focus": error[sharp].median().item(),
        "angle_error": error.median().item(),
        "angle_within_5_degrees_in_focus": (error[sharp] <= 5).double().mean().item(),
        "valid_elbo": history[-1]["valid_elbo"],
        "cpu_seconds": spent,
    }


def angles(run: lb.Run, data: lb.Data, codes: torch.Tensor) -> torch.Tensor:
    """Returns the angle that the codes `[N, D]` of photographs stand for, in degrees, `[N]`."""
    if isinstance(run.objective, WithFactors):
        return run.objective.centres[ANGLE] + run.objective.widths[ANGLE] * codes[:, ANGLE]
    index = torch.arange(5000)
    assert data.train.factors is not None
    forest = RandomForestRegressor(50, min_samples_leaf=3, random_state=0)
    forest.fit(lb.encode(run.vae, data.train, index=index)["loc"], data.train.factors.values[index, ANGLE])
    return torch.from_numpy(forest.predict(codes))


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the JSON file holds: every training, the medians, and where it was."""
    medians: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["configuration"] for row in rows):
        mine = [row for row in rows if row["configuration"] == name]
        medians[name] = {"seeds": len(mine)} | {
            key: statistics.median(row[key] for row in mine) for key in mine[0] if key not in ("configuration", "seed")
        }
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "medians": medians,
        "trainings": rows,
    }


def table(medians: dict[str, dict[str, float]]) -> str:
    """Returns the medians as Markdown."""
    names = list(next(iter(medians.values())))
    lines = ["| median of the seeds | " + " | ".join(medians) + " |", "| --- |" + " --- |" * len(medians)]
    lines += [f"| {name} | " + " | ".join(f"{of[name]:.3g}" for of in medians.values()) + " |" for name in names]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
