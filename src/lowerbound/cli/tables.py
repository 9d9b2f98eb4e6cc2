"""`impute`, and `sample` for tables: rows as files of the kind that the model was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from lowerbound.cli.show import print_json, print_note, stdout
from lowerbound.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from lowerbound.data import Column, Table
    from lowerbound.data.tables import Sheet
    from lowerbound.imputation import Imputation
    from lowerbound.model import VAE

SUFFIXES = (".csv", ".tsv", ".parquet")


def impute(
    run: Path,
    /,
    *,
    data: Path,
    out: Path,
    samples: int = 1000,
    intervals: bool = False,
    interval: float = 0.9,
    multiple: int = 0,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Fill what is missing in a table; all that is there stays as it is.

    A missing number becomes its mean given the row's other cells, a label the likeliest.

    Example: lowerbound impute runs/table --data holes.csv --out filled.csv

    Parameters
    ----------
    run
        The run folder of a model of tables.
    data
        The table with holes, with the columns of the training table.
    out
        A .csv, .tsv or .parquet with the same columns and rows in the same order.
    samples
        Draws of z a row.
    intervals
        Add columns NAME_low and NAME_high for each number or date with holes: an
        interval that holds the missing cell with probability --interval.
    interval
        That probability.
    multiple
        Also write so many tables, drawn independently given what is there:
        OUT-1.csv, OUT-2.csv and so on.
    seed
        Seeds the draws.
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON document.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out should end in {' or '.join(SUFFIXES)}; got {out}.")
    if multiple < 0:
        raise UsageError(f"--multiple is a number of tables from 0 on; got {multiple}.")
    from lowerbound.imputation import impute as fill

    vae, table = _opened(run, device)
    sheet = table.read(data)
    for note in sheet.notes:
        print_note(f"Note: {note}.")
    found = fill(vae, sheet.x, samples, draws=multiple, interval=interval, seed=seed)
    sheet.write(found.x, out, _ends(sheet, found) if intervals else ())
    files = [out]
    for number, rows in enumerate(found.draws, 1):
        files.append(out.with_name(f"{out.stem}-{number}{out.suffix}"))
        sheet.write(rows, files[-1])
    holes, ess = int(sheet.holes.sum()), float(found.ess.median())
    if json:
        written = [str(path) for path in files]
        print_json({"out": str(out), "files": written, "n": len(sheet.x), "filled": holes, "ess_median": ess})
    else:
        stdout.print(
            f"Filled {holes:,} cells in {len(sheet.x):,} rows into {escape(', '.join(map(str, files)))}; the median "
            f"row has {ess:.0f} effective draws of {samples:,}.",
            soft_wrap=True,
        )


def _ends(sheet: Sheet, found: Imputation) -> list[tuple[Column, list[Any]]]:
    """Returns the ends of the intervals as decoded columns, None where the cell was there."""
    columns = []
    holes = sheet.holes
    for place, column in enumerate(sheet.columns):
        if column.kind.has_levels or not holes[:, place].any():
            continue
        for name, end in (("low", found.low), ("high", found.high)):
            cells = end[:, place].double().masked_fill(~holes[:, place], float("nan"))
            columns.append((replace(column, name=f"{column.name}_{name}"), column.decode(cells.numpy())))
    return columns


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
    import pyarrow
    import torch

    from lowerbound.errors import did_you_mean

    row = torch.full((len(table.columns),), torch.nan)
    names = [column.name for column in table.columns]
    for text in where:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise UsageError(f"--where takes COLUMN=VALUE; got {text!r}. {did_you_mean(name, names)}")
        column = table.columns[names.index(name)]
        cell = float(column.encode(pyarrow.array([value]))[0][0])
        if cell != cell:
            known = f" ({', '.join(column.levels[:10])})" if column.levels else ""
            raise UsageError(f"The column {name!r} holds {column.kind.value}{known}, which {value!r} is not.")
        row[names.index(name)] = cell
    return row


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
