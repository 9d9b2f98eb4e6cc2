"""Draws theory-posterior.png: p(z|x) by quadrature beside the encoder's q(z|x), from a run with 2 latent components.

lowerbound train mlp --data mnist --latent-dim 2 --width 256 --epochs 60 --precision fp32 --out runs/plane
OMP_NUM_THREADS=1 python docs/posterior.py runs/plane --data mnist --out docs/figures

Which images are shown follows a rule: of the first test images, ordered by KL(q(z|x) || p(z|x)), those at fixed ranks
from the best to the worst. For these the KL is had in two ways that share nothing but the model: as log p(x) - ELBO
(an adaptive grid for the one, draws from q for the other), and as the integral of q log(q / p) on another grid.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

import lowerbound as lb

STYLE: Any = {"font.size": 13, "axes.titlelocation": "left", "legend.frameon": False}
Q_COLOUR, P_COLOURS = "#c8553d", ("#dbe6f0", "#94b5d3", "#3f78ad")
MASSES = (0.99, 0.9, 0.5)
RANKS = {0.0: "best", 0.25: "rank 25 %", 0.5: "median", 0.75: "rank 75 %", 0.95: "rank 95 %", 1.0: "worst"}
POINTS = 301


@dataclass(frozen=True)
class Plane:
    """p(z|x) and q(z|x) of one image on one grid.

    Attributes:
        axes: The grid's points along each component, `[2, P]`.
        log_p: log p(z|x), `[P, P]`.
        log_q: log q(z|x), `[P, P]`.
    """

    axes: Tensor
    log_p: Tensor
    log_q: Tensor

    @classmethod
    def of(cls, vae: lb.VAE, x: Tensor, reached: Tensor) -> Plane:
        """Evaluates both for one image `[1, *event]` on a grid over what p(z|x) reaches (`[2, 2]`) and q does."""
        q = vae.encoder(x)
        ends = torch.stack([q.mean[0] - 8 * q.stddev[0], q.mean[0] + 8 * q.stddev[0]], 1)
        low, high = torch.cat([reached.to(ends), ends], 1).aminmax(dim=1)
        axes = torch.stack([torch.linspace(a, b, POINTS, dtype=x.dtype) for a, b in zip(low, high, strict=True)])
        z = torch.cartesian_prod(*axes)[:, None]
        log_joint = torch.cat([vae.decoder(part).log_prob(x) + vae.prior().log_prob(part) for part in z.split(2000)])
        cell = (axes[:, 1] - axes[:, 0]).log().sum()
        log_p = log_joint[:, 0] - log_joint.logsumexp(0) - cell
        return cls(axes, log_p.reshape(POINTS, POINTS), q.log_prob(z).reshape(POINTS, POINTS))

    @property
    def cell(self) -> Tensor:
        """The area that a point of the grid stands for."""
        return (self.axes[:, 1] - self.axes[:, 0]).prod()

    @property
    def kl(self) -> float:
        """KL(q(z|x) || p(z|x)), nats, as an integral over the grid."""
        return ((self.log_q.exp() * (self.log_q - self.log_p)).sum() * self.cell).item()

    def level(self, log_density: Tensor, mass: float) -> float:
        """Returns the log-density above which a region of highest density holds `mass`."""
        falling = log_density.flatten().sort(descending=True).values
        held = (falling.exp() * self.cell).cumsum(0)
        return falling[int((held < mass).sum())].item()

    def window(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Returns the ends of the square that holds 99.9 % of p(z|x) and of q(z|x)."""
        shown = torch.zeros_like(self.log_p, dtype=torch.bool)
        for log_density in (self.log_p, self.log_q):
            shown |= log_density >= self.level(log_density, 0.999)
        places = [axis[shown.any(1 - d)] for d, axis in enumerate(self.axes)]
        half = 0.55 * max((axis.max() - axis.min()).item() for axis in places)
        centres = [((axis.max() + axis.min()) / 2).item() for axis in places]
        return (centres[0] - half, centres[0] + half), (centres[1] - half, centres[1] + half)


