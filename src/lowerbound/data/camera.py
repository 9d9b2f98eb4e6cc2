r"""The source `camera`: photographs of figures, and the truth about each.

A photograph x has three causes: the *kind* of figure, the *angle* of the camera that goes round it, and the *defocus*
of its lens. Nature, which for once is us, makes it as

$$x = \mathrm{levels}\big(\mathrm{blur}_s(\mathrm{view}_k(a)) + \sigma \epsilon\big), \qquad \epsilon \sim N(0, I)$$

with k one of `KINDS`, the angle a uniform in [-90, 90] degrees and the lens's Gaussian blur s uniform in [0, 3] pixels,
all independent. The sensor's noise has \(\sigma\) = `NOISE`, and the values are rounded to 8 bits. As p(x|k, a, s) is
known, so is the posterior of the causes, on a grid (docs/camera.md): what an encoder says can be held against it.

No figure looks the same from two angles of that range. A view between two whole degrees is the mixture of both; nothing
moves by more than a fifth of a pixel from one to the next.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lowerbound.data.order import generator
from lowerbound.data.solids import Ellipsoid, Solid, box, cone, gable, views
from lowerbound.data.source import ArraySource, Factors

KINDS = ("chair", "mug", "bird", "church", "stairs")
SIZE = 32
ANGLES = (-90.0, 90.0)
DEFOCUS = (0.0, 3.0)
NOISE = 0.05
# What the name `camera` means; it changes no more.
_SEED = 1839
_TRAIN, _VALID, _TEST = 20_000, 2_000, 2_000
_CHUNK = 4_000

_FIGURES: dict[str, tuple[Solid, ...]] = {
    "chair": (
        box((-0.6, -0.6, 0.62), (0.6, 0.6, 0.8)),
        box((-0.6, 0.42, 0.8), (0.6, 0.6, 1.75), 0.75),
        *(box((x, y, 0.0), (x + 0.18, y + 0.18, 0.62)) for x in (-0.6, 0.42) for y in (-0.6, 0.42)),
    ),
    "mug": (
        cone((0.0, 0.15), 0.62, 0.0, 1.35, sides=20, tip=math.inf),
        box((-0.12, -0.98, 0.30), (0.12, -0.4, 0.48), 0.7),
        box((-0.12, -0.98, 0.92), (0.12, -0.4, 1.10), 0.7),
        box((-0.12, -1.04, 0.30), (0.12, -0.86, 1.10), 0.7),
    ),
    "bird": (
        Ellipsoid((0.0, 0.1, 0.55), (0.5, 0.8, 0.5)),
        Ellipsoid((0.0, -0.55, 1.2), (0.34, 0.34, 0.34)),
        cone((0.0, -0.92), 0.1, 1.1, 1.22, sides=4, tip=math.inf, albedo=0.25),
        box((-0.3, 0.75, 0.6), (0.3, 1.2, 0.75), 0.6),
    ),
    "church": (
        box((-0.42, -0.5, 0.0), (0.42, 0.95, 0.7)),
        gable((-0.5, -0.5, 0.7), (0.5, 0.95, 1.15), 0.7),
        box((-0.3, -1.05, 0.0), (0.3, -0.45, 1.2)),
        cone((0.0, -0.75), 0.36, 1.2, 2.0, sides=4, tip=2.0, albedo=0.7),
    ),
    "stairs": (
        box((-0.75, -0.5, 0.0), (-0.25, 0.5, 0.4)),
        box((-0.25, -0.5, 0.0), (0.25, 0.5, 0.85)),
        box((0.25, -0.5, 0.0), (0.75, 0.5, 1.3)),
    ),
}


def render(kind: Tensor, angle: Tensor, defocus: Tensor) -> Tensor:
    """Renders photographs without the sensor's noise.

    Args:
        kind: Places in `KINDS`, int64 `[B]`.
        angle: Degrees in [-90, 90], `[B]`.
        defocus: The standard deviation of the blur in pixels, at least 0, `[B]`.

    Returns:
        Grey values in [0, 1], float32 `[B, 1, 32, 32]`.

    Example:
        >>> render(torch.tensor([0]), torch.tensor([30.0]), torch.tensor([0.0])).shape
        torch.Size([1, 1, 32, 32])
    """
    low, high = ANGLES
    place = (angle.to(torch.float32).clamp(low, high) - low)[:, None, None]
    before = place.floor().clamp_max(high - low - 1)
    table, index = _views(), before.long().flatten()
    seen = torch.lerp(table[kind, index], table[kind, index + 1], place - before)
    matrix = _blur(defocus.to(torch.float32))
    return (matrix @ seen @ matrix.mT).unsqueeze(1)


def expose(picture: Tensor, noise: torch.Generator) -> Tensor:
    """Returns what the sensor makes of grey values: noise of standard deviation `NOISE`, and 8 bits, uint8."""
    grain = torch.randn(picture.shape, generator=noise)
    return ((picture + NOISE * grain) * 255).round_().clamp_(0, 255).to(torch.uint8)


def log_likelihood(x: Tensor, picture: Tensor) -> Tensor:
    """Returns log p(x|picture), the probability of the levels of a photograph, in nats.

    Args:
        x: One photograph, values k/255, `[1, 32, 32]`.
        picture: Noiseless pictures, `[..., 1, 32, 32]`.

    Returns:
        float64 `[...]`.
    """
    level = (x.double() * 255).round()
    above = torch.where(level >= 255, math.inf, (level + 0.5) / 255)
    below = torch.where(level <= 0, -math.inf, (level - 0.5) / 255)
    upper, lower = ((edge - picture.double()) / NOISE for edge in (above, below))
    # On the side where both tails are small, or the difference would vanish.
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    each: Tensor = log_upper + torch.log1p(-(log_lower - log_upper).exp())
    return each.sum((-3, -2, -1))


def load_camera(data_dir: Path | None = None) -> tuple[ArraySource, ArraySource]:
    """Renders `camera`: 20,000 photographs to train on, 2,000 for validation, 2,000 to test on, `[1, 32, 32]`."""
    count = _TRAIN + _VALID + _TEST
    draws = generator(_SEED)
    kind = torch.randint(len(KINDS), (count,), generator=draws)
    angle, defocus = (low + (high - low) * torch.rand(count, generator=draws) for low, high in (ANGLES, DEFOCUS))
    parts = []
    for place, rows in enumerate(torch.arange(count).split(_CHUNK)):
        parts.append(expose(render(kind[rows], angle[rows], defocus[rows]), generator(_SEED, place)))
    factors = Factors(("kind", "angle", "defocus"), torch.stack([kind, angle, defocus], 1), (True, False, False))
    whole = ArraySource(torch.cat(parts), kind, name="camera", factors=factors)
    return whole.slice(0, _TRAIN + _VALID), whole.slice(_TRAIN + _VALID, count)


@cache
def _views() -> Tensor:
    """Returns all views of all figures at whole degrees, `[kinds, 181, 32, 32]`."""
    low, high = ANGLES
    azimuths = torch.arange(low, high + 1)
    return torch.stack([views(_FIGURES[kind], azimuths, SIZE)[:, 0] for kind in KINDS])


def _blur(sigma: Tensor) -> Tensor:
    """Returns the matrices that blur along one axis, `[B, 32, 32]`; each row sums to 1, so that edges stay as light."""
    step = torch.arange(SIZE, dtype=torch.float32)
    # A blur of nothing is the identity: a width that small reaches no neighbour.
    width = sigma.clamp_min(1e-3)[:, None, None]
    weight = torch.exp(-0.5 * ((step[:, None] - step) / width).square())
    return weight / weight.sum(2, keepdim=True)
