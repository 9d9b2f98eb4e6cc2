"""How long an epoch takes: the same network and batches, ours beside the loops and toolkits that people use.

Each contestant is a process (`peers/`), they take turns, and the products of the network's matrices alone take a turn
as well, by the kernels that torch has: the faster of them is the machine's peak in that arithmetic, and the share says
how near an epoch comes to it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contestants import Contestant, Running, running
from digits import write
from measure import Result, Timing, gflops, take_turns
from peers import network
from settings import Settings

from lowerbound.training import Precision, resolve_precision

FIRST, IN_AUTO = "notebook", "lowerbound auto"
PRODUCTS = {Precision.FP32: ("products-fp32", "products-onednn"), Precision.BF16: ("products-bf16",)}


def contestants(auto: Precision) -> tuple[Contestant, ...]:
    """Who takes part; bf16 only where the machine has it."""
    peaks = dict.fromkeys(PRODUCTS[Precision.FP32] + PRODUCTS[auto])
    return (
        Contestant(FIRST, "with_torch.py", "notebook"),
        Contestant("pythae", "with_pythae.py", "train", "pythae"),
        Contestant("jax", "with_jax.py", "train", "jax"),
        Contestant("plain torch", "with_torch.py", "plain"),
        Contestant("lowerbound fp32", "with_lowerbound.py", "fp32"),
        Contestant(IN_AUTO, "with_lowerbound.py", "auto"),
        *(Contestant(peak, "with_torch.py", peak) for peak in peaks),
    )


def throughput(settings: Settings) -> Result:
    """Measures the track."""
    auto = resolve_precision(Precision.AUTO, torch.device("cpu"))
    last: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits.npy"
        count = write(settings.digits, settings.sized(60_000, 2_000), digits)
        with running(contestants(auto), digits, Path(folder)) as (ready, left_out):
            turns = {name: partial(epoch, one, last) for name, one in ready.items()}
            timings = take_turns(turns, settings.rounds, left_out)
            said = {name: {"versions": one.versions, "ready_seconds": one.ready_seconds} for name, one in ready.items()}
    operations = count * network.training_flops()
    result = Result(
        "throughput",
        f"An epoch of {count:,} digits in batches of {network.BATCH}; {settings}",
        (
            "contestant",
            "s (median)",
            "spread",
            f"against {FIRST}",
            "first epoch, s",
            "GFLOP/s",
            "of the peak",
            "threads busy",
            "loss",
        ),
        notes=[*left_out, peak_note(auto)],
        values={
            "timings": timings_of(timings),
            "last_epoch": last,
            "contestants": said,
            "operations": operations,
            "auto": auto.value,
        },
    )
    for name, timing in timings.items():
        peak = peak_of(timings, auto if in_auto(name) else Precision.FP32)
        result.rows.append(row(name, timing, timings, peak, operations, last[name]))
    return result


def peak_of(timings: dict[str, Timing], precision: Precision) -> Timing:
    """The faster of the products in an arithmetic."""
    return min((timings[name] for name in PRODUCTS[precision] if name in timings), key=lambda timing: timing.median)


def in_auto(name: str) -> bool:
    """Whether a contestant's arithmetic is what `auto` chose, and so its peak."""
    return name == IN_AUTO or name in PRODUCTS[Precision.BF16]


def peak_note(auto: Precision, whose: str = "the network's") -> str:
    return (
        f"The peak is the faster of the products, on {whose} shapes and in the same arithmetic: float32, "
        f"but for `auto`, which is {auto.value} here. Who multiplies with other kernels can be above it."
    )


def epoch(one: Running, last: dict[str, dict[str, Any]]) -> float:
    last[one.name] = one("epoch")
    return float(last[one.name]["seconds"])


def row(
    name: str,
    timing: Timing,
    timings: dict[str, Timing],
    peak: Timing,
    operations: int,
    last: dict[str, Any],
) -> tuple[str, ...]:
    return (
        name,
        f"{timing.median:.3g}",
        timing.spread,
        f"{timing.against(timings[FIRST]):.2f} x" if FIRST in timings else "",
        f"{timing.first:.3g}",
        f"{gflops(operations, timing.median):.0f}",
        f"{timing.against(peak):.0%}",
        f"{last['processor_seconds'] / last['seconds']:.2f}",
        f"{last['loss']:.1f}" if "loss" in last else "",
    )


def timings_of(timings: dict[str, Timing]) -> dict[str, dict[str, object]]:
    """For the record."""
    return {name: {"first": t.first, "seconds": t.seconds, "median": t.median} for name, t in timings.items()}
