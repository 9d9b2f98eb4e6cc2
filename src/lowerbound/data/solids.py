r"""Figures of solids, seen by a pinhole camera that goes round them.

A figure is a union of convex solids that stands on a floor. A ray \(o + t d\) meets the half-space \(n \cdot x \le h\)
at \(t = (h - n \cdot o) / (n \cdot d)\); it is inside a convex solid from the last half-space that it enters to the
first that it leaves (Kay and Kajiya, 1986). An ellipsoid is a sphere in scaled coordinates. The light is a lamp far
away that stays where it is, so shadows turn with the figure as the camera goes round.

Everything is a tensor operation over all rays of all views at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# The camera: its distance, its height above the horizon, what it looks at, and half the width of its view.
_DISTANCE = 6.0
_ELEVATION = math.radians(28)
_TARGET = (0.0, 0.0, 0.72)
_HALF_VIEW = 0.24
# The lamp's direction, and how much light comes from everywhere else.
_LIGHT = (-0.55, -0.75, 1.15)
_AMBIENT = 0.38
# What the floor gives back everywhere, and more around the figure, as if there were a spot; and how wide that is.
_FLOOR = (0.28, 0.30)
_SPOT = 1.9
_FAR = 1e9
# A shadow's ray begins a little above the surface that it starts from.
_LIFT = 1e-3
# Rays a side of a pixel: their mean is the pixel.
_OVERSAMPLING = 2


class Hit(NamedTuple):
    """Where rays meet a solid first: the distance `[R]` (`_FAR` if never) and the surface's normal `[R, 3]`."""

    distance: Tensor
    normal: Tensor


@dataclass(frozen=True)
class Convex:
    """A convex solid: the points where `normals @ x <= offsets`.

    Attributes:
        normals: Unit normals that point outwards, M of them.
        offsets: Their distances from the origin.
        albedo: How much light the surface gives back, in [0, 1].
    """

    normals: tuple[tuple[float, float, float], ...]
    offsets: tuple[float, ...]
    albedo: float = 0.9

    def hit(self, origin: Tensor, direction: Tensor) -> Hit:
        """Meets rays, `[R, 3]` each."""
        enters = origin.new_full((len(origin),), -_FAR)
        leaves = origin.new_full((len(origin),), _FAR)
        face = torch.zeros(len(origin), dtype=torch.long)
        normals = torch.tensor(self.normals)
        for place, (normal, offset) in enumerate(zip(normals, self.offsets, strict=True)):
            slope = direction @ normal
            # Rays along a face are nudged off it: an infinite distance with the right sign does the rest.
            t = (offset - origin @ normal) / torch.where(slope.abs() < 1e-9, 1e-9, slope)
            later = (slope < 0) & (t > enters)
            enters = torch.where(later, t, enters)
            face = torch.where(later, place, face)
            leaves = torch.where(slope >= 0, torch.minimum(leaves, t), leaves)
        met = (enters < leaves) & (enters > 0)
        return Hit(torch.where(met, enters, _FAR), normals[face])


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with axes along x, y and z.

    Attributes:
        centre: Its centre.
        radii: Its half axes.
        albedo: How much light the surface gives back, in [0, 1].
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    albedo: float = 0.9

    def hit(self, origin: Tensor, direction: Tensor) -> Hit:
        """Meets rays, `[R, 3]` each."""
        radii = torch.tensor(self.radii)
        o, d = (origin - torch.tensor(self.centre)) / radii, direction / radii
        a, b, c = d.square().sum(1), (o * d).sum(1), o.square().sum(1) - 1
        root = b.square() - a * c
        t = (-b - root.clamp_min(0).sqrt()) / a
        normal = torch.nn.functional.normalize((o + t[:, None] * d) / radii, dim=1)
        return Hit(torch.where((root > 0) & (t > 0), t, _FAR), normal)


Solid = Convex | Ellipsoid


def box(low: tuple[float, float, float], high: tuple[float, float, float], albedo: float = 0.9) -> Convex:
    """Returns a box between two corners."""
    axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    opposite = tuple((-x, -y, -z) for x, y, z in axes)
    return Convex(axes + opposite, (*high, *(-value for value in low)), albedo)


