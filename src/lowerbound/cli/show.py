"""What people see: errors, tables, progress. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from lowerbound.evaluation import Comparison, Evaluation
    from lowerbound.experiment import Update

_QUIET_SECONDS = 10.0
_REFRESH_SECONDS = 0.1
# Components of z whose rates are printed, and differences side by side: what fits in 80 columns.
_COMPONENTS = 10
_DIFFERENCES = 3

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


# Names and cells are of files, and the terminal obeys what is no letter in them.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {9: "\\t", 10: "\\n", 13: "\\r"}


def visible(text: str) -> str:
    r"""Returns text without line breaks and control characters, which are written out.

    Example:
        >>> print(visible("one\ntwo \x1b[31m"))
        one\ntwo \x1b[31m
    """
    return text.translate(_CONTROLS)


def print_error(message: str) -> None:
    """Prints one paragraph to stderr."""
    stderr.print(f"[bold red]Error:[/] {escape(visible(message))}", soft_wrap=not stderr.is_terminal)


def print_note(message: str) -> None:
    """Prints a remark to stderr."""
    stderr.print(escape(visible(message)), soft_wrap=not stderr.is_terminal)


def print_json(document: Any) -> None:
    """Prints one JSON document to stdout."""
    print(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False))


@contextmanager
def job(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how far a job is, on a terminal as a bar, elsewhere in a line now and then; yields what to tell it to."""
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        # Nothing is shown of what takes no time.
        task = bar.add_task(what, total=None, visible=False)
        said = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total, visible=True)
            now = time.monotonic()
            if not stderr.is_terminal and now - said >= _QUIET_SECONDS:
                said = now
                print(f"{done / max(1, total):4.0%}  {what}", file=sys.stderr, flush=True)

        yield report


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
    stdout.print(f"[bold]{escape(title)}[/]")
    trained = "" if result.objective is None else f", trained with {result.objective}"
    measure = "nats per example" if result.is_likelihood else "nats per example, but of no likelihood (see below)"
    stdout.print(f"{result.n:,} examples, {result.likelihood} likelihood{trained}; {measure}")
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, rows in _sections(result).items():
        if rows:
            table.add_row(f"[bold]{name}[/]")
            for row in rows:
                table.add_row(*row)
            table.add_section()
    stdout.print(table)
    if result.rate_per_dimension is not None:
        stdout.print(_rates(result))
    stdout.print("An error is one standard error over the examples, unless it says that it is over the draws.")
    for note in result.notes:
        stdout.print(f"Note: {escape(note)}.")


def _sections(result: Evaluation) -> dict[str, list[tuple[str, str, str]]]:
    """The rows of the table, grouped: a name, a number and what it is."""
    c = _Given(result.conditional)
    spent = _number(result.distortion, result.distortion_stderr)
    distortion = ("distortion", spent, f"-E log {c('p', 'x', 'z')} under {c('q', 'z', 'x')}")
    if result.elbo is None:
        return {"bound": [distortion], "latent space": _latent_rows(result), "factors": _factor_rows(result)}
    return {
        "bound": [
            ("-ELBO", _number(result.elbo, result.elbo_stderr, -1), f"distortion + rate; at least -log {c('p', 'x')}"),
            distortion,
            ("rate", _number(result.rate, result.rate_stderr), f"KL({c('q', 'z', 'x')} || {c('p', 'z')})"),
        ],
        "evidence": _evidence_rows(result),
        "posterior gap": _gap_rows(result),
        "latent space": _latent_rows(result),
        "factors": _factor_rows(result),
    }


class _Given:
    """Writes densities, with the class c among what is given if a model is conditional."""

    def __init__(self, conditional: bool) -> None:
        self._told = ("c",) if conditional else ()

    def __call__(self, density: str, of: str, *given: str) -> str:
        told = ",".join((*given, *self._told))
        return f"{density}({of}{'|' if told else ''}{told})"


