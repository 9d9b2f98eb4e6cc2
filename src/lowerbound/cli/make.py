"""`sample`, `reconstruct`, `encode`, `interpolate`: what a trained model makes, as files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from lowerbound.cli import tables
from lowerbound.cli.blocks import write_blocks
from lowerbound.cli.options import Data, DataDir, Device, Json, Run, Seed, Split
from lowerbound.cli.show import job, print_json, print_note, stdout, visible
from lowerbound.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from lowerbound.data import Reading
    from lowerbound.model import VAE

_PICTURES = (".png", ".npz", ".txt")
# Lines of text that are printed besides being written.
_SHOWN = 10


def sample(
    run: Run,
    /,
    *,
    out: Path,
    n: int = 64,
    label: int | None = None,
    where: tuple[str, ...] = (),
    seed: Seed = 0,
    draw: Annotated[bool | None, Parameter(negative="--no-draw")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Generate examples: z from the prior, x from the decoder.

    Example: lowerbound sample runs/first --n 64 --out samples.png

    Parameters
    ----------
    out
        A .png grid, or .npz with the array x (and label, of a conditional model); of text,
        a .txt with a line each; of a model of tables, .csv, .tsv or .parquet.
    n
        How many.
    label
        Of a conditional model, the class to generate; by default as many of each as
        can be, a row of the grid with its name for each class.
    where
        Of a model of tables, a cell that is given: COLUMN=VALUE. Draws of z are weighed
        by its probability, so what is very rare needs many.
    draw
        Draw x from p(x|z) instead of showing its mean; text is drawn unless told
        otherwise (--no-draw), rows of a table always are.
    """
    if _kind(out) in tables.SUFFIXES:
        if draw is False:
            raise _rows_are_drawn()
        for note in tables.sample_rows(run, out, n, where, seed, device, labelled=label is not None):
            print_note(f"Note: {note}.")
        _report(out, n, "samples", json)
        return
    _check_suffix(out, (*_PICTURES, *tables.SUFFIXES))
    if where:
        raise UsageError(f"--where gives cells of a table, so --out is .csv, .tsv or .parquet; got {out}.")
    from lowerbound import figures, tasks

    vae, reading = _model(run, device)
    labels = tasks.labels_to_sample(vae, n, label)
    x = tasks.sample(vae, n, label=labels, seed=seed, draw=_is_drawn(vae, draw))
    if _kind(out) == ".png" and labels is not None and label is None:
        classes = vae.classes[:n]
        rows, columns = figures.in_rows([x[labels == k] for k in classes])
        names = [str(k) if reading is None else reading.class_name(k) for k in classes]
        figures.save_grid(rows, out, columns, names)
    else:
        _write_examples(out, {"x": x} if labels is None else {"x": x, "label": labels}, reading)
    _report(out, n, "samples", json, reading, x)


