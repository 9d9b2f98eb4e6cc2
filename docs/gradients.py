"""Draws theory-gradients.png: the noise of two estimators of the encoder's gradient, over a training.

OMP_NUM_THREADS=1 python docs/gradients.py --data mnist --out docs/figures

One minibatch is set aside. At several moments of an ordinary training, the gradient of its mean -ELBO with respect to
all weights of the encoder is estimated again and again from a single draw of z an image: through z = mu + sigma eps
(reparameterised), and by log p(x|z) times the gradient of log q(z|x) (score function) with three baselines. The KL to
the prior is taken in closed form by all of them, so they differ in nothing but what they do about E[log p(x|z)].
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import lowerbound as lb
from lowerbound.distributions import DiagonalNormal, analytic_kl

STYLE: Any = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
STYLE |= {"grid.alpha": 0.25, "axes.titlelocation": "left", "legend.frameon": False}
REPARAMETERISED = "reparameterised"
LOOKS = {
    "score function, no baseline": {"color": "#c8553d", "ls": "-", "marker": "o"},
    "score function, one baseline for all images": {"color": "#b07500", "ls": "--", "marker": "s"},
    "score function, a baseline for each image": {"color": "#6b6b6b", "ls": "-.", "marker": "D"},
    REPARAMETERISED: {"color": "#1f4e79", "ls": "-", "marker": "o"},
}
MOMENTS = (10, 30, 100, 300, 1000)


@dataclass(frozen=True)
class Noise:
    """How much single-draw estimates of one gradient scatter.

    Attributes:
        variance: The trace of the estimates' covariance: their mean squared distance from their mean.
        stderr: Its standard error.
        signal: The squared length of the gradient itself, without what the scatter adds to that of the estimates' mean.
    """

    variance: float
    stderr: float
    signal: float

    @classmethod
    def of(cls, estimates: Tensor) -> Noise:
        """Takes estimates `[M, P]`: M of them, of a gradient with P components."""
        count, mean = len(estimates), estimates.mean(0)
        squares = (estimates - mean).square().sum(1).double() * count / (count - 1)
        variance = squares.mean()
        signal = mean.double().square().sum() - variance / count
        return cls(variance.item(), squares.std().item() / count**0.5, signal.item())


def estimators(vae: lb.VAE, x: Tensor, draws: int, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yields the name of each estimator and its estimates, from the same draws for all.

    Args:
        vae: The model; its posterior is a diagonal normal.
        x: The minibatch, `[B, *event]`.
        draws: M, how many estimates of each kind; every one is from a single draw of z an image.
        seed: Seeds the draws.

    Yields:
        A key of `LOOKS`, and estimates of the gradient of mean(-ELBO) with respect to the encoder, `[M, P]`.
    """
    q = vae.encoder(x)
    noise = torch.randn((draws, *q.loc.shape), generator=lb.data.generator(seed), dtype=q.loc.dtype)
    with torch.no_grad():
        log_px_z = torch.cat([vae.decoder(q.from_noise(eps)).log_prob(x) for eps in noise.split(10)])
    # What a baseline knows of a draw would bias the estimate: each is an average over the other draws.
    others = (log_px_z.sum(0) - log_px_z) / (draws - 1)
    baselines = torch.zeros_like(others), others.mean(1, keepdim=True).expand_as(others), others
    for name, baseline in zip(LOOKS, baselines, strict=False):
        rewards = log_px_z - baseline
        yield name, torch.stack([score_function(vae, x, *drawn) for drawn in zip(noise, rewards, strict=True)])
    yield REPARAMETERISED, torch.stack([reparameterised(vae, x, eps) for eps in noise])


