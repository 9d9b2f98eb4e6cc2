"""`sample`, `reconstruct`, `encode`, `interpolate`: what a trained model makes, as files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from lowerbound.cli import tables
from lowerbound.cli.show import print_json, print_note, stdout
from lowerbound.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from lowerbound.model import VAE


def sample(
    run: Path,
    /,
    *,
    out: Path,
    n: int = 64,
    label: int | None = None,
    where: tuple[str, ...] = (),
    seed: int = 0,
    draw: bool = False,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Generate examples: z from the prior, x from the decoder.

    Example: lowerbound sample runs/first --n 64 --out samples.png

    Parameters
    ----------
    run
        The run folder.
    out
        A .png grid, or .npz with the array x (and label, of a conditional model);
        of a model of tables, .csv, .tsv or .parquet.
    n
        How many.
    label
        Of a conditional model, the class to generate; by default as many of each as
        can be, a row of the grid for each class.
    where
        Of a model of tables, a cell that is given: COLUMN=VALUE. Draws of z are weighed
        by its probability, so what is very rare needs many.
    seed
        Seeds the draws.
    draw
        Draw x from p(x|z) instead of showing its mean; rows of a table always are.
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON document.
    """
    if _kind(out) in tables.SUFFIXES:
        for note in tables.sample_rows(run, out, n, where, seed, device, labelled=label is not None):
            print_note(f"Note: {note}.")
        _report(out, n, "samples", json)
        return
    _check_suffix(out, (".png", ".npz", *tables.SUFFIXES))
    if where:
        raise UsageError(f"--where gives cells of a table, so --out is .csv, .tsv or .parquet; got {out}.")
    from lowerbound import figures, tasks

    vae = _model(run, device)
    labels = tasks.labels_to_sample(vae, n, label)
    x = tasks.sample(vae, n, label=labels, seed=seed, draw=draw)
    if _kind(out) == ".png" and labels is not None and label is None:
        rows, columns = figures.in_rows([x[labels == k] for k in vae.classes[:n]])
        figures.save_grid(rows, out, columns)
    else:
        _write_pictures(out, {"x": x} if labels is None else {"x": x, "label": labels})
    _report(out, n, "samples", json)


