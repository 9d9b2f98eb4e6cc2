"""Draws the figures of autoencoder.md from two runs, and prints its numbers.

python docs/autoencoder.py RUN_AUTOENCODER RUN_VAE --out docs/figures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, kl_divergence
from torch.nn.functional import cross_entropy, normalize

import lowerbound as lb
from lowerbound.figures import grid

STYLE: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
STYLE |= {"grid.alpha": 0.25, "axes.titlesize": 11, "axes.titlelocation": "left", "legend.frameon": False}
COLOURS, GREY = {"autoencoder": "#c8553d", "VAE": "#1f4e79"}, "#6b6b6b"
NUDGES, SHOWN_NUDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5), (0.0, 0.25, 0.5, 1.0, 1.5)


class Subject:
    """A trained model and its codes.

    Attributes:
        codes: `loc`, a draw `z` and `label` of each training example; an autoencoder's draw is its point.
        means: E[z|x] of each test example.
        fitted: The normal with the draws' mean and covariance.
        spread: The normal with the mean and covariance of E[z|x] in training, the scale of a nudge.
    """

    def __init__(self, name: str, run: Path, data: lb.Data) -> None:
        self.name, self.vae = name, lb.load(run)
        self.codes = lb.encode(self.vae, data.train, draw=True)
        self.means = lb.encode(self.vae, data.test)["loc"]
        self.fitted, self.spread = fit(self.codes["z"]), fit(self.codes["loc"])

    def p(self, z: Tensor) -> Distribution:
        """Decodes codes to a distribution over pictures."""
        with torch.no_grad():
            found: Distribution = self.vae.decoder(z.float())
        return found


class Judge:
    """Says in two ways how like a training digit a picture is; neither knows the models."""

    def __init__(self, data: lb.Data) -> None:
        seen = data.train.examples(torch.arange(len(data.train)))
        self.digits = normalize(seen.x.flatten(1))
        torch.manual_seed(0)
        self.classifier = torch.nn.Sequential(lb.nn.MLP((1, 28, 28), (256,)), torch.nn.Linear(256, 10))
        optimiser = torch.optim.Adam(self.classifier.parameters())
        for epoch in range(5):
            for index in lb.data.epoch_order(len(data.train), 0, epoch).split(100):
                optimiser.zero_grad()
                cross_entropy(self.classifier(seen.x[index]), seen.label[index]).backward()
                optimiser.step()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns, each `[N]`, 1 - cosine to the most similar training digit, and 100 where P(class) > 0.9, else 0."""
        nearest = torch.cat([(part @ self.digits.T).max(1).values for part in normalize(x.flatten(1)).split(250)])
        with torch.no_grad():
            sure = self.classifier(x).softmax(1).max(1).values > 0.9
        return (1 - nearest).double(), 100 * sure.double()


def fit(points: Tensor) -> MultivariateNormal:
    """Returns the normal with the points' mean and covariance."""
    return MultivariateNormal(points.double().mean(0), covariance_matrix=torch.cov(points.double().T))


def noise(count: int, normal: MultivariateNormal, seed: int = 0) -> Tensor:
    """Returns draws from the normal, its mean taken off; the same draws of N(0, I) lie under all normals."""
    eps = torch.randn(count, len(normal.loc), generator=lb.data.generator(seed), dtype=torch.float64)
    return eps @ normal.scale_tril.T


