"""How the time grows with the size of a problem: exponents by least squares in logarithms.

An epoch against the number of examples and against the width of the network, the evidence against the number of draws
and of images. Exponent 1 is time in proportion. The width's lies between 1 and 2: of the network's weights some grow
with the width and some with its square; the column `by operations` has the exponent of their count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from contestants import Contestant, Running, running
from digits import write
from measure import Result, slope, take_turns
from peers import network
from settings import Settings
from throughput import timings_of

TRAINS = Contestant("training", "with_lowerbound.py", "fp32")
MEASURES = Contestant("evidence", "with_lowerbound.py", "evidence")


@dataclass(frozen=True)
class Sweep:
    """One size that grows.

    Attributes:
        what: The time of what, against what.
        who: The contestant that is asked.
        sizes: The sizes.
        command: What is asked for a size.
        operations: The floating-point operations of a size.
    """

    what: str
    who: str
    sizes: tuple[int, ...]
    command: Callable[[int], str]
    operations: Callable[[int], float]


def sweeps(settings: Settings) -> tuple[Sweep, ...]:
    """The sweeps; everything but what grows is held fixed."""
    examples = settings.sized((3_000, 6_000, 12_000, 24_000, 48_000), (500, 1_000, 2_000))
    widths = settings.sized((200, 400, 800, 1_600), (50, 100, 200))
    fixed = settings.sized(6_000, 500)
    draws = settings.sized((100, 300, 1_000, 3_000, 10_000), (50, 100, 200))
    images = settings.sized((20, 60, 200, 600), (4, 8, 16))
    each = settings.sized(1_000, 50)
    return (
        Sweep(
            "epoch: examples",
            TRAINS.name,
            examples,
            lambda n: f"epoch {n} {network.WIDTH}",
            lambda n: n * network.training_flops(),
        ),
        Sweep(
            f"epoch of {fixed:,}: width",
            TRAINS.name,
            widths,
            lambda width: f"epoch {fixed} {width}",
            lambda width: fixed * network.training_flops(width),
        ),
        Sweep(
            "evidence of 20 images: draws",
            MEASURES.name,
            draws,
            lambda k: f"evidence 20 {k}",
            lambda k: network.evidence_flops(20, k),
        ),
        Sweep(
            f"evidence by {each:,} draws: images",
            MEASURES.name,
            images,
            lambda n: f"evidence {n} {each}",
            lambda n: network.evidence_flops(n, each),
        ),
    )


def growth(settings: Settings) -> Result:
    """Measures the track."""
    result = Result(
        "growth",
        f"How seconds grow; {settings}",
        ("seconds of", "sizes", "s (medians)", "exponent", "by operations"),
        notes=["The error of an exponent is that of the fit: how far the points lie from a power law."],
    )
    asked = sweeps(settings)
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits.npy"
        there = write(settings.digits, max(asked[0].sizes), digits)
        with running((TRAINS, MEASURES), digits, Path(folder)) as (ready, left_out):
            if left_out:
                raise RuntimeError(" ".join(left_out))
            for sweep in asked:
                sizes = tuple(n for n in sweep.sizes if n <= there or sweep.who == MEASURES.name)
                add(result, sweep, sizes, ready[sweep.who], settings.rounds)
    return result


def add(result: Result, sweep: Sweep, sizes: tuple[int, ...], one: Running, rounds: int) -> None:
    """Measures one sweep, its sizes in turns, and adds its row."""
    timings = take_turns({str(n): partial(seconds, one, sweep.command(n)) for n in sizes}, rounds)
    medians = [timings[str(n)].median for n in sizes]
    found, counted = slope(sizes, medians), slope(sizes, [sweep.operations(n) for n in sizes])
    result.rows.append(
        (
            sweep.what,
            ", ".join(f"{n:,}" for n in sizes),
            ", ".join(f"{s:.3g}" for s in medians),
            f"{found.exponent:.2f} ± {found.stderr:.2f}",
            f"{counted.exponent:.2f}",
        )
    )
    result.values[sweep.what] = {
        "exponent": found.exponent,
        "stderr": found.stderr,
        "exponent_of_operations": counted.exponent,
        "timings": timings_of(timings),
    }


def seconds(one: Running, command: str) -> float:
    return float(one(command)["seconds"])
