"""Draws theory-gap.png: how far the bound is from log p(x) for three families of q(z|x), on one and the same decoder.

lowerbound train mlp --data mnist --latent-dim 2 --width 256 --epochs 60 --precision fp32 --out runs/plane
OMP_NUM_THREADS=1 python docs/gap.py runs/plane --data mnist --out docs/figures

The decoder and the prior of the run are frozen, so p(x) and p(z|x) are fixed, and a new encoder is trained for each
family: a diagonal normal, a normal with a full covariance, and a normal that an inverse autoregressive flow carries on.
All begin with the run's encoder network and a new head, and have the same updates and the same seed. log p(x) is by
quadrature, once for all.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.polynomial.hermite_e import hermegauss
from posterior import Exact, bound
from torch import Tensor
from torch.distributions import Distribution

import lowerbound as lb
from lowerbound.distributions import DiagonalNormal, FullNormal
from lowerbound.evidence.gap import Rebuild, free
from lowerbound.flows import Flowed

STYLE: Any = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
STYLE |= {"grid.alpha": 0.25, "axes.titlelocation": "left", "legend.frameon": False, "axes.axisbelow": True}
COLOURS = {"diagonal": "#c8553d", "full covariance": "#b07500", "flow (IAF)": "#1f4e79"}
LATENT = (2,)


@dataclass(frozen=True)
class Measured:
    """The gap of one encoder for each image, nats.

    Attributes:
        total: log p(x) - ELBO, `[N]`.
        noise: The standard error that its draws leave, `[N]`.
        approximation: What the best member of the family leaves, `[N]`; None where it was not looked for.
    """

    total: Tensor
    noise: Tensor
    approximation: Tensor | None = None


def flowed(in_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> lb.heads.Head:
    """Returns a normal carried on by four autoregressive maps, which the features steer."""
    flow = lb.flows.inverse_autoregressive(*event_shape, layers=4, width=64, context_dim=16)
    return lb.heads.FlowedNormal(in_shape, event_shape, flow)


FAMILIES: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], lb.heads.Head]] = {
    "diagonal": lb.heads.DiagonalNormal,
    "full covariance": lb.heads.FullNormal,
    "flow (IAF)": flowed,
}


def refitted(base: lb.VAE, data: lb.Data, family: str, epochs: int, seed: int = 0) -> lb.VAE:
    """Trains a new encoder for the frozen decoder and prior of a model; `base` stays as it is."""
    torch.manual_seed(seed)
    network = copy.deepcopy(base.encoder.network)
    encoder = lb.heads.Conditional(network, FAMILIES[family](network.out_shape, LATENT))
    vae = lb.VAE(encoder, base.decoder.requires_grad_(False), base.prior.requires_grad_(False))
    training = lb.Training(
        epochs=epochs,
        batch_size=256,
        lr=2e-3,
        schedule=lb.training.Linear(warmup=0.05),
        clip=200.0,
        average=0.99,
        precision=lb.training.Precision.FP32,
        seed=seed,
    )
    lb.fit(vae, data, lb.ELBO(), training, device=torch.device("cpu"))
    return vae


def measured(vae: lb.VAE, x: Tensor, exact: Exact, draws: int, split: bool) -> Measured:
    """Measures the gap for each image, and with `split` the part of it that no member of the family closes."""
    elbo, noise = bound(vae, x, draws)
    if not split:
        return Measured(exact.log_px - elbo, noise)
    parts = zip(x.split(50), exact.mode.split(50), strict=True)
    best = torch.cat([best_of_family(vae, part, mode, draws) for part, mode in parts])
    return Measured(exact.log_px - elbo, noise, exact.log_px - torch.maximum(best, elbo))


@torch.no_grad()
def best_of_family(vae: lb.VAE, x: Tensor, mode: Tensor, draws: int) -> Tensor:
    """Returns the ELBO of the best member of the family of q that is found for each image, `[B]`.

    As in `lowerbound.evidence.posterior_gap`, the parameters of q are freed for each image and follow the gradient of
    the ELBO; but from two starts, the encoder's q and the same q moved to where p(z|x) is highest, since an encoder may
    err by many of its own standard deviations or pick the wrong one of several hills; and with Gauss-Hermite nodes in
    place of random draws, which two components allow. What is found is measured on draws.
    """
    q = vae.encoder(x)
    return torch.maximum(*(_bound(vae, x, climbed(vae, x, start), draws) for start in (q, moved(q, mode.to(x)))))


def moved(q: Distribution, place: Tensor) -> Distribution:
    """Returns q with its centre at a place for each image, `[B, 2]`."""
    if isinstance(q, Flowed):
        return Flowed(moved(q.base, q.flow.inverse(place, q.context)[0]), q.flow, q.context)
    if isinstance(q, FullNormal):
        return FullNormal(place, q.scale_tril)
    assert isinstance(q, DiagonalNormal)
    return DiagonalNormal(place, q.log_scale)


def climbed(vae: lb.VAE, x: Tensor, q: Distribution, steps: int = 100) -> Distribution:
    """Returns what Adam makes of q for each image, maximising the ELBO."""
    start, rebuild = freed(q)
    nodes, weights = (torch.from_numpy(part).to(x) for part in hermegauss(4))
    eps = torch.cartesian_prod(nodes, nodes)[:, None].expand(-1, len(x), -1)
    share = torch.cartesian_prod(weights, weights).prod(1, keepdim=True) / weights.sum() ** 2
    with torch.enable_grad():
        parameters = [parameter.clone().requires_grad_() for parameter in start]
        adam = torch.optim.Adam(parameters, lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            z, log_q = carried(rebuild(parameters), eps)
            log_w = vae.decoder(z).log_prob(x) + vae.prior().log_prob(z) - log_q
            adam.zero_grad()
            (-share * log_w).sum().backward(inputs=parameters)
            adam.step()
            schedule.step()
    return rebuild([parameter.detach() for parameter in parameters])


def freed(q: Distribution) -> tuple[Sequence[Tensor], Rebuild]:
    """Returns parameters of q to optimise, and what makes a q of them; of a flow, all that an encoder can say to it."""
    if not isinstance(q, Flowed):
        return free(q)
    (shift, growth), rebuild = free(q.base)
    flow, context = q.flow, q.context
    assert context is not None
    return (shift, growth, torch.zeros_like(context)), lambda p: Flowed(rebuild(p[:2]), flow, context + p[2])


def carried(q: Distribution, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the draws that standard normal noise stands for, and their log-densities."""
    base = q.base if isinstance(q, Flowed) else q
    assert isinstance(base, DiagonalNormal | FullNormal)
    z = base.from_noise(eps)
    log_q = base.log_prob(z)
    if isinstance(q, Flowed):
        z, log_det = q.flow(z, q.context)
        log_q = log_q - log_det
    return z, log_q


