"""Novelty: a model of nine digits is shown the tenth, and one of digits clothes, and the other way round.

For each digit, a small model is trained on 12,000 training examples of the other nine, and every score ranks test
examples: 1,000 of the digit left out (fewer where there are fewer) and 2,000 of the others. Told is the AUROC: the
probability that a new example has a higher score than one of a known kind. Fashion-MNIST joins in where it is at hand,
with 1,500 of each. The regret takes a search for every example, so it is measured on 200 of each kind.

The baselines see the grey values; the model sees them binarised. Their settings (1, 5 or 10 neighbours; 16, 32, 64 or
128 components) and our score were chosen on validation examples, the baselines' with the digits 1, 4, 5, 7, 8 and 9
left out in turn, ours with each of the ten, with clothes left out, on Fashion-MNIST both ways, and with convolutional
models besides (`docs/score.md`); nothing was chosen on a test example.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import commit, machine
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import lowerbound as lb
from lowerbound.data import ArraySource, Data, View, generator
from lowerbound.evidence import Refinement
from lowerbound.experiment import prepare
from lowerbound.scoring import reference_of

CPU = torch.device("cpu")
TRAIN, NEW, KNOWN, EACH, REGRET = 12_000, 1000, 2000, 1500, 200
SETTINGS: dict[str, Any] = {"width": 512, "epochs": 12}
DRAWS = 20
SEARCH = Refinement(steps=40, draws=8)
NEIGHBOURS, COMPONENTS, TREES = 1, 16, 200
CHOSEN = "lowerbound, anomaly"
# Nats a byte.
BYTE = 8 * math.log(2)


@dataclass(frozen=True)
class Setting:
    """What is known, and what may be new.

    Attributes:
        name: What it is called.
        train: Examples of the known kinds.
        test: Examples of all kinds.
        new: Which of them are of a new kind, bool `[N]`.
    """

    name: str
    train: ArraySource
    test: ArraySource
    new: np.ndarray


def setting(name: str, train: ArraySource, known: ArraySource, new: ArraySource) -> Setting:
    """Puts a setting together."""
    test = known.joined(new)
    assert isinstance(test, ArraySource)
    return Setting(name, train, test, np.arange(len(test)) >= len(known))


def some(source: ArraySource, where: torch.Tensor, count: int) -> ArraySource:
    """Returns some of the examples for which `where` holds, picked by a fixed seed."""
    places = where.nonzero()[:, 0]
    return source.take(places[torch.randperm(len(places), generator=generator(5))[:count]])


def settings(digits: list[int], data_dir: Path | None, left_out: list[str]) -> Iterator[Setting]:
    """Yields the settings, each digit left out and then the two data sets."""
    train, test = parts("mnist", data_dir)
    for digit in digits:
        new, seen = test.labels == digit, train.labels != digit
        yield setting(f"{digit}", some(train, seen, TRAIN), some(test, ~new, KNOWN), some(test, new, NEW))
    try:
        clothes, more = parts("fashion-mnist", data_dir)
    except lb.LowerboundError as error:
        left_out.append(f"Fashion-MNIST is left out: {error}")
        return

    def every(source: ArraySource, count: int) -> ArraySource:
        return some(source, torch.ones(len(source), dtype=torch.bool), count)

    yield setting("MNIST / Fashion", every(train, TRAIN), every(test, EACH), every(more, EACH))
    yield setting("Fashion / MNIST", every(clothes, TRAIN), every(more, EACH), every(test, EACH))


def parts(name: str, data_dir: Path | None) -> tuple[ArraySource, ArraySource]:
    """Returns the training and test examples of a named data set; its validation examples stay out of both."""
    data = lb.open_data(name, data_dir=data_dir)
    assert isinstance(data.train, ArraySource)
    assert isinstance(data.test, ArraySource)
    return data.train, data.test


def ours(one: Setting) -> dict[str, np.ndarray]:
    """Trains a model and returns its scores, higher is stranger; NaN where one was not measured."""
    run = prepare(lb.recipes.mlp, Data(one.name, one.train, None, one.test, View()), SETTINGS)
    lb.fit(run.vae, run.data, run.objective, run.training, device=CPU)
    reference = reference_of(run.vae, run.data.train, num_samples=DRAWS)
    found = lb.score(run.vae, run.data.test, reference)
    rows = np.concatenate([np.flatnonzero(one.new == kind)[:REGRET] for kind in (False, True)])
    regret = np.full(len(one.new), np.nan)
    searched = lb.score(run.vae, run.data.test.take(torch.from_numpy(rows)), reference, regret=SEARCH)
    assert searched.regret is not None
    regret[rows] = searched.regret.numpy()
    log_px = found.log_px.numpy()
    return {
        CHOSEN: found.anomaly.numpy(),
        "lowerbound, regret": regret,
        "lowerbound, typicality": found.typicality.numpy(),
        "lowerbound, distortion": found.distortion.numpy(),
        "lowerbound, -elbo": -found.elbo.numpy(),
        "lowerbound, -log_px": -log_px,
        "lowerbound, -log_px less complexity": -log_px - BYTE * complexity(one),
    }


def baselines(one: Setting) -> dict[str, np.ndarray]:
    """Returns the scores of the methods that know no model."""
    train, test = (source.values.flatten(1).numpy() / np.float32(255) for source in (one.train, one.test))
    near = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(train)
    pca = PCA(COMPONENTS, random_state=0).fit(train)
    forest = IsolationForest(n_estimators=TREES, random_state=0).fit(train)
    return {
        "nearest neighbour, pixels": near.kneighbors(test)[0].mean(1),
        f"PCA, {COMPONENTS} components": np.square(test - pca.inverse_transform(pca.transform(test))).sum(1),
        f"isolation forest, {TREES} trees": -forest.score_samples(test),
        "PNG bytes alone": complexity(one),
    }


def complexity(one: Setting) -> np.ndarray:
    """Returns the bytes that each test picture takes as a PNG file, black and white as the model sees it."""
    return np.array([_bytes(picture) for picture in one.test.values[:, 0].numpy()], dtype=float)


def _bytes(picture: np.ndarray) -> int:
    file = io.BytesIO()
    Image.fromarray(np.where(picture >= 128, 255, 0).astype(np.uint8)).convert("1").save(file, "PNG", optimize=True)
    return file.tell()


def auroc(score: np.ndarray, new: np.ndarray) -> float:
    """Returns the probability that a new example has the higher score, over those that have one."""
    there = np.isfinite(score)
    return float(roc_auc_score(new[there], score[there]))


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--digits", type=int, nargs="*", default=list(range(10)))
    parser.add_argument("--data-dir", type=Path, help="a folder with mnist/ and fashion-mnist/")
    parser.add_argument("--json", type=Path, help="also write the record here")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    began = time.process_time()
    for one in settings(options.digits, options.data_dir, notes):
        for name, score in (baselines(one) | ours(one)).items():
            found.setdefault(name, {})[one.name] = auroc(score, one.new)
        seconds = time.process_time() - began
        print(f"{one.name}: {found[CHOSEN][one.name]:.3f} after {seconds:.0f} s", file=sys.stderr, flush=True)
    notes.append(f"Processor time: {time.process_time() - began:.0f} s.")
    digits = [str(digit) for digit in options.digits]
    means = {name: float(np.mean([row[digit] for digit in digits])) for name, row in found.items() if digits}
    columns = list(next(iter(found.values())))
    table = Table("", "mean of digits", *columns, title="AUROC", title_justify="left")
    for name in sorted(found, key=lambda name: -means.get(name, 0)):
        table.add_row(name, f"{means.get(name, math.nan):.3f}", *(f"{found[name][c]:.3f}" for c in columns))
    console = Console(width=160)
    console.print(table)
    for note in notes:
        console.print(f"* {note}", markup=False, highlight=False)
    if options.json:
        sizes = {"train": TRAIN, "new": NEW, "known": KNOWN, "each": EACH, "regret": REGRET, "draws": DRAWS}
        chosen = {"recipe": SETTINGS, "neighbours": NEIGHBOURS, "components": COMPONENTS, "trees": TREES}
        record = {"auroc": found, "mean_of_digits": means, "sizes": sizes, "settings": chosen, "notes": notes}
        record |= {"commit": commit(), "machine": machine()}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
