"""Figures of a run: samples, reconstructions, curves, an interpolation, a map of the latent means.

Each function draws one figure into one file. Pictures of x are written pixel by pixel, enlarged without smoothing;
the rest is drawn with matplotlib's object interface, so no global state is touched and no window is ever opened.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lowerbound.checkpoint import write_file
from lowerbound.data import Batch, Data, Source, generator
from lowerbound.errors import UsageError, disk_errors
from lowerbound.metrics import principal_plane
from lowerbound.model import VAE
from lowerbound.tasks import encode, interpolate, reconstruct, sample

_BACKGROUND = 1.0
_SHOWN_POINTS = 5000
_NAME_SIZE, _NAME_MARGIN, _LONGEST_NAME = 15, 8, 24
_INK, _ACCENT = "#1f4e79", "#c8553d"
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def is_picture(event_shape: tuple[int, ...]) -> bool:
    """Returns whether x can be shown as a grey or colour picture: shape (1 or 3, height, width)."""
    return len(event_shape) == 3 and event_shape[0] in (1, 3)


def draw_run(folder: Path, vae: VAE, data: Data, metrics: list[dict[str, Any]]) -> list[Path]:
    """Draws all figures of a trained model into a folder.

    Args:
        folder: Where; made if need be.
        vae: The model.
        data: Its data; reconstructions and the map show validation examples, or training examples where there is no
            validation, so that the test split stays unseen.
        metrics: The lines of metrics.jsonl.

    Returns:
        The files written.

    Raises:
        ResourceError: The disk refuses.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        seen = data.train if data.valid is None else data.valid
        written = [draw_curves(metrics, folder / "curves.png")]
        written.append(draw_latent_map(vae, seen, folder / "latent.png"))
        if is_picture(data.event_shape):
            name_of = str if data.view.reading is None else data.view.reading.class_name
            written.append(draw_samples(vae, folder / "samples.png", name_of))
            shown = seen.examples(_one_of_each(seen, 10))
            written.append(draw_reconstructions(vae.given(shown.label), shown.x, folder / "reconstructions.png"))
            ends = seen.examples(_two_of_each(seen, 5)) if vae.classes else shown
            if len(ends.x) > 1:
                written.append(draw_interpolations(vae, ends, folder / "interpolation.png"))
    return written


