"""Made tables: a classifier learns from rows that a model made, and is tested on real ones.

A table is split in two, 70 to 30, five times, the classes alike. The model learns the 70, class included, and makes as
many rows. A random forest learns from those, or from the real 70, and both are tested on the real 30: balanced
accuracy, and F1 of the rarest class. `mixed` is a made table of 3,000 rows with numbers, counts, labels and a class of
1 in 100, on which a model that leaves it out has an F1 of 0; ours repeats rare classes in training (`--balance`), and
makes them as often as they occur. The settings are near those of `imputation.py`, the same for all tables, and were
not chosen on any of these splits; on `mixed` what matters was tried out on other tables of the same maker.
Beside it, the TVAE of the package ctgan (Xu and others, 2019) at its default settings, told which columns are labels.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import PEERS, Contestant
from measure import LeftOutError
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from tables import REAL, asked, read, told, train

import lowerbound as lb
from lowerbound.data import Kind

SETTINGS: dict[str, Any] = {"width": 64, "lr": 2e-3, "heavy_tails": False, "least_scale": 0.1}
UPDATES = 1500
REAL_ROWS, OURS = "real rows", "lowerbound, tabular"
TVAE = Contestant("ctgan, TVAE", "with_ctgan.py", "tvae", "ctgan")
SCORES = ("balanced accuracy", "F1 of the rarest")
Made = tuple[np.ndarray, np.ndarray]
_ROWS, _RARE = 3000, 0.01


def mixed(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[Kind | None]]:
    """Returns a table with columns of many kinds, and a class that is 1 in a row of 100."""
    rng = np.random.default_rng(seed)
    rare = (np.arange(_ROWS) < _RARE * _ROWS).astype(int)
    z = rng.normal(size=(_ROWS, 2)) + 2.0 * rare[:, None]
    values = np.stack(
        [
            z[:, 0] + 0.3 * rng.normal(size=_ROWS),
            z[:, 0] * z[:, 1] + 0.3 * rng.normal(size=_ROWS),
            np.exp(z[:, 1] + 0.3 * rng.normal(size=_ROWS)),
            rng.poisson(np.exp(1 + 0.5 * z[:, 0])),
            (z[:, 1] + rng.logistic(size=_ROWS) > 0).astype(int),
            np.argmax(np.stack([z[:, 0], z[:, 1], 0 * z[:, 0]]) + rng.gumbel(size=(3, _ROWS)), 0),
        ],
        1,
    )
    kinds = [Kind.REAL, Kind.REAL, Kind.POSITIVE, Kind.COUNT, Kind.BINARY, Kind.CATEGORICAL]
    return values, rare, list(kinds)


def tables() -> dict[str, tuple[np.ndarray, np.ndarray, list[Kind | None]]]:
    """Returns the tables: numbers, classes, and the kinds of the columns; None where the file would tell."""
    real = {name: load() for name, load in REAL.items()}
    return {name: (t.data, t.target, [None] * t.data.shape[1]) for name, t in real.items()} | {"mixed": mixed()}


def ours(x: np.ndarray, y: np.ndarray, kinds: Sequence[Kind | None], seed: int) -> Made:
    """Returns as many rows as there are, made by a model of them."""
    table, rows = read(x, y, kinds)
    epochs = max(1, UPDATES // -(-len(rows) // 64))
    vae = train(table, rows, {**SETTINGS, "balance": table.columns[-1].name, "epochs": epochs}, seed)
    drawn = lb.sample(vae, len(x), seed=seed, draw=True).double().numpy()
    cells = [c.decode(v) for c, v in zip(table.columns, drawn.T, strict=True)]
    return np.array(cells[:-1], dtype=float).T, np.array(cells[-1], dtype=int)


def tvae(x: np.ndarray, y: np.ndarray, kinds: Sequence[Kind | None], seed: int) -> Made:
    """Returns as many rows made by the TVAE of the package ctgan, in an environment of its own.

    Raises:
        LeftOutError: It has no environment, or broke.
    """
    discrete = np.array([kind is not None and kind.has_levels for kind in kinds])
    with tempfile.TemporaryDirectory() as folder:
        table, rows = Path(folder) / "table.npz", Path(folder) / "made.npz"
        np.savez(table, x=x, y=y, discrete=discrete)
        command = [str(TVAE.python), str(PEERS / TVAE.script), str(table), str(rows), str(seed)]
        own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, env=own, cwd=folder, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise LeftOutError(f"{TVAE.name} is left out: it ended with status {done.returncode} ({said[-1]}).")
        with np.load(rows) as found:
            return found["x"], found["y"]


MAKERS: dict[str, Callable[[np.ndarray, np.ndarray, Sequence[Kind | None], int], Made]] = {
    REAL_ROWS: lambda x, y, _, __: (x, y),
    OURS: ours,
    TVAE.name: tvae,
}


def judged(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns the balanced accuracy, and F1 of the rarest class, of a forest that learned from x and y."""
    forest = RandomForestClassifier(200, random_state=seed, class_weight="balanced", min_samples_leaf=3).fit(x, y)
    guess = forest.predict(test_x)
    classes, counts = np.unique(test_y, return_counts=True)
    rarest = classes[counts.argmin()]
    return balanced_accuracy_score(test_y, guess), f1_score(test_y == rarest, guess == rarest, zero_division=0.0)


def main() -> None:
    torch.set_num_threads(1)
    options = asked(__doc__.splitlines()[0])
    columns = [f"{data}: {what}" for data in tables() for what in SCORES]
    found: dict[str, dict[str, list[float]]] = {name: {column: [] for column in columns} for name in MAKERS}
    shares: dict[str, list[float]] = {name: [] for name in MAKERS}
    spent = dict.fromkeys(MAKERS, 0.0)
    left_out: dict[str, str] = {}
    for data, (x, y, kinds) in tables().items():
        for seed in range(options.seeds):
            learn_x, test_x, learn_y, test_y = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
            for name in [name for name in MAKERS if name not in left_out]:
                began = processor_seconds()
                try:
                    made_x, made_y = MAKERS[name](learn_x, learn_y, kinds, seed)
                except LeftOutError as error:
                    left_out[name] = str(error)
                    continue
                spent[name] += processor_seconds() - began
                scores = judged(made_x, made_y, test_x, test_y, seed)
                for what, score in zip(SCORES, scores, strict=True):
                    found[name][f"{data}: {what}"].append(float(score))
                    print(f"{data}, split {seed}, {name}, {what}: {score:.3f}", file=sys.stderr, flush=True)
                if data == "mixed":
                    shares[name].append(float((made_y == 1).mean()))
    rare = ", ".join(f"{name} {np.mean(share):.1%}" for name, share in shares.items() if share)
    times = ", ".join(f"{name} {seconds / options.seeds:.0f} s" for name, seconds in spent.items() if seconds >= 1)
    notes = [
        f"Rows of the rare class of the mixed table: {rare}.",
        f"Processor time of all tables, a split: {times}.",
        *left_out.values(),
    ]
    title = "A forest that learned from made rows, on real ones; mean and deviation over the splits"
    kept = {name: row for name, row in found.items() if name not in left_out}
    told(title, kept, {**SETTINGS, "updates": UPDATES}, notes, options)


def processor_seconds() -> float:
    """Returns the processor time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
