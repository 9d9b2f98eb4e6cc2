"""Lowerbound: the recipe `tutorial` as `lowerbound train` runs it, log p(x) as `lowerbound evaluate` measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from network import WIDTH
from protocol import arguments, serve

import lowerbound as lb
from lowerbound.data import ArraySource
from lowerbound.recipes import tutorial
from lowerbound.training import Means, Precision, TrainState, autocast

EVIDENCE = {"evidence": Precision.FP32, "evidence-auto": Precision.AUTO}
# Examples at a time, as `evaluate` takes them.
TOGETHER = 20


def as_data(values: torch.Tensor) -> lb.Data:
    digits = ArraySource(values.view(-1, 1, 28, 28))
    return lb.Data("digits", train=digits, valid=None, test=digits)


def training(values: torch.Tensor, precision: Precision) -> Callable[..., dict[str, float]]:
    """Returns what makes the next epoch of a training; each size has a training of its own, which goes on."""
    going: dict[tuple[int, int], Callable[[], dict[str, float]]] = {}

    def start(examples: int, width: int) -> Callable[[], dict[str, float]]:
        run = tutorial(as_data(values[:examples]), width=width, epochs=1_000_000)
        how = replace(run.training, precision=precision)
        state = TrainState(run.vae, how, torch.device("cpu"))
        steps, means = lb.train(run.vae, run.data.train, run.objective, how, state=state), Means()

        def epoch() -> dict[str, float]:
            for step in steps:
                means.add(step.terms)
                if step.epoch_ends:
                    break
            return means.read()

        return epoch

    def epoch(examples: int = len(values), width: int = WIDTH) -> dict[str, float]:
        if (examples, width) not in going:
            going[examples, width] = start(examples, width)
        return going[examples, width]()

    return epoch


def evidence(values: torch.Tensor, precision: Precision) -> Callable[[int, int], dict[str, float]]:
    source = as_data(values)
    vae = tutorial(source).vae.eval()

    def measure(images: int, samples: int) -> dict[str, float]:
        total = 0.0
        with autocast(precision, torch.device("cpu")):
            for index in torch.arange(images).split(TOGETHER):
                total += lb.log_evidence(vae, source.test.examples(index).x, samples).log_px.sum().item()
        return {"log_px": total / images}

    return measure


def main() -> None:
    chosen = arguments("fp32", "auto", "evidence", "evidence-auto")
    torch.manual_seed(0)
    values = torch.from_numpy(np.load(chosen.digits))
    if chosen.job in EVIDENCE:
        commands = {"evidence": evidence(values, EVIDENCE[chosen.job])}
    else:
        commands = {"epoch": training(values, Precision(chosen.job))}
    serve(chosen.pipe, commands, lowerbound=lb.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