def grid(x: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lays pictures out in rows.

    Args:
        x: `[N, C, H, W]` in [0, 1]; values outside are cut off.
        columns: Pictures a row.
        gap: Pixels between them.

    Returns:
        One picture, `[C, rows * (H + gap) + gap, columns * (W + gap) + gap]`.

    Example:
        >>> grid(torch.zeros(5, 1, 8, 8), columns=3).shape
        torch.Size([1, 22, 32])
    """
    count, channels, height, width = x.shape
    rows = -(-count // columns)
    cells = torch.full((rows * columns, channels, height + gap, width + gap), _BACKGROUND)
    cells[:count, :, gap:, gap:] = x.clamp(0, 1)
    tiled = cells.reshape(rows, columns, channels, height + gap, width + gap).permute(2, 0, 3, 1, 4)
    tiled = tiled.reshape(channels, rows * (height + gap), columns * (width + gap))
    return torch.nn.functional.pad(tiled, (0, gap, 0, gap), value=_BACKGROUND)


def save_grid(x: Tensor, path: Path, columns: int | None = None, names: Sequence[str] = ()) -> Path:
    """Writes pictures as one PNG grid, enlarged so that a picture is about 80 pixels wide.

    Args:
        x: `[N, C, H, W]` with 1 or 3 channels.
        path: The file.
        columns: Pictures a row; as square a grid as can be by default.
        names: What is written before each row; nothing by default.

    Raises:
        UsageError: The examples are no pictures.
        ResourceError: The disk refuses.
    """
    if not is_picture(tuple(x.shape[1:])):
        raise UsageError(
            f"Examples of shape {tuple(x.shape[1:])} are no pictures, so there is no PNG of them. Use --out FILE.npz."
        )
    picture = grid(x, columns or round(len(x) ** 0.5 + 0.49))
    levels = (picture * 255).round().to(torch.uint8)
    image = Image.fromarray(levels[0].numpy() if len(levels) == 1 else levels.permute(1, 2, 0).numpy())
    scale = max(1, round(80 / x.shape[-1]))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    content = io.BytesIO()
    (_with_names(image, names) if names else image).save(content, "PNG")
    write_file(path, content.getvalue())
    return path


def _with_names(image: Image.Image, names: Sequence[str]) -> Image.Image:
    """Returns a picture whose rows have names, on its background, to their left."""
    # The font of the other figures, which has more letters than Pillow's own.
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _NAME_SIZE)
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    margin = _NAME_MARGIN + round(max(font.getlength(name) for name in shown))
    wide = Image.new(image.mode, (margin + image.width, image.height), "white")
    wide.paste(image, (margin, 0))
    draw = ImageDraw.Draw(wide)
    for row, name in enumerate(shown):
        # "rm": the point is at the right end of the text, half-way up.
        draw.text((margin, (row + 0.5) * image.height / len(names)), name, fill="black", font=font, anchor="rm")
    return wide


def in_rows(rows: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Fills rows of pictures up with blank ones to the same length; returns them all, and that length.

    Example:
        >>> x, columns = in_rows([torch.zeros(3, 1, 8, 8), torch.zeros(2, 1, 8, 8)])
        >>> x.shape, columns
        (torch.Size([6, 1, 8, 8]), 3)
    """
    columns = max(len(row) for row in rows)
    filled = [torch.cat([r, r.new_full((columns - len(r), *r.shape[1:]), _BACKGROUND)]) for r in rows]
    return torch.cat(filled), columns


def draw_reconstructions(vae: VAE, x: Tensor, path: Path) -> Path:
    """Draws examples above what the model makes of them."""
    rows = [("x", x), ("decoded mean of q(z|x)", reconstruct(vae, x))]
    if vae.has_density:
        rows.append(("draw from p(x|z), for a draw of z from q(z|x)", reconstruct(vae, x, seed=1, draw=True)))
    return _draw_rows(rows, path)


def draw_interpolations(vae: VAE, ends: Batch, path: Path, steps: int = 11) -> Path:
    """Draws straight lines in z between neighbouring examples, decoded; a conditional model's are of one class."""
    x, label = ends.x, ends.label
    strips = [
        interpolate(vae, x[i], x[i + 1], steps, label=None if label is None else label[i : i + 2])
        for i in range(0, min(len(x) - 1, 10), 2)
    ]
    return save_grid(torch.cat(strips), path, columns=steps)


def draw_samples(vae: VAE, path: Path, name_of: Callable[[int], str] = str) -> Path:
    """Draws 64 samples; a conditional model's in rows, of up to 20 classes, each with its name."""
    if not vae.classes:
        return save_grid(sample(vae, 64), path)
    classes = vae.classes[:20]
    label = torch.tensor(classes).repeat_interleave(8)
    return save_grid(sample(vae, len(label), label=label), path, columns=8, names=[name_of(c) for c in classes])


def draw_curves(metrics: list[dict[str, Any]], path: Path) -> Path:
    """Draws loss, distortion and rate against updates, in training and on validation; of a ladder each layer's rate."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        panels = figure.subplots(1, 3)
        drawn = {"loss (minimised)": "loss", "distortion: -E log p(x|z)": "distortion", "rate: KL(q || p)": "rate"}
        for axes, (title, key) in zip(panels, drawn.items(), strict=True):
            values = _curve(axes, metrics, key, "training", _INK)
            values += _curve(axes, metrics, f"valid_{key}", "validation", _ACCENT)
            if key != "rate" and len(values) > 10:
                # The first points of a training are far off and would flatten the rest.
                low, high = min(values), sorted(values)[int(0.9 * len(values))]
                axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
            axes.set_title(title, loc="left")
            axes.set_xlabel("updates")
        panels[0].set_ylabel("nats per example")
        panels[0].legend()
        if layers := [key for key in metrics[-1] if re.fullmatch(r"rate_\d+", key)]:
            colours = mpl.colormaps["viridis"].resampled(len(layers) + 1)
            for place, key in enumerate(layers):
                _curve(panels[2], metrics, key, f"layer {place + 1}", mpl.colors.to_hex(colours(place)))
            panels[2].legend(handles=panels[2].get_lines()[-len(layers) :])
        figure.savefig(path, dpi=130)
    return path


def draw_latent_map(vae: VAE, source: Source, path: Path) -> Path:
    """Draws the posterior means of up to 5,000 examples, coloured by label; beyond 2 dimensions, their main plane."""
    index = torch.randperm(len(source), generator=generator(0))[:_SHOWN_POINTS]
    encoded = encode(vae, source, index=index)
    points, shown = principal_plane(encoded["loc"].flatten(1))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6, 5.4), layout="constrained")
        axes = figure.subplots()
        label = encoded.get("label")
        if label is None:
            axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.6, linewidths=0, color=_INK)
        else:
            # By their places among those that there are: a label may be any number.
            names, place = label.unique(return_inverse=True)
            classes = len(names)
            colours = mpl.colormaps["tab10" if classes <= 10 else "nipy_spectral"].resampled(max(classes, 2))
            dots = axes.scatter(
                points[:, 0],
                points[:, 1],
                c=place,
                s=5,
                alpha=0.7,
                linewidths=0,
                cmap=colours,
                vmin=-0.5,
                vmax=classes - 0.5,
            )
            ticks = range(0, classes, -(-classes // 20))
            bar = figure.colorbar(dots, ax=axes, ticks=ticks, label="label")
            bar.set_ticklabels([str(names[tick].item()) for tick in ticks])
            bar.solids.set_alpha(1)  # type: ignore[union-attr]
        axes.set_aspect("equal", adjustable="datalim")
        axes.locator_params(nbins=6)  # numbers of four digits would run into one another
        flat = encoded["loc"].flatten(1).shape[1] <= 2
        axes.set_xlabel("z₁" if flat else "first principal component of E[z|x]")
        axes.set_ylabel("z₂" if flat else "second")
        axes.set_title(
            "posterior means" if flat else f"posterior means, {shown:.0%} of their variance shown", loc="left"
        )
        figure.savefig(path, dpi=130)
    return path


def _draw_rows(rows: list[tuple[str, Tensor]], path: Path) -> Path:
    with mpl.rc_context(_STYLE):
        count = len(rows[0][1])
        # Not narrower than its titles.
        figure = Figure(figsize=(max(0.85 * count, 5.0), 1.12 * len(rows)), layout="constrained")
        for axes, (title, x) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
            picture = grid(x, count)
            axes.imshow(
                picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
            axes.set_axis_off()
            axes.set_title(title, loc="left", fontsize=9)
        figure.savefig(path, dpi=130)
    return path


def _curve(axes: Axes, metrics: list[dict[str, Any]], key: str, label: str, colour: str) -> list[float]:
    lines = [line for line in metrics if line.get(key) is not None]
    marker = "o" if 0 < len(lines) <= 30 else None
    values = [float(line[key]) for line in lines]
    if lines:
        axes.plot([line["step"] for line in lines], values, color=colour, label=label, marker=marker, ms=3)
    return values


def _one_of_each(source: Source, count: int) -> Tensor:
    """Returns the first example of each label in the labels' order; the first examples where that is not enough."""
    if source.labels is not None and len(found := source.labels.unique()) >= count:
        return torch.stack([(source.labels == k).nonzero()[0, 0] for k in found[:count]])
    return torch.arange(min(count, len(source)))


def _two_of_each(source: Source, count: int) -> Tensor:
    """Returns the first two examples of each of the first labels; twice the same where there is but one."""
    assert source.labels is not None  # a conditional model was trained on it
    labels = source.labels.cpu()
    places = [(labels == k).nonzero()[:2, 0] for k in labels.unique()[:count]]
    return torch.cat([place.expand(2) if len(place) == 1 else place for place in places])
