"""log p(x) by importance sampling: draws a second, ours beside other people's.

Each contestant measures as many images as it can in a like time, with the same number of draws for each; what is
compared is images times draws a second. The weights are untrained: the arithmetic is the same.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from contestants import Contestant, Running, running
from digits import write
from measure import Result, Timing, gflops, take_turns
from peers import network
from settings import Settings
from throughput import IN_AUTO, PRODUCTS, in_auto, peak_note, peak_of, timings_of

from lowerbound.training import Precision, resolve_precision

PEAKS = tuple(peak for peaks in PRODUCTS.values() for peak in peaks)
# Images that each measures: enough for seconds, not for minutes.
IMAGES = {"lowerbound fp32": 200, IN_AUTO: 200, "jax": 200, "pythae": 20} | dict.fromkeys(PEAKS, 200)


def contestants(auto: Precision) -> tuple[Contestant, ...]:
    """Who takes part; bf16 only where the machine has it."""
    peaks = dict.fromkeys(PRODUCTS[Precision.FP32] + PRODUCTS[auto])
    return (
        Contestant("lowerbound fp32", "with_lowerbound.py", "evidence"),
        Contestant(IN_AUTO, "with_lowerbound.py", "evidence-auto"),
        Contestant("jax", "with_jax.py", "evidence", "jax"),
        Contestant("pythae", "with_pythae.py", "evidence", "pythae"),
        *(Contestant(peak, "with_torch.py", peak) for peak in peaks),
    )


def evidence(settings: Settings) -> Result:
    """Measures the track."""
    auto = resolve_precision(Precision.AUTO, torch.device("cpu"))
    draws = settings.sized(1000, 500)
    images = {name: settings.sized(count, 4) for name, count in IMAGES.items()}
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits.npy"
        write(settings.digits, 1000, digits)
        with running(contestants(auto), digits, Path(folder)) as (ready, left_out):
            turns = {name: partial(turn, one, images[name], draws, found) for name, one in ready.items()}
            timings = take_turns(turns, settings.rounds, left_out)
            versions = {name: one.versions for name, one in ready.items()}
    result = Result(
        "evidence",
        f"log p(x) by {draws:,} draws an image; {settings}",
        ("contestant", "images", "s (median)", "first, s", "draws/s", "GFLOP/s", "of the peak", "log p(x)"),
        notes=[
            *left_out,
            "Counted are the operations that are needed: the encoder once an image, the decoder once a draw.",
            peak_note(auto, "the decoder's"),
            "The weights are untrained and each contestant's own, so log p(x) only shows that something was measured.",
        ],
        values={
            "timings": timings_of(timings),
            "images": images,
            "draws": draws,
            "auto": auto.value,
            "log_px": found,
            "versions": versions,
        },
    )
    for name, timing in timings.items():
        peak = peak_of(timings, auto if in_auto(name) else Precision.FP32)
        result.rows.append(row(name, timing, images, draws, peak, found))
    return result


def turn(one: Running, images: int, draws: int, found: dict[str, float]) -> float:
    answer = one(f"evidence {images} {draws}")
    if "log_px" in answer:
        found[one.name] = answer["log_px"]
    return float(answer["seconds"])


def row(
    name: str, timing: Timing, images: dict[str, int], draws: int, peak: Timing, found: dict[str, float]
) -> tuple[str, ...]:
    # The products leave out the encoder, and measure their own number of images.
    operations = network.evidence_flops(images[name], draws)
    products = images[PEAKS[0]] * draws * network.forward_flops(network.decoder())
    if name in PEAKS:
        operations = products
    return (
        name,
        f"{images[name]:,}",
        f"{timing.median:.3g}",
        f"{timing.first:.3g}",
        f"{images[name] * draws / timing.median:,.0f}",
        f"{gflops(operations, timing.median):.0f}",
        f"{timing.against(peak) * operations / products:.0%}",
        f"{found[name]:.1f}" if name in found else "",
    )
