"""What the tracks share: turns, medians and ratios, slopes, tables, and the record of where it was measured.

A shared machine is sometimes slower and sometimes faster. So contestants take turns, round by round, each round begins
with another one, and what is compared is the ratio within a round: whatever slowed the machine then, slowed both. Of
these ratios the median counts. The first round is not counted: compilation, caches and the first touch of memory are
in it; its seconds are kept, since a compilation is a cost too.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


class LeftOutError(Exception):
    """A contestant cannot take part; the message says why."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant.

    Attributes:
        first: Of the round that is not counted.
        seconds: Of each counted round.
    """

    first: float
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        return f"{min(self.seconds):.3g} to {max(self.seconds):.3g}"

    def against(self, other: Timing) -> float:
        """The median over the rounds of how much longer the other took in the same round."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def take_turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int, left_out: list[str] | None = None
) -> dict[str, Timing]:
    """Lets each contestant take a turn a round, and returns the seconds that each turn says it took.

    Args:
        contestants: What takes one turn and returns its seconds, by name.
        rounds: Counted rounds, at least 1; one more goes before them.
        left_out: Takes in why contestants broke on the way; without it the first that breaks ends it all.

    Raises:
        LeftOutError: A contestant broke, and there is no list to say so in.
    """
    if rounds < 1:
        raise ValueError(f"There must be a round to count; got {rounds}.")
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in rotated(names, turn):
            try:
                seconds[name].append(contestants[name]())
            except LeftOutError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
                names.remove(name)
                del seconds[name]
    return {name: Timing(first, tuple(counted)) for name, (first, *counted) in seconds.items()}


def rotated(names: list[str], turn: int) -> list[str]:
    """Returns the names from another one on each turn."""
    shift = turn % len(names) if names else 0
    return names[shift:] + names[:shift]


@dataclass(frozen=True)
class Slope:
    """A power law y = c x^exponent.

    Attributes:
        exponent: By least squares in logarithms.
        stderr: Its standard error, from the residuals; NaN from two points.
    """

    exponent: float
    stderr: float


def slope(xs: Sequence[float], ys: Sequence[float]) -> Slope:
    """Fits log y = a + b log x by least squares; at least two different x, all numbers above 0."""
    if len(xs) != len(ys) or len(set(xs)) < 2:
        raise ValueError("A slope takes as many y as x, and two different x.")
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    centre_u, centre_v = statistics.fmean(u), statistics.fmean(v)
    spread = sum((a - centre_u) ** 2 for a in u)
    exponent = sum((a - centre_u) * (b - centre_v) for a, b in zip(u, v, strict=True)) / spread
    if len(xs) == 2:
        return Slope(exponent, math.nan)
    left = sum((b - centre_v - exponent * (a - centre_u)) ** 2 for a, b in zip(u, v, strict=True))
    return Slope(exponent, math.sqrt(left / (len(xs) - 2) / spread))


@dataclass
class Result:
    """What a track found.

    Attributes:
        track: Its name.
        title: What was measured, in a line.
        columns: Of the table.
        rows: Of the table.
        notes: What a reader must know: what was left out, what failed.
        values: The measurements themselves, for the record.
    """

    track: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def show(self, console: Console) -> None:
        table = Table(*self.columns, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(f"* {note}", markup=False, highlight=False)

    def record(self, settings: Any, before: tuple[float, ...]) -> dict[str, Any]:
        """Returns the record; `before` is the load of the machine when the track began."""
        said = {"track": self.track, "title": self.title, "columns": self.columns, "rows": self.rows}
        return {
            **said,
            "notes": self.notes,
            "values": self.values,
            "settings": asdict(settings),
            "command": sys.argv,
            "commit": commit(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": {"before": before, "after": load()},
            "machine": machine(),
        }


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "processor": processor(),
        "processors": processors(),
        "system": f"{sys.platform}-{platform.machine()}",
        "python": platform.python_version(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "GOMP_", "MKL_", "KMP_"))},
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def processors() -> int:
    """How many processors this process, and whatever it starts, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_to(threads: int) -> None:
    """Keeps this process, and whatever it starts, to so many processors: every library then makes as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)


def load() -> tuple[float, ...]:
    """The load averages of the last 1, 5 and 15 minutes; nothing where there are none to be had."""
    return os.getloadavg() if hasattr(os, "getloadavg") else ()


def commit() -> str:
    """The commit measured, with `+` when files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def gflops(operations: float, seconds: float) -> float:
    """Billions of floating-point operations a second."""
    return operations / seconds / 1e9


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def save(records: Iterable[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Writes each record as TRACK.json and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for record in records:
        path = folder / f"{record['track']}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        written.append(path)
    return written