def reconstruct(
    run: Path,
    /,
    *,
    out: Path,
    data: str | None = None,
    split: str = "test",
    n: int = 10,
    draw: bool = False,
    seed: int = 0,
    data_dir: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Encode examples and decode them again.

    Example: lowerbound reconstruct runs/first --out reconstructions.png

    Parameters
    ----------
    run
        The run folder.
    out
        A .png with the originals above their reconstructions, or .npz with the arrays x and reconstruction.
    data
        Another source than the run's own.
    split
        test, valid or train.
    n
        How many, from the first on.
    draw
        Draw z from q(z|x) and x from p(x|z) instead of taking their means.
    seed
        Seeds the draws.
    data_dir
        A folder in which named data sets are looked for first.
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON document.
    """
    _check_suffix(out, (".png", ".npz"))
    import torch

    from lowerbound import figures, tasks
    from lowerbound.cli.saved import open_saved
    from lowerbound.training import resolve_device

    if n < 1:
        raise UsageError(f"A reconstruction needs at least 1 example; got --n {n}.")
    saved = open_saved(run, data, data_dir)
    source = saved.data.split(split)
    vae = saved.vae.to(resolve_device(device))
    batch = source.examples(torch.arange(min(n, len(source))))
    x = batch.x
    made = tasks.reconstruct(vae.given(batch.label), x, seed=seed, draw=draw)
    if _kind(out) == ".png":
        rows = [part for pair in zip(x.split(20), made.split(20), strict=True) for part in pair]
        padded, columns = figures.in_rows(rows)
        figures.save_grid(padded, out, columns)
    else:
        _write_pictures(out, {"x": x, "reconstruction": made})
    _report(out, len(x), "reconstructions", json)


def encode(
    run: Path,
    /,
    *,
    out: Path,
    data: str | None = None,
    split: str = "test",
    draw: bool = False,
    seed: int = 0,
    data_dir: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Write the mean and standard deviation of q(z|x) for every example.

    Those of a ladder or of a flow have no closed form and are estimates from 64 fixed pairs of opposite draws.

    Example: lowerbound encode runs/first --out codes.npz

    Parameters
    ----------
    run
        The run folder.
    out
        A .npz with the arrays loc and scale (z, label), or .csv with a row an example.
    data
        Another source than the run's own.
    split
        test, valid or train; of a table also all, its rows in their own order.
    draw
        Add one draw z from q(z|x).
    seed
        Seeds the draws.
    data_dir
        A folder in which named data sets are looked for first.
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON document.
    """
    _check_suffix(out, (".npz", ".csv"))
    from lowerbound import tasks
    from lowerbound.cli.saved import open_saved
    from lowerbound.training import resolve_device

    saved = open_saved(run, data, data_dir)
    encoded = tasks.encode(saved.vae.to(resolve_device(device)), saved.split(split), seed=seed, draw=draw)
    if _kind(out) == ".csv":
        _write_table(out, encoded)
    else:
        _write_pictures(out, encoded)
    _report(out, len(encoded["loc"]), "codes", json)


def interpolate(
    run: Path,
    /,
    *,
    out: Path,
    from_: int = 0,
    to: int = 1,
    steps: int = 11,
    label: int | None = None,
    data: str | None = None,
    split: str = "test",
    data_dir: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Decode a straight line between the codes of two examples.

    Example: lowerbound interpolate runs/first --from 0 --to 7 --steps 11 --out line.png

    Parameters
    ----------
    run
        The run folder.
    out
        A .png strip, or .npz with the array x.
    from_
        The first example's place in the split.
    to
        The last example's place.
    steps
        Pictures, both ends included.
    label
        Of a conditional model, the class that the whole line is decoded as; by default
        that of the first example.
    data
        Another source than the run's own.
    split
        test, valid or train.
    data_dir
        A folder in which named data sets are looked for first.
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON document.
    """
    _check_suffix(out, (".png", ".npz"))
    import torch

    from lowerbound import figures, tasks
    from lowerbound.cli.saved import open_saved
    from lowerbound.training import resolve_device

    saved = open_saved(run, data, data_dir)
    source = saved.data.split(split)
    for name, place in (("--from", from_), ("--to", to)):
        if not 0 <= place < len(source):
            raise UsageError(
                f"{name} should be from 0 to {len(source) - 1:,}, a place in the {split} split; got {place}."
            )
    ends = source.examples(torch.tensor([from_, to]))
    vae = saved.vae.to(resolve_device(device))
    along = _along(vae, ends.label, label)
    made = tasks.interpolate(vae, ends.x[0], ends.x[1], steps, label=ends.label, along=along)
    if _kind(out) == ".png":
        figures.save_grid(made, out, columns=len(made))
    else:
        _write_pictures(out, {"x": made})
    _report(out, steps, "steps", json)


def _along(vae: VAE, ends: Tensor | None, asked: int | None) -> int | None:
    """Returns the class of a line whose ends may be of two: the one asked for, or that of the first."""
    if not vae.classes or ends is None or asked is not None or ends[0] == ends[1]:
        return asked
    first, last = int(ends[0]), int(ends[1])
    print_note(f"The examples are of classes {first} and {last}: all is decoded as {first}. --label gives another.")
    return first


def _model(run: Path, device: str) -> VAE:
    from lowerbound.checkpoint import load
    from lowerbound.training import resolve_device

    return load(run).to(resolve_device(device))


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _check_suffix(path: Path, known: tuple[str, ...]) -> None:
    # Before anything is loaded or computed.
    if _kind(path) not in known:
        raise UsageError(f"--out should end in {' or '.join(known)}; got {path}.")


def _write_pictures(path: Path, arrays: dict[str, Tensor]) -> None:
    from lowerbound import figures
    from lowerbound.checkpoint import write_file

    if _kind(path) == ".png":
        figures.save_grid(arrays["x"], path)
        return
    import numpy as np

    content = io.BytesIO()
    named: dict[str, Any] = {name: value.numpy() for name, value in arrays.items()}
    np.savez_compressed(content, **named)
    write_file(path, content.getvalue())


def _write_table(path: Path, encoded: dict[str, Tensor]) -> None:
    from lowerbound.checkpoint import write_file

    columns = ["row"]
    for name, value in encoded.items():
        width = value.flatten(1).shape[1] if value.ndim > 1 else 0
        columns += [f"{name}_{i}" for i in range(width)] or [name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    parts = [value.reshape(len(value), -1).tolist() for value in encoded.values()]
    writer.writerows([i, *(v for part in row for v in part)] for i, row in enumerate(zip(*parts, strict=True)))
    write_file(path, text.getvalue().encode())


def _report(path: Path, count: int, what: str, json: bool) -> None:
    if json:
        print_json({"out": str(path), "n": count})
    else:
        stdout.print(f"Wrote {count:,} {what} to {escape(str(path))}", soft_wrap=True)
