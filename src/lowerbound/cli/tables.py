"""`impute`, and `sample` for tables: rows as files of the kind that the model was trained on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from lowerbound.cli.options import Device, Json, Seed
from lowerbound.cli.show import job, print_json, print_note, stdout
from lowerbound.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from lowerbound.data import Column, Table
    from lowerbound.data.tables import Look, Sheet
    from lowerbound.imputation import Imputation
    from lowerbound.model import VAE

SUFFIXES = (".csv", ".tsv", ".parquet")


def impute(
    *runs: Path,
    data: Path,
    out: Path,
    samples: int = 1000,
    intervals: bool = False,
    interval: float = 0.9,
    multiple: int = 0,
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Fill what is missing in a table; all that is there stays as it is.

    A missing number becomes its mean given the row's other cells, a label the likeliest.

    Several runs, trained with other seeds or settings, fill in together, each with the same say.

    Example: lowerbound impute runs/table --data holes.csv --out filled.csv

    Parameters
    ----------
    runs
        The run folder of a model of tables, or several, of the same columns.
    data
        The table with holes, with the columns of the training table.
    out
        A .csv, .tsv or .parquet with the same columns and rows in the same order.
    samples
        Draws of z a row, of each run.
    intervals
        Add columns NAME_low and NAME_high for each number or date with holes: an
        interval that holds the missing cell with probability --interval.
    interval
        That probability.
    multiple
        Also write so many tables, drawn independently given what is there:
        OUT-1.csv, OUT-2.csv and so on; of several runs each by the next in turn.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out should end in {' or '.join(SUFFIXES)}; got {out}.")
    if multiple < 0:
        raise UsageError(f"--multiple is a number of tables from 0 on; got {multiple}.")
    vaes, table = _together(runs, device)
    look = table.look(data)
    for note in look.notes:
        print_note(f"Note: {note}.")
    files = [out, *(out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, multiple + 1))]
    ends = _ends(table, look) if intervals else []
    settings = {"num_samples": samples, "draws": multiple, "interval": interval}
    ess = _fill(vaes, table, data, look, files, ends, settings, seed)
    holes = sum(look.holes)
    if json:
        written = [str(path) for path in files]
        print_json({"out": str(out), "files": written, "n": look.rows, "filled": holes, "ess_median": ess})
    else:
        stdout.print(
            f"Filled {holes:,} cells in {look.rows:,} rows into {escape(', '.join(map(str, files)))}; the median "
            f"row has {ess:.0f} effective draws of {samples * len(vaes):,}.",
            soft_wrap=True,
        )


def _fill(
    vaes: list[VAE],
    table: Table,
    data: Path,
    look: Look,
    files: list[Path],
    ends: list[tuple[int, str, Column]],
    settings: dict[str, Any],
    seed: int,
) -> float:
    """Fills a file in, some rows at a time, and returns the median effective number of draws."""
    import torch

    from lowerbound.data import derive_seed
    from lowerbound.data.tables import written
    from lowerbound.imputation import impute as fill

    effective: list[Tensor] = []
    with ExitStack() as stack, job("filling in") as report:
        names = [*look.names, *(column.name for _, _, column in ends)]
        first, *others = [
            stack.enter_context(written(path, names if path == files[0] else look.names)) for path in files
        ]
        done = 0
        for number, sheet in enumerate(table.sheets(data)):
            found = fill(vaes, sheet.x, **settings, seed=derive_seed(seed, 9, number))
            sheet.add_to(first, found.x, [_end(sheet, found, *end) for end in ends])
            for out, rows in zip(others, found.draws, strict=True):
                sheet.add_to(out, rows)
            effective.append(found.ess)
            done += len(sheet.x)
            report(done, look.rows)
    return float(torch.cat(effective).median())


def _ends(table: Table, look: Look) -> list[tuple[int, str, Column]]:
    """Returns the columns that intervals need: the place of the column that they are of, which end, and what it is."""
    return [
        (place, name, replace(column, name=f"{column.name}_{name}"))
        for place, column in enumerate(table.columns)
        if look.holes[place] and not column.kind.has_levels
        for name in ("low", "high")
    ]


def _end(sheet: Sheet, found: Imputation, place: int, name: str, column: Column) -> tuple[Column, list[Any]]:
    """Returns an end of the intervals of a column, decoded, None where the cell was there."""
    end = found.low if name == "low" else found.high
    cells = end[:, place].double().masked_fill(~sheet.holes[:, place], float("nan"))
    return column, column.decode(cells.numpy())


def sample_rows(
    run: Path, out: Path, n: int, where: tuple[str, ...], seed: int, device: str, *, labelled: bool
) -> list[str]:
    """Writes generated rows, some of whose cells may be given; returns what the reader should know."""
    if labelled:
        raise UsageError("--label is of conditional models; for a table give --where COLUMN=VALUE.")
    from lowerbound import tasks
    from lowerbound.imputation import sample_given

    vae, table = _opened(run, device)
    notes = []
    if where:
        x, effective = sample_given(vae, given_row(table, where), n, seed=seed)
        if effective < n:
            notes.append(
                f"The rows with {', '.join(where)} come from {effective:.0f} effective draws of z: they are less "
                f"varied than {n:,} rows should be"
            )
    else:
        x = tasks.sample(vae, n, seed=seed, draw=True)
    table.write(x, out)
    return notes


def given_row(table: Table, where: tuple[str, ...]) -> Tensor:
    """Returns a row with the cells that `COLUMN=VALUE` say, `[D]`, NaN elsewhere.

    Raises:
        UsageError: There is no such column, or it cannot hold the value.
    """
    import numpy as np
    import pyarrow
    import torch

    from lowerbound.errors import did_you_mean

    row = torch.full((len(table.columns),), torch.nan)
    names = [column.name for column in table.columns]
    for text in where:
        # A name may have a = of its own.
        name = max((n for n in names if text.startswith(f"{n}=")), key=len, default=None)
        if name is None:
            near = did_you_mean(text.partition("=")[0], names)
            raise UsageError(f"--where takes COLUMN=VALUE; got {text!r}. {near}")
        place, value = names.index(name), text[len(name) + 1 :]
        column = table.columns[place]
        with np.errstate(over="ignore"):
            cell = column.encode(pyarrow.array([value]))[0].astype(np.float32)[0]
        if not np.isfinite(cell):
            known = f" ({', '.join(column.levels[:10])})" if column.levels else ""
            raise UsageError(f"The column {name!r} holds {column.kind.value}{known}, which {value!r} is not.")
        if not row[place].isnan():
            raise UsageError(f"--where gives a cell of each column at most; got {name!r} twice.")
        row[place] = float(cell)
    return row


def _together(runs: tuple[Path, ...], device: str) -> tuple[list[VAE], Table]:
    """Returns the models of runs, and how all of them read a table."""
    if not runs or len(set(runs)) < len(runs):
        raise UsageError(
            "impute takes one run folder, or several different ones; got "
            f"{' '.join(map(str, runs)) or 'none'}. Example: lowerbound impute runs/table --data holes.csv --out "
            "filled.csv"
        )
    from lowerbound.imputation import check_same_columns

    opened = {run: _opened(run, device) for run in runs}
    check_same_columns({str(run): vae for run, (vae, _) in opened.items()})
    return [vae for vae, _ in opened.values()], opened[runs[0]][1]


def _opened(run: Path, device: str) -> tuple[VAE, Table]:
    from lowerbound.checkpoint import RunFolder
    from lowerbound.data import Table
    from lowerbound.experiment import view_of
    from lowerbound.training import resolve_device

    saved = RunFolder(run).read()
    table = view_of(saved.record).reading
    if not isinstance(table, Table):
        raise UsageError(
            f"The model in {run} was not trained on a table, so it makes none. Train one: lowerbound train tabular."
        )
    return saved.vae.to(resolve_device(device)), table
