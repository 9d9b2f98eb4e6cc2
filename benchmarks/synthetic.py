"""Made tables: a classifier learns from rows that a model made, and is tested on real ones.

A table is split in two, 70 to 30, five times, the classes alike. The model learns the 70, class included, and makes as
many rows. A random forest learns from those, or from the real 70, and both are tested on the real 30: balanced
accuracy, and F1 of the rarest class. `mixed` is a made table of 3,000 rows with numbers, counts, labels and a class of
1 in 100, on which a model that leaves it out has an F1 of 0; ours repeats rare classes in training (`--balance`).
The settings are near those of `imputation.py`, and were not chosen on any of these splits.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from tables import REAL, asked, read, told, train

import lowerbound as lb
from lowerbound.data import Kind

SETTINGS: dict[str, Any] = {"width": 64, "lr": 2e-3, "heavy_tails": False, "least_scale": 0.1}
UPDATES = 1500
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


def made(x: np.ndarray, y: np.ndarray, kinds: list[Kind | None], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns as many rows as there are, made by a model of them."""
    table, rows = read(x, y, kinds)
    epochs = max(1, UPDATES // -(-len(rows) // 64))
    vae = train(table, rows, {**SETTINGS, "balance": table.columns[-1].name, "epochs": epochs}, seed)
    drawn = lb.sample(vae, len(x), seed=seed, draw=True).double().numpy()
    cells = [c.decode(v) for c, v in zip(table.columns, drawn.T, strict=True)]
    return np.array(cells[:-1], dtype=float).T, np.array(cells[-1], dtype=int)


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
    names = ("real rows", "lowerbound, tabular")
    columns = [f"{data}: {what}" for data in tables() for what in ("balanced accuracy", "F1 of the rarest")]
    found: dict[str, dict[str, list[float]]] = {name: {column: [] for column in columns} for name in names}
    shares = []
    for data, (x, y, kinds) in tables().items():
        for seed in range(options.seeds):
            learn_x, test_x, learn_y, test_y = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
            rows = {names[0]: (learn_x, learn_y), names[1]: made(learn_x, learn_y, kinds, seed)}
            for name, (of_x, of_y) in rows.items():
                scores = judged(of_x, of_y, test_x, test_y, seed)
                for what, score in zip(("balanced accuracy", "F1 of the rarest"), scores, strict=True):
                    found[name][f"{data}: {what}"].append(float(score))
                    print(f"{data}, split {seed}, {name}, {what}: {score:.3f}", file=sys.stderr, flush=True)
            if data == "mixed":
                shares.append(float((rows[names[1]][1] == 1).mean()))
    notes = [
        f"Of the made rows of the mixed table {np.mean(shares):.1%} are of the class that is 1.0% of the real ones.",
        "TVAE of the package ctgan was not run.",
    ]
    title = "A forest that learned from made rows, on real ones; mean and deviation over the splits"
    told(title, found, {**SETTINGS, "updates": UPDATES}, notes, options)


if __name__ == "__main__":
    main()
