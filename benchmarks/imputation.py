"""Filling in: half of the cells of a table are taken away at random, and the error of what is put there instead.

The root mean squared error of the missing cells, each column standardised by its own mean and standard deviation (of
the whole table); 5 seeds by default, each with other holes. Every method sees the table with holes alone. Ours has two
sets of settings to choose from, found on holes of other seeds (100 and 101), and takes the one that is better at a
fifth of the cells that are there, held back from a first training. scikit-learn's `IterativeImputer` with random
forests is missForest (Stekhoven and Bühlmann, 2012) but for its stopping rule.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  it makes the next import work
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from tables import REAL, asked, read, told, train

import lowerbound as lb

SHARE = 0.5
# Large steps and nothing hidden, for a table whose columns nearly follow from each other; and the opposite.
CANDIDATES: tuple[dict[str, Any], ...] = (
    {"width": 128, "lr": 1e-2, "heavy_tails": False, "least_scale": 0.1, "hide": 0.0},
    {"width": 64, "lr": 2e-3, "heavy_tails": False, "least_scale": 0.2, "hide": 0.5},
)
# Of the cells that are there, so many are held back to choose by.
HELD_BACK = 0.2
UPDATES = 1500
# Models from different initial weights, whose means are averaged: less noise of the training, as forests average trees.
MODELS = 2
# Which candidate was chosen, in the order in which tables were filled.
CHOSEN: list[int] = []
OURS = "lowerbound, tabular"
_TREES, _ROUNDS = 50, 5


def trees(kind: type, **settings: object) -> Callable[[np.ndarray, int], np.ndarray]:
    """Returns columns filled by trees in turn."""

    def fill(holed: np.ndarray, seed: int) -> np.ndarray:
        each = kind(n_estimators=_TREES, random_state=seed, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it did not converge in so many rounds
            return IterativeImputer(each, max_iter=_ROUNDS, random_state=seed).fit_transform(holed)

    return fill


def ours(holed: np.ndarray, seed: int) -> np.ndarray:
    """Returns the table filled by models that were trained on it, with the settings that fill cells held back best."""
    back = (np.random.default_rng((seed, 1)).random(holed.shape) < HELD_BACK) & ~np.isnan(holed)
    errors = []
    for settings in CANDIDATES:
        away = (filled(np.where(back, np.nan, holed), settings, (seed,)) - holed)[back]
        errors.append(float(np.sqrt((away**2).mean())))
    chosen = int(np.argmin(errors))
    print(f"cells held back: {', '.join(f'{error:.3f}' for error in errors)}", file=sys.stderr, flush=True)
    CHOSEN.append(chosen)
    return filled(holed, CANDIDATES[chosen], tuple(MODELS * seed + member for member in range(MODELS)))


def filled(holed: np.ndarray, settings: dict[str, Any], seeds: tuple[int, ...]) -> np.ndarray:
    """Returns the table filled by the mean of models from different initial weights."""
    table, x = read(holed)
    epochs = UPDATES // -(-len(x) // 64)
    fills = [lb.impute(train(table, x, {**settings, "epochs": epochs}, seed), x, 1000).x for seed in seeds]
    mean = torch.stack(fills).mean(0).double().numpy()
    return np.stack([np.array(c.decode(v), dtype=float) for c, v in zip(table.columns, mean.T, strict=True)], 1)


METHODS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    OURS: ours,
    "mean": lambda holed, _: SimpleImputer().fit_transform(holed),
    "5 nearest neighbours": lambda holed, _: KNNImputer().fit_transform(holed),
    "iterated extra trees": trees(ExtraTreesRegressor),
    "iterated random forests": trees(RandomForestRegressor, max_features="sqrt"),
}


def holes(whole: np.ndarray, seed: int) -> np.ndarray:
    """Returns where cells are taken away."""
    return np.random.default_rng(seed).random(whole.shape) < SHARE


def main() -> None:
    torch.set_num_threads(1)
    options = asked(__doc__.splitlines()[0])
    found: dict[str, dict[str, list[float]]] = {name: {data: [] for data in REAL} for name in METHODS}
    spent = dict.fromkeys(METHODS, 0.0)
    for data, load in REAL.items():
        x = load().data
        whole = (x - x.mean(0)) / x.std(0)
        for seed in range(options.seeds):
            missing = holes(whole, seed)
            for name, fill in METHODS.items():
                began = time.process_time()
                away = (fill(np.where(missing, np.nan, whole), seed) - whole)[missing]
                spent[name] += time.process_time() - began
                found[name][data].append(float(np.sqrt((away**2).mean())))
                print(f"{data}, seed {seed}, {name}: {found[name][data][-1]:.4f}", file=sys.stderr, flush=True)
    times = ", ".join(f"{name} {seconds / options.seeds:.0f} s" for name, seconds in spent.items())
    title = "Root mean squared error of the missing half, mean and deviation over the seeds"
    chosen = ", ".join(
        f"{data} {CHOSEN[first : first + options.seeds].count(0)} of {options.seeds}"
        for data, first in zip(REAL, range(0, len(CHOSEN), options.seeds), strict=True)
    )
    notes = [
        f"Processor time of both tables, a seed: {times}.",
        f"How often ours chose its first settings by the cells held back: {chosen}.",
    ]
    told(title, found, {"ours": CANDIDATES, "updates": UPDATES, "models": MODELS}, notes, options)


if __name__ == "__main__":
    main()