def _evidence_rows(result: Evaluation) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    log_px = f"-log {_Given(result.conditional)('p', 'x')}"
    for point in reversed(result.sweep or ()):
        draws = _draws(point.num_samples)
        name, what = ("", f"with {draws}") if rows else (log_px, f"with {draws} an example")
        rows.append((name, _number(point.log_px, point.log_px_stderr, -1), what))
    if result.num_codes is not None:
        what = f"with {_draws(result.num_samples)} of the codes and the prior"
        rows.append((log_px, _number(result.log_px, result.log_px_stderr, -1), what))
    if result.log_px_mc_stderr is not None:
        rows.append(("  over the draws", f"± {result.log_px_mc_stderr:.3f}", "its error for these very examples"))
    if result.bits_per_dim is not None:
        rows.append(("bits/dim", f"{result.bits_per_dim:.4f}", f"{log_px} per dimension of x"))
    if result.per_piece:
        (name, bits), (_, stderr), (_, perplexity) = result.per_piece.items()
        piece = name.removeprefix("bits_per_")
        rows.append((f"bits/{piece}", _number(bits, stderr), f"{log_px} per {piece} or end of line"))
        rows.append(("perplexity", f"{perplexity:.3f}", "2 to that; that of p(x) is at most this"))
    if result.ess_median is not None:
        rows.append(("effective draws", f"{result.ess_median:.1f}", f"of {result.num_samples:,}, the median example's"))
    if result.khat_bad is not None:
        rows.append(("k-hat above 0.7", f"{result.khat_bad:.0%}", "of the examples: too few draws for them"))
    return rows


def _draws(count: int) -> str:
    return f"{count:,} {'draw' if count == 1 else 'draws'}"


def _gap_rows(result: Evaluation) -> list[tuple[str, str, str]]:
    gap = _number(result.posterior_gap, result.posterior_gap_stderr)
    c = _Given(result.conditional)
    posterior = c("p", "z", "x")
    lost = f"KL({c('q', 'z', 'x')} || {posterior})" if result.num_codes is None else f"-log {posterior} of the codes"
    rows = [(f"log {c('p', 'x')} - ELBO", gap, f"at most {lost}")]
    if result.split_n:
        approximation = _number(result.approximation_gap, result.approximation_gap_stderr)
        amortisation = _number(result.amortisation_gap, result.amortisation_gap_stderr)
        total = _number(result.split_gap, result.split_gap_stderr)
        rows.append((f"of {result.split_n:,} examples", total, "with better proposals; the sum of"))
        rows.append(("  approximation", approximation, "what the best q of its family lacks"))
        rows.append(("  amortisation", amortisation, "what the encoder's q lacks of that one"))
    return rows


def _latent_rows(result: Evaluation) -> list[tuple[str, str, str]]:
    active = f"{result.active_units} of {result.latent_dim}"
    if result.num_codes is not None:
        rows = [("active", active, "positions whose code varies")]
        rows.append(("codes used", f"{result.codes_used} of {result.num_codes}", "over all positions"))
        rows.append(("perplexity", f"{result.perplexity:.1f}", "of the codes, at most how many there are"))
    elif result.rate_per_layer is not None:
        rows = [("active", active, "components whose mean, relative to p's, varies")]
        layers = " ".join(f"{rate:.3f}" for rate in result.rate_per_layer)
        rows.append(("rate of layers", layers, "the lowest first"))
    else:
        rows = [("active", active, "components whose mean varies")]
    if result.information_n is not None:
        at_least, at_most = ("at least ", "at most ") if result.information_saturated else ("", "")
        mutual = _number(result.mutual_information, result.mutual_information_stderr)
        marginal = _number(result.marginal_kl, result.marginal_kl_stderr)
        c = _Given(result.conditional)
        rows.append(("information", mutual, f"{at_least}{c('I', 'x; z')}, what z says of x"))
        rows.append(("marginal KL", marginal, f"{at_most}KL({c('q', 'z')} || {c('p', 'z')}), the rest of the rate"))
    return rows


def _factor_rows(result: Evaluation) -> list[tuple[str, str, str]]:
    scores = result.recovered
    if scores is None:
        return []
    rows = [
        ("InfoM", scores.info_m, "each component knows one factor: modularity"),
        ("InfoC", scores.info_c, "each factor is in one component: compactness"),
        ("InfoE", scores.info_e, "a linear model reads the factors off"),
        ("DCI", scores.dci_disentanglement, "disentanglement, as InfoM"),
        ("", scores.dci_completeness, "completeness, as InfoC"),
        ("", scores.dci_informativeness, "informativeness: trees read the factors off"),
        ("MIG", scores.mig, "how far the best component leads, in information"),
        ("SAP", scores.sap, "the same in predictions"),
        ("FactorVAE", scores.factor_vae, "the fixed factor is told by what varies least"),
    ]
    return [(name, f"{value:.3f}", what) for name, value, what in rows]


