"""What the benchmarks of tables share: the tables, and a training of the recipe on one that is at hand as numbers."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from measure import commit, machine
from pyarrow import parquet
from rich.console import Console
from rich.table import Table as Shown
from sklearn.datasets import load_breast_cancer, load_wine

import lowerbound as lb
from lowerbound.data import ArraySource, Column, Data, Kind, Support, Table, View
from lowerbound.experiment import prepare

CPU = torch.device("cpu")
REAL: dict[str, Callable[[], Any]] = {"breast cancer": load_breast_cancer, "wine": load_wine}


def read(
    values: np.ndarray, labels: np.ndarray | None = None, kinds: Sequence[Kind | None] | None = None
) -> tuple[Table, torch.Tensor]:
    """Returns how a table of numbers, NaN where they are missing, is read, and its rows as x; labels come last."""
    kinds = list(kinds or [Kind.REAL] * values.shape[1])
    cells = {f"c{place}": pa.array(column, mask=np.isnan(column)) for place, column in enumerate(values.T)}
    if labels is not None:
        cells[f"c{len(kinds)}"], kinds = pa.array(labels.astype(str)), [*kinds, Kind.CATEGORICAL]
    known = tuple(Column(name, kind) for name, kind in zip(cells, kinds, strict=True) if kind is not None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        parquet.write_table(pa.table(cells), path)
        table = Table(known).fitted(path)
        return table, table.read(path).x


def train(table: Table, x: torch.Tensor, settings: dict[str, Any], seed: int) -> lb.VAE:
    """Trains the recipe on all rows."""
    source = ArraySource(x, support=Support.TABLE)
    data = Data("table", source, None, source, View(reading=table))
    run = prepare(lb.recipes.tabular, data, settings, {"seed": seed})
    lb.fit(run.vae, run.data, run.objective, run.training, device=CPU)
    return run.vae


def asked(title: str) -> argparse.Namespace:
    """Returns what the command line says: `json`, where to write the record, and `seeds`, how many."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, help="also write the record here")
    parser.add_argument("--seeds", type=int, default=5)
    return parser.parse_args()


def told(
    title: str,
    found: dict[str, dict[str, list[float]]],
    settings: Any,
    notes: list[str],
    options: argparse.Namespace,
) -> None:
    """Prints means and standard deviations over the seeds, and writes the record where `--json` says."""
    shown = Shown("", *next(iter(found.values())), title=title, title_justify="left")
    for name, row in found.items():
        shown.add_row(name, *(f"{np.mean(v):.3f} ± {np.std(v):.3f}" if v else "" for v in row.values()))
    console = Console()
    console.print(shown)
    for note in notes:
        console.print(f"* {note}", markup=False, highlight=False)
    if options.json:
        record = {"title": title, "found": found, "settings": settings, "notes": notes}
        options.json.write_text(json.dumps(record | {"commit": commit(), "machine": machine()}, indent=1) + "\n")