@dataclass(frozen=True)
class Exact:
    """What quadrature says of each image.

    Attributes:
        log_px: log p(x), nats, `[N]`.
        error: The error of quadrature, `[N]`.
        ends: The ends of what p(z|x) reaches along each component, `[N, 2, 2]`.
        mode: The point of the grid at which p(z|x) is highest, `[N, 2]`.
    """

    log_px: Tensor
    error: Tensor
    ends: Tensor
    mode: Tensor

    @classmethod
    def of(cls, vae: lb.VAE, x: Tensor) -> Exact:
        """Integrates a few images at a time: the grids of all are moved until the last one is in place."""
        parts = [cls._of(vae, part) for part in x.split(5)]
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    @classmethod
    def _of(cls, vae: lb.VAE, x: Tensor) -> Exact:
        found = lb.evidence.quadrature_evidence(vae, x, points=75)
        if (found.error > 0.03).any():
            # A p(z|x) that lies in several places far apart leaves wide spaces between the points.
            found = lb.evidence.quadrature_evidence(vae, x, points=201)
        places = found.log_posterior.flatten(1).argmax(1)
        points = found.axes.shape[-1]
        index = torch.stack([places // points, places % points], 1)[..., None]
        return cls(found.log_px, found.error, found.axes[..., [0, -1]], found.axes.gather(2, index)[..., 0])


@torch.no_grad()
def bound(vae: lb.VAE, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Returns the ELBO for each image and the standard error that its draws leave."""
    # log w whole, without the closed form of the KL to the prior: near p(z|x) the noise of its parts cancels.
    log_w = torch.cat([vae.trace(one, draws).log_w.double() for one in x.split(1)], 1)
    return log_w.mean(0), log_w.std(0) / draws**0.5


def emptiest_corner(plane: Plane, across: tuple[float, float], up: tuple[float, float]) -> tuple[float, float]:
    """Returns the lower left end, in parts of the axes, of the corner in which the least is drawn."""
    drawn = sum(d - plane.level(d, MASSES[0]) > 0 for d in (plane.log_p, plane.log_q))
    first, second = ((a - low) / (high - low) for a, (low, high) in zip(plane.axes, (across, up), strict=True))
    busy = {}
    for left in (0.015, 0.735):
        for low in (0.735, 0.015):
            columns, rows = (first - left - 0.125).abs() < 0.15, (second - low - 0.125).abs() < 0.15
            busy[left, low] = int(drawn[columns][:, rows].sum())
    return min(busy, key=lambda corner: busy[corner])


def draw_panel(axes: Axes, plane: Plane, x: Tensor, title: str) -> None:
    """Draws regions of p(z|x) filled and of q(z|x) as lines, and the image in a corner."""
    first, second = plane.axes
    levels = [plane.level(plane.log_p, mass) for mass in MASSES]
    axes.contourf(first, second, plane.log_p.T, [*levels, float("inf")], colors=P_COLOURS)
    lines = [plane.level(plane.log_q, mass) for mass in MASSES]
    axes.contour(first, second, plane.log_q.T, lines, colors=Q_COLOUR, linewidths=(1.2, 1.6, 2.2), linestyles="solid")
    across, up = plane.window()
    axes.set(xlim=across, ylim=up, aspect="equal", title=title)
    axes.locator_params(nbins=4)
    corner = axes.inset_axes((*emptiest_corner(plane, across, up), 0.25, 0.25))
    corner.imshow(x[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    corner.set(xticks=[], yticks=[])


def draw(x: Tensor, planes: list[Plane]) -> Figure:
    """Draws one panel for each image."""
    figure = Figure(figsize=(11, 8.2), layout="constrained")
    panels = figure.subplots(2, 3)
    for axes, image, plane, name in zip(panels.flat, x, planes, RANKS.values(), strict=True):
        draw_panel(axes, plane, image, f"{name}: KL = {plane.kl:.3g} nats")
    for axes in panels[1]:
        axes.set_xlabel("z₁")
    for axes in panels[:, 0]:
        axes.set_ylabel("z₂")
    shades = [Patch(color=c, label=f"p(z|x): {m:.0%}") for c, m in zip(P_COLOURS[::-1], MASSES[::-1], strict=True)]
    widths = zip((2.2, 1.6, 1.2), MASSES[::-1], strict=True)
    lines = [Line2D([], [], color=Q_COLOUR, lw=w, label=f"q(z|x): {m:.0%}") for w, m in widths]
    figure.legend(
        handles=[h for pair in zip(shades, lines, strict=True) for h in pair], loc="outside lower center", ncols=3
    )
    return figure


def main() -> None:
    """Reads the command line, writes the figure, prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run with 2 latent components")
    parser.add_argument("--data", default="mnist", help="the data set that it was trained on (default: mnist)")
    parser.add_argument("--images", type=int, default=200, help="how many test images are ordered (default: 200)")
    parser.add_argument("--draws", type=int, default=2000, help="draws of z an image for the ELBO (default: 2000)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    asked = parser.parse_args()
    torch.manual_seed(0)
    vae = lb.load(asked.run)
    test = lb.open_data(asked.data).binarised(lb.Binarise.DYNAMIC).test
    x = test.examples(torch.arange(asked.images)).x
    exact = Exact.of(vae, x)
    elbo, stderr = bound(vae, x, asked.draws)
    kl = exact.log_px - elbo
    order = kl.argsort()
    chosen = torch.stack([order[round(rank * (len(order) - 1))] for rank in RANKS])
    with torch.no_grad():
        # float64: what is compared below is to differ by the noise of the draws and by nothing else.
        vae = vae.double()
        pictures = x[chosen].double()
        planes = [Plane.of(vae, one[None], exact.ends[i]) for one, i in zip(pictures, chosen, strict=True)]
    with mpl.rc_context(STYLE):
        draw(pictures, planes).savefig(asked.out / "theory-posterior.png", dpi=130)
    print(f"log p(x), mean over {len(x)} images: {exact.log_px.mean():.2f} nats")
    print(f"mean error of quadrature: {exact.error.mean():.1e}, largest: {exact.error.max():.1e} nats")
    print(f"KL(q || p(z|x)): mean {kl.mean():.3f} ± {kl.std() / len(kl) ** 0.5:.3f}, median {kl.median():.3f} nats")
    print("\n| rank | image | log p(x) | log p(x) - ELBO | integral of q log(q/p) |\n| --- | --- | --- | --- | --- |")
    for name, i, plane in zip(RANKS.values(), chosen, planes, strict=True):
        print(f"| {name} | {i} | {exact.log_px[i]:.2f} | {kl[i]:.4f} ± {stderr[i]:.4f} | {plane.kl:.4f} |")


if __name__ == "__main__":
    main()
