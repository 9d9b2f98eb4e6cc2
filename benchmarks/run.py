"""The benchmarks: time, memory and quality, measured beside peers.

    python benchmarks/run.py                      the short tracks, under fifteen minutes
    python benchmarks/run.py throughput start     some
    python benchmarks/run.py all                  also what takes longer
    python benchmarks/run.py all --tiny           everything once, very small: does it run?

Each track prints a table and writes `OUT/TRACK.json`. What each measures, and the rules: `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

# Before torch is imported, which counts the processors once: see `main`.
SHORT = ("throughput", "start", "memory", "evidence", "growth")
LONG = ("quality", "streaming")
ROUNDS = 5


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tracks", nargs="*", choices=[*SHORT, *LONG, "all", []], help="the short ones by default")
    parser.add_argument("--rounds", type=int, help=f"counted rounds; {ROUNDS} by default")
    parser.add_argument("--threads", type=int, help="processors for each contestant; all that there are by default")
    parser.add_argument("--digits", default="mnist", help="the data set of digits")
    parser.add_argument("--tiny", action="store_true", help="see that it runs; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the records")
    parser.add_argument("--recipe", default="fast", help="what `quality` trains")
    parser.add_argument(
        "--set",
        action="append",
        type=setting,
        metavar="NAME=VALUE",
        help="a setting of that recipe; mlp wants binarise=none and likelihood=bernoulli for this measure",
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings that `quality` makes")
    return parser.parse_args(words)


def setting(text: str) -> tuple[str, Any]:
    """Reads NAME=VALUE; a value is a number where it looks like one.

    Example:
        >>> setting("epochs=5"), setting("lr=2e-3"), setting("binarise=none")
        (('epochs', 5), ('lr', 0.002), ('binarise', 'none'))
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def chosen(tracks: list[str]) -> list[str]:
    """Returns the tracks asked for, each once."""
    if "all" in tracks:
        return [*SHORT, *LONG]
    return list(dict.fromkeys(tracks)) or list(SHORT)


def main() -> None:
    options = parsed()
    threads = options.threads or measure.processors()
    measure.keep_to(threads)
    # Contestants that wait are stopped processes, and must not be left behind like that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    from rich.console import Console
    from settings import Settings

    settings = Settings(
        rounds=options.rounds or (1 if options.tiny else ROUNDS),
        threads=threads,
        tiny=options.tiny,
        digits=options.digits,
        recipe=options.recipe,
        changes=dict(options.set or []),
        seeds=options.seeds,
    )
    # A file takes a whole row in one line; a terminal as much as it can.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for name in chosen(options.tracks):
        before = measure.load()
        result = track(name)(settings)
        if before and before[0] > threads / 2:
            result.notes.append(f"The machine was busy when this began (load {before[0]:.1f}): measure again.")
        result.show(console)
        for path in measure.save([result.record(settings, before)], options.out):
            console.print(f"written: {path}\n", highlight=False)


def track(name: str) -> Callable[[Any], measure.Result]:
    """Returns what measures a track: the function of that name in the module of that name."""
    function: Callable[[Any], measure.Result] = getattr(__import__(name), name)
    return function


if __name__ == "__main__":
    main()
