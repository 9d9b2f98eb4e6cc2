"""How long it takes until anything happens: `lowerbound --help`, and the import, beside those of Python and torch."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from measure import Result, take_turns
from settings import Settings
from throughput import timings_of

COMMANDS = {
    "python": ("-c", "pass"),
    "lowerbound --help": ("-m", "lowerbound", "--help"),
    "lowerbound train --help": ("-m", "lowerbound", "train", "--help"),
    "import lowerbound": ("-c", "import lowerbound"),
    "import lowerbound, and a model": ("-c", "import lowerbound; lowerbound.VAE"),
    "import torch": ("-c", "import torch"),
}
AGAINST = "import torch"


def start(settings: Settings) -> Result:
    """Measures the track: whole processes, taking turns."""
    timings = take_turns({name: partial(whole, command) for name, command in COMMANDS.items()}, settings.rounds)
    return Result(
        "start",
        f"Whole processes; {settings}",
        ("command", "s (median)", "spread", f"of `{AGAINST}`"),
        rows=[(name, f"{t.median:.3f}", t.spread, f"{timings[AGAINST].against(t):.0%}") for name, t in timings.items()],
        notes=["The first round, which may read the files from disk, is not counted."],
        values={"timings": timings_of(timings)},
    )


def whole(command: tuple[str, ...]) -> float:
    """Seconds from the start of a process to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