def cone(
    centre: tuple[float, float], radius: float, low: float, high: float, *, sides: int, tip: float, albedo: float = 0.9
) -> Convex:
    """Returns an upright pyramid with that many sides that would end at height `tip`, cut off at `low` and `high`.

    Args:
        centre: The place of its axis on the floor.
        radius: The distance of its sides from the axis at `low`.
        low: Where it begins.
        high: Where it is cut off.
        sides: How many there are.
        tip: Where the sides would meet; infinity for a prism.
        albedo: How much light the surface gives back.
    """
    lean = 0.0 if math.isinf(tip) else math.atan2(radius, tip - low)
    normals: list[tuple[float, float, float]] = [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0)]
    offsets = [high, -low]
    for side in range(sides):
        turn = 2 * math.pi * side / sides
        normal = (math.cos(lean) * math.cos(turn), math.cos(lean) * math.sin(turn), math.sin(lean))
        at = (centre[0] + radius * math.cos(turn), centre[1] + radius * math.sin(turn), low)
        normals.append(normal)
        offsets.append(sum(n * a for n, a in zip(normal, at, strict=True)))
    return Convex(tuple(normals), tuple(offsets), albedo)


def gable(low: tuple[float, float, float], high: tuple[float, float, float], albedo: float = 0.9) -> Convex:
    """Returns a roof over a rectangle, its ridge along y at the height of `high`."""
    middle, half, rise = (low[0] + high[0]) / 2, (high[0] - low[0]) / 2, high[2] - low[2]
    length = math.hypot(half, rise)
    slope = (rise / length, half / length)
    ridge = slope[1] * high[2]
    return Convex(
        ((slope[0], 0.0, slope[1]), (-slope[0], 0.0, slope[1]), (0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)),
        (ridge + slope[0] * middle, ridge - slope[0] * middle, high[1], -low[1], -low[2]),
        albedo,
    )


def views(figure: tuple[Solid, ...], azimuths: Tensor, size: int) -> Tensor:
    """Renders a figure from several sides.

    Args:
        figure: The solids.
        azimuths: Where the camera stands on its way round, in degrees, `[V]`.
        size: The side of the picture in pixels.

    Returns:
        Grey values in [0, 1], `[V, 1, size, size]`.
    """
    fine = size * _OVERSAMPLING
    origin, direction = _rays(azimuths, fine)
    floor = -origin[:, 2] / direction[:, 2]  # the camera looks down everywhere
    distance, normal, albedo = floor, torch.zeros_like(direction), _floor_albedo(origin + floor[:, None] * direction)
    normal[:, 2] = 1
    for solid in figure:
        hit = solid.hit(origin, direction)
        nearer = hit.distance < distance
        distance = torch.where(nearer, hit.distance, distance)
        normal = torch.where(nearer[:, None], hit.normal, normal)
        albedo = torch.where(nearer, solid.albedo, albedo)
    light = torch.nn.functional.normalize(torch.tensor(_LIGHT), dim=0)
    at = origin + distance[:, None] * direction + _LIFT * normal
    facing = (normal @ light).clamp_min(0)
    for solid in figure:
        facing = torch.where(solid.hit(at, light.expand_as(at)).distance < _FAR, 0, facing)
    shade = albedo * (_AMBIENT + (1 - _AMBIENT) * facing)
    return torch.nn.functional.avg_pool2d(shade.reshape(-1, 1, fine, fine), _OVERSAMPLING)


def _rays(azimuths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns where the rays of all pixels of all views begin, and their directions, `[V * size * size, 3]` each."""
    turn = torch.deg2rad(azimuths.to(torch.float32))
    flat = torch.zeros_like(turn)
    right = torch.stack([turn.cos(), turn.sin(), flat], 1)
    out = torch.stack([turn.sin(), -turn.cos(), flat], 1)
    up = torch.tensor([0.0, 0.0, 1.0])
    back = math.cos(_ELEVATION) * out + math.sin(_ELEVATION) * up
    above = math.cos(_ELEVATION) * up - math.sin(_ELEVATION) * out
    side = _HALF_VIEW * ((torch.arange(size) + 0.5) * 2 / size - 1)
    across, down = side.repeat(size), side.repeat_interleave(size)
    direction = across[:, None] * right[:, None] - down[:, None] * above[:, None] - back[:, None]
    origin = torch.tensor(_TARGET) + _DISTANCE * back
    return (
        origin[:, None].expand_as(direction).reshape(-1, 3),
        torch.nn.functional.normalize(direction, dim=2).reshape(-1, 3),
    )


def _floor_albedo(at: Tensor) -> Tensor:
    wide, spot = _FLOOR
    return wide + spot * torch.exp(-at[:, :2].square().sum(1) / (2 * _SPOT**2))