def reparameterised(vae: lb.VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Returns the gradient of mean(KL - log p(x|z(phi))), `[P]`, along z(phi) = mu + sigma eps."""
    q = vae.encoder(x)
    return _gradient(vae, _kl(vae, q) - vae.decoder(q.from_noise(eps)).log_prob(x))


def score_function(vae: lb.VAE, x: Tensor, eps: Tensor, reward: Tensor) -> Tensor:
    """Returns the gradient of mean(KL - reward log q(z|x)), `[P]`, with z held fixed; rewards are `[B]`."""
    q = vae.encoder(x)
    z = q.from_noise(eps).detach()
    return _gradient(vae, _kl(vae, q) - reward * q.log_prob(z))


def _kl(vae: lb.VAE, q: DiagonalNormal) -> Tensor:
    kl = analytic_kl(q, vae.prior())
    assert kl is not None
    return kl


def _gradient(vae: lb.VAE, losses: Tensor) -> Tensor:
    gradient: Tensor = parameters_to_vector(torch.autograd.grad(losses.mean(), list(vae.encoder.parameters())))
    return gradient


def over_training(run: lb.Run, x: Tensor, draws: int) -> dict[int, dict[str, Noise]]:
    """Trains, and measures before, at `MOMENTS` and at the end; returns the noise of each estimator by update."""

    def measured() -> dict[str, Noise]:
        return {name: Noise.of(estimates) for name, estimates in estimators(run.vae, x, draws)}

    found = {0: measured()}
    for step in lb.train(run.vae, run.data.train, run.objective, run.training, device=torch.device("cpu")):
        if step.step in MOMENTS or step.progress >= 1:
            found[step.step] = measured()
            print(f"measured after {step.step} updates", flush=True)
    return found


def draw(found: dict[int, dict[str, Noise]]) -> Figure:
    """Draws the variance of each estimator, and the squared gradient itself, against the update."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots()
    # 0 has no place on a logarithmic axis; it stands a step to the left of the first.
    places = [max(step, 3) for step in found]
    unit = list(found.values())[-1][REPARAMETERISED].variance
    for name, look in LOOKS.items():
        values, errors = zip(*((f[name].variance, f[name].stderr) for f in found.values()), strict=True)
        axes.errorbar(places, values, yerr=errors, lw=2.2, ms=6, **look)
        times = "" if name == REPARAMETERISED else f"\n{values[-1] / unit:,.0f} times the variance at the end"
        note(axes, name + times, places[-1], values[-1], look["color"])
    signal = [noise[REPARAMETERISED].signal for noise in found.values()]
    axes.plot(places, signal, color="black", lw=1.5, ls=":")
    note(axes, "the gradient itself, squared length", places[-1], signal[-1] / 2, "black")
    axes.set(xscale="log", yscale="log", xlabel="updates made", ylabel="variance, nats² (sum over weights)")
    axes.set_xticks(places, [f"{step:,}" for step in found])
    axes.minorticks_off()
    axes.set_title("Noise of the encoder's gradient, from one draw of z an image")
    return figure


def note(axes: Axes, text: str, x: float, y: float, colour: str) -> None:
    """Writes beside the end of a line, in its colour."""
    axes.annotate(text, (x, y), (12, 0), textcoords="offset points", va="center", color=colour, fontsize=12)


def report(found: dict[int, dict[str, Noise]]) -> None:
    """Prints the variances, and how many times that of the reparameterised gradient they are."""
    print("| updates | " + " | ".join(LOOKS) + " | squared gradient |\n" + "| --- " * (len(LOOKS) + 2) + "|")
    for step, noises in found.items():
        unit = noises[REPARAMETERISED]
        cells = [f"{n.variance:.3g} ± {n.stderr:.1g} ({n.variance / unit.variance:,.0f} x)" for n in noises.values()]
        print(f"| {step} | " + " | ".join(cells) + f" | {unit.signal:.3g} |")


def main() -> None:
    """Reads the command line, trains and measures, writes the figure, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="a data set, as for lowerbound train (default: mnist)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training examples (default: 20)")
    parser.add_argument("--images", type=int, default=100, help="images in the minibatch (default: 100)")
    parser.add_argument("--draws", type=int, default=200, help="estimates of each kind at a time (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    run = lb.recipes.mlp(lb.open_data(asked.data), latent_dim=20, width=256, warmup=0, average=0, epochs=asked.epochs)
    training = replace(run.training, seed=asked.seed, precision=lb.training.Precision.FP32)
    run = replace(run, training=training)
    x = run.data.test.examples(torch.arange(asked.images)).x
    found = over_training(run, x, asked.draws)
    with mpl.rc_context(STYLE):
        draw(found).savefig(asked.out / "theory-gradients.png", dpi=130)
    report(found)


if __name__ == "__main__":
    main()