def samples(model: Subject, count: int = 1000) -> dict[str, Tensor]:
    """Generates in three ways."""
    z, label = model.codes["z"], model.codes["label"]
    ten = [fit(z[label == digit]) for digit in range(10)]
    mixed = torch.stack([n.loc + noise(count // 10, n, seed=digit) for digit, n in enumerate(ten)], 1).flatten(0, 1)
    return {
        "z from the prior, N(0, I)": lb.sample(model.vae, count),
        "z from a normal fitted to all codes": model.p(model.fitted.loc + noise(count, model.fitted)).mean,
        "z from ten normals, one fitted to each digit's codes": model.p(mixed).mean,
    }


def nudge(model: Subject, z: Tensor, length: float, whole: bool = True) -> Tensor:
    """Moves codes by random steps; those of length 1 are spread as the codes are, as a `whole` or by component."""
    normal = model.spread if whole else MultivariateNormal(model.spread.loc, model.spread.variance.diag())
    return z + length * noise(len(z), normal, seed=1)


def side_by_side(models: list[Subject], make: Callable[[Subject], dict[str, Tensor]], height: float) -> Figure:
    """Draws the rows of ten pictures that `make` gives for each model, one model beside the other."""
    figure = Figure(figsize=(11, height), layout="constrained")
    for panel, model in zip(figure.subfigures(1, 2, wspace=0.04), models, strict=True):
        panel.suptitle(model.name, color=COLOURS[model.name], fontweight="bold")
        rows = make(model)
        axes_of = panel.subplots(len(rows), 1, squeeze=False, height_ratios=[len(x) / 10 + 0.3 for x in rows.values()])
        for axes, (title, x) in zip(axes_of[:, 0], rows.items(), strict=True):
            axes.imshow(grid(x, 10)[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(title, fontsize=10)
    return figure


def draw_pictures(models: list[Subject], test: lb.Source) -> dict[str, Figure]:
    """Draws all figures that show decoded pictures: of the first 0, the first 1 and so on of the test set."""
    shown = torch.stack([(test.labels == digit).nonzero()[0, 0] for digit in range(10)])
    x = test.examples(shown).x

    def lines(model: Subject) -> dict[str, Tensor]:
        return {"": torch.cat([lb.interpolate(model.vae, a, b, 10) for a, b in x.split(2)])}

    def nudges(model: Subject) -> dict[str, Tensor]:
        return {f"nudge of length {t:g}": model.p(nudge(model, model.means[shown], t)).mean for t in SHOWN_NUDGES}

    def draws(model: Subject) -> dict[str, Tensor]:
        z = [lb.encode(model.vae, test, index=shown, seed=seed, draw=True)["z"] for seed in range(100)]
        made = model.p(torch.stack(z)).mean
        rows = {"x": x, "decoded E[z|x]": lb.reconstruct(model.vae, x)}
        rows["four draws from q(z|x), decoded"] = made[:4].flatten(0, 1)
        return rows | {"standard deviation of each pixel over 100 draws (white: 0.25)": 4 * made.std(0)}

    return {
        "samples": side_by_side(models, lambda m: {title: x[:30] for title, x in samples(m).items()}, 6.6),
        "interpolation": side_by_side(models, lines, 3.2),
        "nudge": side_by_side(models, nudges, 4.6),
        "draws": side_by_side(models, draws, 5.4),
    }


def draw_nudge_curves(models: list[Subject], judge: Judge, x: Tensor) -> Figure:
    """Draws what becomes of the first test examples against the length of the nudge."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for model in models:
        for whole, dash, how in ((True, "-", "full covariance"), (False, ":", "each component by itself")):
            moved = [nudge(model, model.means[: len(x)], t, whole) for t in NUDGES]
            found = [(-model.p(z).log_prob(x), *judge(model.p(z).mean)) for z in moved]
            look = {"ls": dash, "color": COLOURS[model.name], "marker": "o", "ms": 3, "label": f"{model.name}: {how}"}
            for axes, curve in zip(panels, zip(*found, strict=True), strict=True):
                axes.plot(NUDGES, [values.mean() for values in curve], **look)
    for axes, level in zip(panels[1:], judge(x), strict=True):
        axes.axhline(level.mean(), color=GREY, lw=1, ls="--", label="the test digits themselves")
    titles = "cross-entropy against x, nats", "distance to the nearest training digit", "classifier is sure, %"
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="length of the nudge", ylim=(0, None))
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
    return figure


def draw_codes(models: list[Subject]) -> Figure:
    """Draws the variances of the codes, and the codes in the plane where their means vary most, against N(0, I)."""
    figure = Figure(figsize=(11, 3.7), layout="constrained")
    spectrum, *planes = figure.subplots(1, 3)
    for axes, model in zip(planes, models, strict=True):
        variances = torch.linalg.eigvalsh(model.fitted.covariance_matrix).flip(0)
        spectrum.semilogy(range(1, len(variances) + 1), variances, color=COLOURS[model.name], label=model.name)
        plane = torch.linalg.eigh(model.spread.covariance_matrix)[1][:, -2:].flip(1)
        points, digits = model.codes["z"][:1500].double() @ plane, model.codes["label"][:1500]
        dots = axes.scatter(*points.T, c=digits, cmap="tab10", vmin=-0.5, vmax=9.5, s=7, alpha=0.7, linewidths=0)
        for radius in (1, 2, 3):
            axes.add_patch(Circle((0, 0), radius, fill=False, lw=1.2, zorder=3))
        edge = 1.05 * float(points.abs().max())
        axes.set(aspect="equal", xlim=(-edge, edge), ylim=(-edge, edge), xlabel="first direction", ylabel="second")
        axes.set_title(model.name, color=COLOURS[model.name], fontweight="bold")
    figure.colorbar(dots, ax=planes, ticks=range(10), label="digit").solids.set_alpha(1)
    spectrum.axhline(1, color=GREY, lw=1.5, ls="--", label="N(0, I)")
    spectrum.set(title="variance of the codes z", xlabel="principal direction, sorted")
    spectrum.legend(loc="lower left")
    return figure


def pm(values: Tensor, decimals: int) -> str:
    """Formats a mean and its standard error."""
    return f"{values.mean():.{decimals}f} ± {values.std() / len(values) ** 0.5:.{decimals}f}"


def print_pictures(models: list[Subject], test: lb.Source, judge: Judge, x: Tensor) -> None:
    """Prints how like digits the pictures are."""
    pairs = torch.arange(len(test)).reshape(-1, 2)
    left, right = pairs[(test.labels[pairs[:, 0]] != test.labels[pairs[:, 1]])][: len(x)].T
    halfway = (test.examples(left).x + test.examples(right).x) / 2
    sets = {"test digits | none": x, "halfway, pixel by pixel | none": halfway}
    for model in models:
        z = model.means[: len(x)]
        made = {"reconstructions": model.p(z).mean} | samples(model)
        made["halfway between codes"] = model.p((model.means[left] + model.means[right]) / 2).mean
        made |= {f"nudged by {t:g}": model.p(nudge(model, z, t)).mean for t in SHOWN_NUDGES[1:]}
        sets |= {f"{title} | {model.name}": pictures for title, pictures in made.items()}
    print("| pictures | model | distance to the nearest digit | classifier is sure, % |\n| --- | --- | --- | --- |")
    for title, (distance, sure) in zip(sets, map(judge, sets.values()), strict=True):
        print(f"| {title} | {pm(distance, 3)} | {pm(sure, 1)} |")


def measures(model: Subject, data: lb.Data) -> dict[str, str]:
    """Returns what a model costs, in nats, and where its codes lie."""
    x = data.test.examples(torch.arange(len(data.test))).x
    costs = {s: lb.evaluate(model.vae, data.split(s), num_samples=10, limit=10_000) for s in ("test", "train")}
    test, variances = costs["test"], torch.linalg.eigvalsh(model.fitted.covariance_matrix)
    prior = MultivariateNormal(torch.zeros_like(variances), torch.eye(len(variances)).double())
    found = {"distortion of a copy of x": pm((torch.special.entr(x) + torch.special.entr(1 - x)).flatten(1).sum(1), 2)}
    found |= {f"distortion, {s}": f"{e.distortion:.2f} ± {e.distortion_stderr:.2f}" for s, e in costs.items()}
    found["rate, test"] = "none" if test.rate is None else f"{test.rate:.2f} ± {test.rate_stderr:.2f}"
    found["components in use"] = f"{test.active_units} of {test.latent_dim}"
    found["length of z"] = pm(model.codes["z"].norm(dim=1), 2)
    found["variance of z by direction"] = f"{variances[0]:.4f} to {variances[-1]:.2f}"
    found["KL(fitted normal, N(0, I))"] = f"{kl_divergence(model.fitted, prior):.1f}"
    nudged = {t: -model.p(nudge(model, model.means, t)).log_prob(x) for t in SHOWN_NUDGES}
    return found | {f"distortion, nudged by {t:g}": pm(values, 2) for t, values in nudged.items()}


def main() -> None:
    """Reads the command line, writes the figures, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("vae", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    data = lb.open_data("mnist").joined()
    models = [Subject("autoencoder", asked.autoencoder, data), Subject("VAE", asked.vae, data)]
    judge, x = Judge(data), data.test.examples(torch.arange(500)).x
    with mpl.rc_context(STYLE):
        figures = draw_pictures(models, data.test) | {"codes": draw_codes(models)}
        figures["nudge-curves"] = draw_nudge_curves(models, judge, x)
        for name, figure in figures.items():
            figure.savefig(asked.out / f"autoencoder-{name}.png", dpi=130)
    print_pictures(models, data.test, judge, x)
    left, right = (measures(model, data) for model in models)
    print("\n| measure | autoencoder | VAE |\n| --- | --- | --- |")
    print("\n".join(f"| {name} | {left[name]} | {right[name]} |" for name in left))


if __name__ == "__main__":
    main()