def reconstruct(
    run: Run,
    /,
    *,
    out: Path,
    data: Data = None,
    split: Split = None,
    n: int = 10,
    draw: bool = False,
    seed: Seed = 0,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Encode examples and decode them again.

    Example: lowerbound reconstruct runs/first --out reconstructions.png

    Parameters
    ----------
    out
        A .png with the originals above their reconstructions, or .npz with the arrays x
        and reconstruction; of text, a .txt with the two of each in turn.
    n
        How many, from the first on.
    draw
        Draw z from q(z|x) and x from p(x|z) instead of taking their means.
    """
    _check_suffix(out, _PICTURES)
    import torch

    from lowerbound import figures, tasks
    from lowerbound.cli.saved import open_saved
    from lowerbound.training import resolve_device

    if n < 1:
        raise UsageError(f"A reconstruction needs at least 1 example; got --n {n}.")
    saved = open_saved(run, data, data_dir)
    source = saved.split(split)
    vae = saved.vae.to(resolve_device(device))
    batch = source.examples(torch.arange(min(n, len(source))))
    x = batch.x
    made = tasks.reconstruct(vae.given(batch.label), x, seed=seed, draw=draw)
    if _kind(out) == ".png":
        rows = [part for pair in zip(x.split(20), made.split(20), strict=True) for part in pair]
        padded, columns = figures.in_rows(rows)
        figures.save_grid(padded, out, columns)
    else:
        _write_examples(out, {"x": x, "reconstruction": made}, saved.view.reading)
    _report(out, len(x), "reconstructions", json, saved.view.reading, x, made)


def encode(
    run: Run,
    /,
    *,
    out: Path,
    data: Data = None,
    split: Split = None,
    draw: bool = False,
    seed: Seed = 0,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write the mean and standard deviation of q(z|x) for every example.

    Those of a ladder or of a flow have no closed form and are estimates from 64 fixed pairs of opposite draws.

    Example: lowerbound encode runs/first --out codes.npz

    Parameters
    ----------
    out
        A .npz with the arrays loc and scale (z, label), or .csv with a row an example.
    draw
        Add one draw z from q(z|x).
    """
    _check_suffix(out, (".npz", ".csv"))
    from lowerbound import tasks
    from lowerbound.cli.saved import open_saved
    from lowerbound.training import resolve_device

    saved = open_saved(run, data, data_dir)
    source = saved.split(split)
    with job("encoding") as report:
        blocks = tasks.encoded(saved.vae.to(resolve_device(device)), source, seed=seed, draw=draw)
        told = _told(blocks, len(source), report)
        write_blocks(out, _columns(told) if _kind(out) == ".csv" else told)
    _report(out, len(source), "codes", json)


def _told(
    blocks: Iterator[dict[str, Tensor]], total: int, report: Callable[[int, int], None]
) -> Iterator[dict[str, Tensor]]:
    """Passes blocks on, and tells how many examples have been."""
    done = 0
    for block in blocks:
        yield block
        done += len(next(iter(block.values())))
        report(done, total)


def _columns(blocks: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yields blocks of arrays as blocks of columns, behind the number of the row: `loc`, `[n, 2]`, as loc_0, loc_1."""
    import torch

    start = 0
    for block in blocks:
        count = len(next(iter(block.values())))
        columns = {"row": torch.arange(start, start + count)}
        for name, value in block.items():
            flat = value.flatten(1) if value.ndim > 1 else value[:, None]
            names = [f"{name}_{i}" for i in range(flat.shape[1])] if value.ndim > 1 else [name]
            columns |= dict(zip(names, flat.unbind(1), strict=True))
        yield columns
        start += count


def interpolate(
    run: Run,
    /,
    *,
    out: Path,
    from_: int = 0,
    to: int = 1,
    steps: int = 11,
    label: int | None = None,
    data: Data = None,
    split: Split = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Decode a straight line between the codes of two examples.

    Example: lowerbound interpolate runs/first --from 0 --to 7 --steps 11 --out line.png

    Parameters
    ----------
    out
        A .png strip, or .npz with the array x; of text, a .txt with a line each.
    from_
        The first example's place in the split.
    to
        The last example's place.
    steps
        Pictures, both ends included.
    label
        Of a conditional model, the class that the whole line is decoded as; by default
        that of the first example.
    """
    _check_suffix(out, _PICTURES)
    import torch

    from lowerbound import figures, tasks
    from lowerbound.cli.saved import open_saved
    from lowerbound.training import resolve_device

    saved = open_saved(run, data, data_dir)
    source = saved.split(split)
    for name, place in (("--from", from_), ("--to", to)):
        if not 0 <= place < len(source):
            raise UsageError(
                f"{name} should be from 0 to {len(source) - 1:,}, a place in the split {saved.named(split)}; got "
                f"{place}."
            )
    ends = source.examples(torch.tensor([from_, to]))
    vae = saved.vae.to(resolve_device(device))
    along = _along(vae, ends.label, label)
    made = tasks.interpolate(vae, ends.x[0], ends.x[1], steps, label=ends.label, along=along)
    if _kind(out) == ".png":
        figures.save_grid(made, out, columns=len(made))
    else:
        _write_examples(out, {"x": made}, saved.view.reading)
    _report(out, steps, "steps", json, saved.view.reading, made)


def _along(vae: VAE, ends: Tensor | None, asked: int | None) -> int | None:
    """Returns the class of a line whose ends may be of two: the one asked for, or that of the first."""
    if not vae.classes or ends is None or asked is not None or ends[0] == ends[1]:
        return asked
    first, last = int(ends[0]), int(ends[1])
    print_note(f"The examples are of classes {first} and {last}: all is decoded as {first}. --label gives another.")
    return first


def _model(run: Path, device: str) -> tuple[VAE, Reading | None]:
    """Returns a run's model, and how the file was read that it learned from."""
    from lowerbound.checkpoint import RunFolder
    from lowerbound.experiment import view_of
    from lowerbound.training import resolve_device

    saved = RunFolder(run).read()
    return saved.vae.to(resolve_device(device)), view_of(saved.record).reading


def _rows_are_drawn() -> UsageError:
    return UsageError("Rows of a table are drawn, for their means are no rows; leave --no-draw out.")


def _is_drawn(vae: VAE, asked: bool | None) -> bool:
    """Whether samples are drawn from p(x|z): where its mean is no sample of anything, unless told otherwise.

    Raises:
        UsageError: It is told otherwise of a table.
    """
    from lowerbound.data import Support

    if Support.TABLE in vae.likelihood.exact:
        if asked is False:
            raise _rows_are_drawn()
        return True
    return Support.TOKENS in vae.likelihood.exact if asked is None else asked


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _check_suffix(path: Path, known: tuple[str, ...]) -> None:
    # Before anything is loaded or computed.
    if _kind(path) not in known:
        raise UsageError(f"--out should end in {' or '.join(known)}; got {path}.")


def _write_examples(path: Path, arrays: dict[str, Tensor], reading: Reading | None) -> None:
    """Writes examples in the way that the suffix says: of several arrays, an example of each in turn."""
    if _kind(path) == ".npz":
        _write_arrays(path, arrays)
    elif _kind(path) == ".png":
        from lowerbound import figures

        figures.save_grid(arrays["x"], path)
    elif reading is None or _kind(path) not in reading.exports:
        raise UsageError(
            f"The model of this run does not make what is written as {_kind(path)}; use --out FILE.npz, which holds "
            "any x."
        )
    else:
        import torch

        from lowerbound.errors import disk_errors

        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            x = [array for name, array in arrays.items() if name != "label"]
            # Whole or not at all; the suffix stays, because it says what is to be written.
            temporary = path.with_name(f".{os.getpid()}.{path.name}")
            reading.write(torch.stack(x, 1).flatten(0, 1), temporary)
            temporary.replace(path)


def _write_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    import numpy as np

    from lowerbound.checkpoint import writing

    named: dict[str, Any] = {name: value.numpy() for name, value in arrays.items()}
    with writing(path) as file:
        np.savez_compressed(file, **named)


def _report(path: Path, count: int, what: str, json: bool, reading: Reading | None = None, *examples: Tensor) -> None:
    if json:
        print_json({"out": str(path), "n": count})
        return
    if reading is not None:
        for line in zip(*(reading.lines(x[:_SHOWN]) for x in examples), strict=True):
            stdout.print(escape("  " + visible(" → ".join(line))), soft_wrap=True)
    stdout.print(f"Wrote {count:,} {what} to {escape(visible(str(path)))}", soft_wrap=True)