def _rates(result: Evaluation) -> str:
    """The largest rates of components in a line."""
    largest = sorted(result.rate_per_dimension or (), reverse=True)
    shown = " ".join(f"{rate:.2f}" for rate in largest[:_COMPONENTS])
    more = len(largest) - _COMPONENTS
    return f"Rate of each component, largest first: {shown}{f' and {more} more' if more > 0 else ''}."


def print_comparison(title: str, result: Comparison) -> None:
    """Prints several models side by side, and how each differs from the first."""
    stdout.print(f"[bold]{escape(title)}[/]")
    for place, (name, one) in enumerate(zip(result.names, result.evaluations, strict=True), 1):
        trained = "" if one.objective is None else f", trained with {one.objective}"
        stdout.print(f"{place}: {escape(name)}{trained}", soft_wrap=not stdout.is_terminal)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in ("run", "-ELBO", "rate", "-log p(x)", "K", "gap", "active"):
        table.add_column(column, no_wrap=True)
    for place, one in enumerate(result.evaluations, 1):
        table.add_row(
            str(place),
            _number(one.elbo, one.elbo_stderr, -1),
            _number(one.rate),
            _number(one.log_px, one.log_px_stderr, -1),
            "none" if one.log_px is None else f"{one.num_samples:,}",
            _number(one.posterior_gap),
            f"{one.active_units} of {one.latent_dim}",
        )
    stdout.print(table)
    if any(one.recovered is not None for one in result.evaluations):
        stdout.print(_recovered(result.evaluations))
    others = range(1, len(result.names))
    for start in others[::_DIFFERENCES]:
        stdout.print(_differences(result, others[start - 1 : start - 1 + _DIFFERENCES]))
    stdout.print(
        "Nats per example; log p(x) from K draws an example. A difference is taken example by example; its error is "
        "one standard error of those differences."
    )
    drawn = {one.num_samples for one in result.evaluations if one.log_px is not None}
    if len(drawn) > 1:
        stdout.print("Note: K is not the same for all, and the bound on log p(x) rises with K by itself.")
    for note in result.notes:
        stdout.print(f"Note: {escape(note)}.")
    for place, one in enumerate(result.evaluations, 1):
        for note in one.notes:
            stdout.print(f"{place}: {escape(note)}.")


def _recovered(evaluations: Sequence[Evaluation]) -> Table:
    """How well each model recovers the factors; what the names mean stands in `evaluate`."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in ("run", "InfoM", "InfoC", "InfoE", "DCI", "MIG", "SAP", "FactorVAE"):
        table.add_column(column, no_wrap=True)
    for place, one in enumerate(evaluations, 1):
        if (scores := one.recovered) is not None:
            values = (
                scores.info_m, scores.info_c, scores.info_e, scores.dci_disentanglement, scores.mig, scores.sap,
                scores.factor_vae,
            )  # fmt: skip
            table.add_row(str(place), *(_number(value) for value in values))
    return table


def _differences(result: Comparison, places: Sequence[int]) -> Table:
    """How some models differ from the first."""
    measured = {
        "log p(x)": (result.log_px_difference, result.log_px_difference_stderr),
        "ELBO": (result.elbo_difference, result.elbo_difference_stderr),
        "rate": (result.rate_difference, result.rate_difference_stderr),
        "distortion": (result.distortion_difference, result.distortion_difference_stderr),
        "posterior gap": (result.posterior_gap_difference, result.posterior_gap_difference_stderr),
        "  approximation": (result.approximation_gap_difference, result.approximation_gap_difference_stderr),
        "  amortisation": (result.amortisation_gap_difference, result.amortisation_gap_difference_stderr),
    }
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in ("above run 1", *(f"run {place + 1}" for place in places)):
        table.add_column(column, no_wrap=True)
    for name, (values, errors) in measured.items():
        if any(values[place] is not None for place in places):
            table.add_row(name, *(_number(values[place], errors[place], signed=True) for place in places))
    return table


def _number(value: float | None, stderr: float | None = None, sign: int = 1, *, signed: bool = False) -> str:
    if value is None:
        return "none"
    return f"{sign * value:{'+' if signed else ''}.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")
