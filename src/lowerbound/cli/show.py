"""What people see: errors, tables, progress. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from lowerbound.evaluation import Comparison, Evaluation
    from lowerbound.experiment import Update

_QUIET_SECONDS = 10.0
_REFRESH_SECONDS = 0.1

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def print_error(message: str) -> None:
    """Prints one paragraph to stderr."""
    stderr.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=not stderr.is_terminal)


def print_note(message: str) -> None:
    """Prints a remark to stderr."""
    stderr.print(escape(message), soft_wrap=not stderr.is_terminal)


def print_json(document: Any) -> None:
    """Prints one JSON document to stdout."""
    print(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False))


class TrainingProgress:
    """A progress bar on a terminal; elsewhere one line now and then.

    The numbers are of the last log point, so that nothing is computed or waited for to draw them.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._said = self._drawn = time.monotonic()
        self._numbers = ""

    def __enter__(self) -> TrainingProgress:
        if stderr.is_terminal and not self._quiet:
            columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=stderr, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, update: Update) -> None:
        """Shows where the training is."""
        if update.logged is not None:
            self._numbers = format_line(update.logged)
        if self._quiet:
            return
        now = time.monotonic()
        step = update.step
        if self._bar is not None:
            if now - self._drawn >= _REFRESH_SECONDS:
                self._drawn = now
                self._bar.update(
                    self._task, completed=step.progress, description=f"epoch {step.epoch}  {self._numbers}"
                )
        elif now - self._said >= _QUIET_SECONDS:
            self._said = now
            print(f"{step.progress:4.0%}  epoch {step.epoch}  {self._numbers}", file=sys.stderr, flush=True)


def format_line(line: dict[str, Any]) -> str:
    """Formats a line of metrics for a progress bar.

    Example:
        >>> format_line({"loss": 101.25, "distortion": 80.0, "rate": 21.25, "elbo": -101.25})
        'elbo -101.25  distortion 80.00  rate 21.25'
    """
    shown = ("elbo", "distortion", "rate", "valid_elbo")
    numbers = [f"{name.replace('valid_', 'valid ')} {line[name]:.2f}" for name in shown if name in line]
    return "  ".join(numbers)


def print_evaluation(title: str, result: Evaluation) -> None:
    """Prints the table of an evaluation, with its notes in words beneath."""
    table = Table(title=escape(title), title_justify="left", show_header=True, header_style="bold")
    table.add_column("")
    table.add_column(f"nats per {'example' if result.is_likelihood else 'example (no likelihood, see below)'}")
    table.add_column("what it is")
    table.add_row(
        "-ELBO", _number(result.elbo, result.elbo_stderr, -1), "distortion + rate, an upper bound on -log p(x)"
    )
    table.add_row("distortion", _number(result.distortion, result.distortion_stderr), "-E log p(x|z) under q(z|x)")
    table.add_row("rate", _number(result.rate, result.rate_stderr), "KL(q(z|x) || p(z))")
    table.add_row(
        "-log p(x)",
        _number(result.log_px, result.log_px_stderr, -1),
        f"importance-weighted with {result.num_samples:,} draws an example",
    )
    table.add_row("posterior gap", _number(result.posterior_gap), "log p(x) - ELBO, at most KL(q(z|x) || p(z|x))")
    if result.bits_per_dim is not None:
        table.add_row("bits/dim", f"{result.bits_per_dim:.4f}", "-log p(x) per dimension of x")
    stdout.print(table)
    spread = "" if result.ess_median is None else f" Effective draws (median): {result.ess_median:.1f}."
    stdout.print(
        f"{result.n:,} examples; {result.likelihood} likelihood; {result.active_units} of {result.latent_dim} latent "
        f"components active.{spread} An error is one standard error over the examples."
    )
    for note in result.notes:
        stdout.print(f"Note: {escape(note)}.")


def print_comparison(title: str, result: Comparison) -> None:
    """Prints several models side by side, and how each differs from the first."""
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for column in ("run", "-ELBO", "-log p(x)", "log p(x) above the first", "ELBO above the first", "active"):
        table.add_column(column)
    rows = zip(
        result.names,
        result.evaluations,
        zip(result.log_px_difference, result.log_px_difference_stderr, strict=True),
        zip(result.elbo_difference, result.elbo_difference_stderr, strict=True),
        strict=True,
    )
    for place, (name, one, log_px, elbo) in enumerate(rows):
        table.add_row(
            escape(name),
            _number(one.elbo, one.elbo_stderr, -1),
            _number(one.log_px, one.log_px_stderr, -1),
            _number(*log_px) if place else "",
            _number(*elbo) if place else "",
            f"{one.active_units} of {one.latent_dim}",
        )
    stdout.print(table)
    stdout.print(
        f"Nats per example, {result.evaluations[0].num_samples:,} draws an example. A difference is taken example by "
        "example; its error is one standard error of those differences."
    )
    for name, one in zip(result.names, result.evaluations, strict=True):
        for note in one.notes:
            stdout.print(f"{escape(name)}: {escape(note)}.")


def _number(value: float | None, stderr: float | None = None, sign: int = 1) -> str:
    if value is None:
        return "none"
    return f"{sign * value:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")
