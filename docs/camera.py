"""The figures and tables of docs/camera.md, of a run of the recipe camera.

    lowerbound train camera --data camera --out runs/camera
    python docs/camera.py runs/camera

What the encoder says of the angle is held against the truth of Bayes' rule: the renderer is known, so p(angle|x) is a
sum over a grid of kinds, angles and blurs (`truth`).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

import lowerbound as lb
from lowerbound.checkpoint import RunFolder
from lowerbound.data import camera, generator
from lowerbound.experiment import objective_of
from lowerbound.objectives import WithFactors

STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "savefig.facecolor": "white"}
ORANGE, BLUE, GREY = "#d1701f", "#2a6fb0", "#9a9a9a"
KIND, ANGLE, DEFOCUS = 0, 1, 2
# The photograph whose angle is asked for, further and further out of focus.
SHOWN_KIND, SHOWN_ANGLE = "bird", 35.0
SHOWN_DEFOCUS = (0.0, 1.0, 2.0, 3.0)
COMPARED = 48
# Training photographs behind the calibration of one code.
NEIGHBOURS = 60


@dataclass(frozen=True)
class Truth:
    """The posterior of the angle, by Bayes' rule on a grid.

    Attributes:
        angle: The grid, degrees, `[A]`.
        density: p(angle|x) on it, per degree, `[A]`.
        kind: p(kind|x), `[5]`.
    """

    angle: Tensor
    density: Tensor
    kind: Tensor

    @property
    def mean(self) -> float:
        """Its mean in degrees."""
        return float((self.angle * self.density).sum() / self.density.sum())

    @property
    def spread(self) -> float:
        """Its standard deviation in degrees."""
        weight = self.density / self.density.sum()
        return float((weight * (self.angle - self.mean) ** 2).sum().sqrt())


def log_joint(x: Tensor, kind: int, angle: Tensor, defocus: Tensor) -> Tensor:
    """Returns log p(x|kind, angle, defocus) on a grid, `[angles, defocuses]`."""
    rows = []
    for one in angle.split(64):
        grid = torch.cartesian_prod(one, defocus)
        pictures = camera.render(torch.full((len(grid),), kind), grid[:, 0], grid[:, 1])
        rows.append(camera.log_likelihood(x, pictures).reshape(len(one), len(defocus)))
    return torch.cat(rows)


def truth(x: Tensor) -> Truth:
    """Returns p(angle|x): everywhere on a coarse grid first, then on a fine one where the mass is."""
    coarse, blurs = torch.arange(-90, 90.5, 3), torch.linspace(*camera.DEFOCUS, 7)
    found = torch.stack([log_joint(x, kind, coarse, blurs) for kind in range(len(camera.KINDS))])
    kind, place, blur = (int(i) for i in torch.unravel_index(found.argmax(), found.shape))
    low, high = max(-90.0, float(coarse[place]) - 9), min(90.0, float(coarse[place]) + 9)
    angle = torch.arange(low, high + 1e-6, 0.1)
    near = torch.linspace(max(0.0, float(blurs[blur]) - 0.5), min(3.0, float(blurs[blur]) + 0.5), 11)
    fine = log_joint(x, kind, angle, near).logsumexp(1).softmax(0)
    return Truth(angle, fine / 0.1, found.flatten(1).logsumexp(1).softmax(0))


class Inference:
    """What a run says of the angle: q(z|x) of the angle's component, as it is and calibrated on training data."""

    def __init__(self, run: Path, data: lb.Data) -> None:
        saved = RunFolder(run).read()
        objective = objective_of(saved.record)
        if not isinstance(objective, WithFactors):
            raise SystemExit(
                f"{run} was told no factors, so no component of its z is the angle; train with --labelled."
            )
        self.vae, self.objective = saved.vae.eval(), objective
        assert data.train.factors is not None
        self.codes = lb.encode(self.vae, data.train, draw=True)["z"]
        self.angles = data.train.factors.values[:, ANGLE]

    def calibrated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean and standard deviation of the integral of p(angle|z) q(z|x) over z, degrees, `[B]` each.

        p(angle|z) is a line with normal errors through the true angles of the training photographs whose draws of z are
        the nearest: it says where the component is off, and how far a code leaves the angle open.
        """
        with torch.no_grad():
            q = self.vae.encoder(x)
        near = torch.cat(
            [torch.cdist(part, self.codes).topk(NEIGHBOURS, largest=False).indices for part in q.mean.split(200)]
        )
        offset = self.codes[near] - q.mean[:, None]
        line = torch.cat([torch.ones_like(offset[..., :1]), offset], 2)
        target = self.angles[near].unsqueeze(2)
        solved = torch.linalg.lstsq(line, target).solution
        left = (target - line @ solved).square().sum((1, 2)) / (NEIGHBOURS - line.shape[2])
        spread = (solved[:, 1:, 0] * q.stddev).square().sum(1)
        return solved[:, 0, 0], (left + spread).sqrt()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the means and standard deviations of q over all factors, in their own units, `[B, F]` each."""
        centres, widths = torch.tensor(self.objective.centres), torch.tensor(self.objective.widths)
        with torch.no_grad():
            q = self.vae.encoder(x)
        count = len(centres)
        return centres + widths * q.mean[:, :count], widths * q.stddev[:, :count]

    def z(self, factors: Tensor) -> Tensor:
        """Returns the z that stands for factors, `[B, F]`; other components are 0."""
        centres, widths = torch.tensor(self.objective.centres), torch.tensor(self.objective.widths)
        z = torch.zeros(len(factors), self.vae.latent_shape[0])
        z[:, : len(centres)] = (factors - centres) / widths
        return z

    def decode(self, factors: Tensor) -> Tensor:
        """Returns the means of p(x|z) there, `[B, 1, 32, 32]`."""
        with torch.no_grad():
            mean: Tensor = self.vae.decoder(self.z(factors)).mean
        return mean