def _bound(vae: lb.VAE, x: Tensor, q: Distribution, draws: int) -> Tensor:
    total = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(draws // 40):
        z = q.sample((40,))
        total += (vae.decoder(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z)).double().sum(0)
    return total / (40 * (draws // 40))


def pm(values: Tensor) -> str:
    """Formats a mean and its standard error."""
    return f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}"


def draw(found: dict[str, Measured]) -> Figure:
    """Draws the mean gaps, of the encoder's q and of the best of its family, and the share of images below each gap."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    means, shares = figure.subplots(1, 2)
    for place, (name, gap) in enumerate(found.items()):
        best = gap.approximation
        assert best is not None
        for values, face, dash in ((gap.total, COLOURS[name], "-"), (best, "white", ":")):
            mean, stderr = values.mean().item(), values.std().item() / len(values) ** 0.5
            look = {"color": COLOURS[name], "mfc": face, "mew": 2, "ms": 10, "capsize": 4, "lw": 2}
            means.errorbar(place, mean, stderr, fmt="o", **look)
            means.annotate(f"{mean:#.2g}", (place, mean), (13, -5), textcoords="offset points")
            rising = values.sort().values
            percent = 100 * torch.arange(1, len(rising) + 1) / len(rising)
            label = name if dash == "-" else None
            shares.plot(rising, percent, color=COLOURS[name], ls=dash, lw=2.2, label=label)
    means.set_xticks(range(len(found)), list(found))
    means.grid(axis="x", visible=False)
    means.set(yscale="log", xlim=(-0.4, len(found) - 0.4), title="mean gap", ylabel="log p(x) - ELBO, nats")
    # What lies further to the left is the noise of the draws.
    shares.set(xscale="log", xlim=(3e-3, None), ylim=(0, 101))
    shares.set(xlabel="log p(x) - ELBO, nats", ylabel="%", title="images with a gap below")
    black = {"color": "black", "lw": 2.2}
    kinds = [Line2D([], [], marker="o", ms=9, label="the encoder's q", **black)]
    kinds += [Line2D([], [], marker="o", ms=9, mfc="white", mew=2, ls=":", label="the best q of the family", **black)]
    families = shares.get_legend_handles_labels()[0]
    figure.legend(handles=[*families, *kinds], loc="outside lower center", ncols=5, columnspacing=1.2, fontsize=11.5)
    return figure


def share_of_family(gap: Measured) -> float:
    """Returns the approximation's share of the mean gap."""
    assert gap.approximation is not None
    return (gap.approximation.mean() / gap.total.mean()).item()


def report(found: dict[str, Measured], own: Measured) -> None:
    """Prints the gaps, and the paired differences from the diagonal normal's."""
    print("| q(z|x) | gap | approximation | amortisation | median | closed, paired |\n" + "| --- " * 6 + "|")
    print(f"| diagonal, as trained with the decoder | {pm(own.total)} | | | {own.total.median():.3f} | |")
    for name, gap in found.items():
        best = gap.approximation
        assert best is not None
        parts = f"{pm(best)} | {pm(gap.total - best)} | {gap.total.median():.3f}"
        print(f"| {name} | {pm(gap.total)} | {parts} | {pm(found['diagonal'].total - gap.total)} |")
    print(f"share of the gap that the family leaves, diagonal: {share_of_family(found['diagonal']):.1%}")
    noise = max(g.noise.square().sum().sqrt().item() / len(g.noise) for g in found.values())
    print(f"noise that the draws leave in a mean gap: {noise:.1e} nats at most")


def main() -> None:
    """Reads the command line, trains the encoders, writes the figure, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run with 2 latent components")
    parser.add_argument("--data", default="mnist", help="the data set that it was trained on (default: mnist)")
    parser.add_argument("--epochs", type=int, default=15, help="training of each new encoder (default: 15)")
    parser.add_argument("--images", type=int, default=200, help="test images measured (default: 200)")
    parser.add_argument("--draws", type=int, default=600, help="draws of z an image for a bound (default: 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    asked = parser.parse_args()
    base = lb.load(asked.run)
    data = lb.open_data(asked.data).binarised(lb.Binarise.DYNAMIC)
    x = data.test.examples(torch.arange(asked.images)).x
    exact = Exact.of(base, x)
    print(f"log p(x): {pm(exact.log_px)} nats over {len(x)} images", flush=True)
    print(f"error of quadrature: {exact.error.max():.1e} nats at most")
    found = {}
    for name in FAMILIES:
        vae = refitted(base, data, name, asked.epochs, asked.seed)
        torch.manual_seed(asked.seed)
        found[name] = measured(vae, x, exact, asked.draws, split=True)
        print(f"measured: {name}", flush=True)
    torch.manual_seed(asked.seed)
    own = measured(base, x, exact, asked.draws, split=False)
    with mpl.rc_context(STYLE):
        draw(found).savefig(asked.out / "theory-gap.png", dpi=130)
    report(found, own)


if __name__ == "__main__":
    main()
