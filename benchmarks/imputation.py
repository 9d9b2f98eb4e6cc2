"""Filling in: half of the cells of a table are taken away at random, and the error of what is put there instead.

The root mean squared error of the missing cells, each column standardised by its own mean and standard deviation (of
the whole table); 5 seeds, each with other holes. Every method sees the table with holes alone. The settings of ours
were chosen on holes of other seeds, from 100 on. scikit-learn's `IterativeImputer` with random forests is missForest
(Stekhoven and Bühlmann, 2012) but for its stopping rule.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  it makes the next import work
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from tables import REAL, read, told, train

import lowerbound as lb

SEEDS = range(5)
SHARE = 0.5
SETTINGS = {"width": 64, "lr": 2e-3, "heavy_tails": False, "least_scale": 0.1}
UPDATES = 1500
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
    """Returns the table filled by a model that was trained on it."""
    table, x = read(holed)
    epochs = UPDATES // -(-len(x) // 64)
    filled = lb.impute(train(table, x, {**SETTINGS, "epochs": epochs}, seed), x, 1000).x.double().numpy()
    return np.stack([np.array(c.decode(v), dtype=float) for c, v in zip(table.columns, filled.T, strict=True)], 1)


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
    found: dict[str, dict[str, list[float]]] = {name: {data: [] for data in REAL} for name in METHODS}
    spent = dict.fromkeys(METHODS, 0.0)
    for data, load in REAL.items():
        x = load().data
        whole = (x - x.mean(0)) / x.std(0)
        for seed in SEEDS:
            missing = holes(whole, seed)
            for name, fill in METHODS.items():
                began = time.process_time()
                away = (fill(np.where(missing, np.nan, whole), seed) - whole)[missing]
                spent[name] += time.process_time() - began
                found[name][data].append(float(np.sqrt((away**2).mean())))
    times = ", ".join(f"{name} {seconds / len(SEEDS):.0f} s" for name, seconds in spent.items())
    title = "Root mean squared error of the missing half, mean and deviation over 5 seeds"
    told(title, found, {**SETTINGS, "updates": UPDATES}, [f"Processor time for both tables: {times}."])


if __name__ == "__main__":
    main()