def photograph(kind: str, angle: float, defocus: float, seed: int = 0) -> Tensor:
    """Takes a photograph, `[1, 32, 32]`."""
    picture = camera.render(torch.tensor([camera.KINDS.index(kind)]), torch.tensor([angle]), torch.tensor([defocus]))
    return camera.expose(picture, generator(seed))[0] / 255.0


def wall(x: Tensor, columns: int) -> Tensor:
    """Puts pictures `[N, 1, 32, 32]` side by side, a white line between them, `[H, W]`."""
    framed = torch.nn.functional.pad(x.clamp(0, 1), (1, 1, 1, 1), value=1.0)
    return framed.reshape(-1, columns, 34, 34).permute(0, 2, 1, 3).reshape(-1, columns * 34)


def show(axes: mpl.axes.Axes, x: Tensor, columns: int, title: str = "") -> None:
    """Shows a wall of pictures."""
    axes.imshow(wall(x, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()


def draw_photographs(data: lb.Data) -> Figure:
    """Draws what the source is made of."""
    figure = Figure(figsize=(9, 9.4), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[5, 4.2])
    angles = torch.linspace(-90, 90, 9)
    every = torch.cartesian_prod(torch.arange(5.0), angles)
    title = "five kinds of figure, the camera from -90 to 90 degrees (no noise, in focus)"
    show(above, camera.render(every[:, 0].long(), every[:, 1], torch.zeros(len(every))), 9, title)
    show(below, data.train.examples(torch.arange(36)).x, 9, "the first photographs of the training set")
    return figure


def draw_traversal(infer: Inference) -> Figure:
    """Draws what becomes of a photograph when one component of z is moved."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    rows = figure.subplots(6, 1)
    start = torch.tensor([[1.0, 40.0, 0.0]])
    spans = {KIND: torch.arange(5.0), ANGLE: torch.linspace(-80, 80, 9), DEFOCUS: torch.linspace(0, 3, 7)}
    titles = ("the kind", "the angle", "the defocus")
    for (factor, values), title in zip(spans.items(), titles, strict=True):
        moved = start.repeat(len(values), 1)
        moved[:, factor] = values
        names = camera.KINDS if factor == KIND else [f"{v:g}" for v in values.tolist()]
        show(rows[2 * factor], infer.decode(moved), len(values), f"decoded, {title} moved: {', '.join(names)}")
        true = camera.render(moved[:, KIND].long(), moved[:, ANGLE], moved[:, DEFOCUS])
        show(rows[2 * factor + 1], true, len(values), "what the renderer makes of the same factors")
    return figure


def draw_posterior(infer: Inference) -> Figure:
    """Draws q(angle|x) and p(angle|x) of one photograph, sharp and more and more out of focus."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(2, len(SHOWN_DEFOCUS), height_ratios=[1, 1.25])
    for (above, below), defocus in zip(panels.T, SHOWN_DEFOCUS, strict=True):
        x = photograph(SHOWN_KIND, SHOWN_ANGLE, defocus)
        show(above, x[None], 1, "in focus" if defocus == 0 else f"a blur of {defocus:g} px")
        exact = truth(x)
        mean, spread = (float(v[0]) for v in infer.calibrated(x[None]))
        raw = torch.distributions.Normal(*(float(v[0, ANGLE]) for v in infer(x[None])))
        angle = torch.linspace(SHOWN_ANGLE - 12, SHOWN_ANGLE + 12, 800)
        q = torch.distributions.Normal(mean, spread).log_prob(angle).exp()
        below.fill_between(exact.angle, exact.density, color=GREY, alpha=0.5, lw=0, label="p(angle | x), exact")
        below.plot(angle, q, color=ORANGE, lw=2, label="q(angle | x), calibrated")
        below.plot(angle, raw.log_prob(angle).exp(), color=ORANGE, lw=1, ls="--", label="q as it is read off")
        below.axvline(SHOWN_ANGLE, color="black", lw=0.8, ls=":", label="the true angle")
        below.set(xlim=(angle[0], angle[-1]), yticks=[], ylim=(0, None), xlabel="degrees")
        below.spines["left"].set_visible(False)
        below.set_title(f"p: {exact.mean:.1f} ± {exact.spread:.1f}\nq: {mean:.1f} ± {spread:.1f}", fontsize=10)
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def compared(infer: Inference, data: lb.Data) -> dict[str, Tensor]:
    """Returns, of some test photographs, their defocus and what both posteriors say of the angle, `[N]` each."""
    batch = data.test.examples(torch.arange(COMPARED))
    assert batch.factors is not None
    exact = [truth(x) for x in batch.x]
    mean, spread = infer.calibrated(batch.x)
    return {
        "defocus": batch.factors[:, DEFOCUS],
        "angle": batch.factors[:, ANGLE],
        "p mean": torch.tensor([t.mean for t in exact]),
        "p spread": torch.tensor([t.spread for t in exact]),
        "p kind": torch.stack([t.kind.max() for t in exact]),
        "q mean": mean,
        "q spread": spread,
    }


def draw_widths(found: dict[str, Tensor]) -> Figure:
    """Draws how wide both posteriors are against the defocus."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(found["defocus"], found["q spread"], ".", color=ORANGE, label="q(angle | x), calibrated")
    axes.semilogy(found["defocus"], found["p spread"], ".", color="#666666", label="p(angle | x), exact")
    axes.set(xlabel="blur, pixels", ylabel="standard deviation, degrees", title="The less a photograph tells")
    axes.legend()
    return figure


def print_table(infer: Inference, data: lb.Data, found: dict[str, Tensor]) -> None:
    """Prints how far off the angle is, and how wide both posteriors are, by the defocus."""
    everything = data.test.examples(torch.arange(len(data.test)))
    assert everything.factors is not None
    angle, blur = everything.factors[:, ANGLE], everything.factors[:, DEFOCUS]
    mean, spread = infer.calibrated(everything.x)
    error, raw = (mean - angle).abs(), (infer(everything.x)[0][:, ANGLE] - angle).abs()
    exact_error = (found["p mean"] - found["angle"]).abs()
    heads = "as read off: error", "calibrated: error", "width", "truth within 2 widths", "exact: error", "width"
    print("| blur, pixels | " + " | ".join(heads) + " |\n|" + " --- |" * (len(heads) + 1))
    for low, high in ((0, 0.5), (0.5, 1), (1, 2), (2, 3)):
        rows, some = (b.ge(low) & b.lt(high) for b in (blur, found["defocus"]))
        inside = (error[rows] < 2 * spread[rows]).double().mean()
        told = [raw[rows].median(), error[rows].median(), spread[rows].median(), inside, exact_error[some].median()]
        told.append(found["p spread"][some].median())
        print(f"| {low:g} to {high:g} | " + " | ".join(f"{float(v):.2f}" for v in told) + " |")
    print(f"\nThe least p(kind|x) of the likeliest kind: {float(found['p kind'].min()):.4f}")


def main() -> None:
    """Reads the command line, writes the figures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    asked = parser.parse_args()
    data = lb.open_data("camera")
    infer = Inference(asked.run, data)
    with mpl.rc_context(STYLE):
        figures = {
            "photographs": draw_photographs(data),
            "traversal": draw_traversal(infer),
            "posterior": draw_posterior(infer),
        }
        found = compared(infer, data)
        figures["widths"] = draw_widths(found)
        for name, figure in figures.items():
            figure.savefig(asked.out / f"camera-{name}.png", dpi=130)
    print_table(infer, data, found)


if __name__ == "__main__":
    main()
