r"""Residual convolutional networks: deeper than `ConvDown` and `ConvUp`, and for longer trainings.

At each size of the picture some blocks add to what came in,

$$h \leftarrow h + W_2 * a(W_1 * a(h) + b_1) + b_2,$$

with 3x3 convolutions * and an activation a before each ("identity mappings", He, Zhang, Ren and Sun, 2016). There is no
normalisation: the second convolution starts small instead, so that a fresh network is near to one without blocks, and
its outputs keep their size at any depth. One example never depends on the others of its batch.

Features lie in memory with the channels last, which processors and accelerators with products of 16-bit numbers are
fastest at. The weights do not: they are few, and a model that was saved and read again must give the same bits.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from lowerbound.nn.base import Network, check_picture, check_sizes, halvings
from lowerbound.nn.linear import Linear

# What the second convolution of a block is begun at, of what torch would begin it at.
_SMALL = 0.1


class ResidualBlock(nn.Module):
    """Two convolutions with an activation before each, added to what came in.

    Args:
        channels: Channels in and out.
        activation: A `torch.nn` activation.
    """

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.channels, self.activation = channels, activation
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.outer.weight.mul_(_SMALL)

    def forward(self, h: Tensor) -> Tensor:
        added: Tensor = self.outer(self.activation(self.inner(self.activation(h))))
        return h + added


class ResNetDown(Network):
    """Residual blocks on a picture that is halved again and again: `[C, H, W]` to `(F,)`.

    Any height and width will do: a side of n becomes (n + 1) // 2.

    Args:
        in_shape: `(C, H, W)`.
        channels: Channels at each level, after its halving.
        blocks: Residual blocks at each level, at least 0.
        features: Width of the output.
        activation: A `torch.nn` activation; GELU by default.

    Raises:
        UsageError: `in_shape` is not a picture, or is too small to be halved so often.

    Example:
        >>> import torch
        >>> ResNetDown((1, 28, 28), (8, 16), features=64)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        channels: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        features: int = 512,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_picture(in_shape, len(channels))
        check_sizes(in_shape=in_shape, channels=channels, blocks=(blocks + 1,), features=(features,))
        self.in_shape, self.channels, self.blocks, self.features = tuple(in_shape), tuple(channels), blocks, features
        self.activation = nn.GELU() if activation is None else activation
        self.out_shape = (features,)
        act = self.activation
        self.enter = nn.Conv2d(in_shape[0], channels[0], 3, stride=2, padding=1)
        levels: list[nn.Module] = [ResidualBlock(channels[0], copy.deepcopy(act)) for _ in range(blocks)]
        for before, after in pairwise(channels):
            levels.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            levels += [ResidualBlock(after, copy.deepcopy(act)) for _ in range(blocks)]
        self.levels = nn.Sequential(*levels)
        height, width = halvings(in_shape[1:], len(channels))[-1]
        self.leave = nn.Sequential(
            copy.deepcopy(act), nn.Flatten(), Linear(channels[-1] * height * width, features), copy.deepcopy(act)
        )

    def forward(self, x: Tensor) -> Tensor:
        # Not before: where there is one channel, the order of the axes says nothing.
        entered = self.enter(x).contiguous(memory_format=torch.channels_last)
        h: Tensor = self.leave(self.levels(entered))
        return h


class ResNetUp(Network):
    """The reverse of `ResNetDown`: `(D,)` to features `(planes, H, W)` that lie on the picture.

    A picture is doubled by a convolution to four times the channels, of which each place then makes a square of two by
    two (Shi et al., 2016, "Real-time single image and video super-resolution"): all arithmetic is done at the smaller
    size.

    Args:
        in_shape: The shape of one input, flattened.
        picture: `(H, W)` of the output.
        channels: As for `ResNetDown`: the last is at the smallest size.
        blocks: Residual blocks at each level, at least 0.
        features: Width of the hidden layer between the input and the smallest picture.
        planes: Channels of the output, at full size.
        activation: A `torch.nn` activation; GELU by default.

    Raises:
        UsageError: `picture` is too small to be halved so often.

    Example:
        >>> import torch
        >>> ResNetUp((10,), (28, 28), (8, 16), features=64)(torch.zeros(2, 10)).shape
        torch.Size([2, 4, 28, 28])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        picture: tuple[int, int],
        channels: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        features: int = 512,
        planes: int = 4,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_picture((1, *picture), len(channels))
        check_sizes(in_shape=in_shape, channels=channels, blocks=(blocks + 1,), features=(features,), planes=(planes,))
        self.in_shape, self.channels, self.blocks, self.features = tuple(in_shape), tuple(channels), blocks, features
        self.picture, self.planes = (picture[0], picture[1]), planes
        self.activation = nn.GELU() if activation is None else activation
        self.out_shape = (planes, *self.picture)
        act = self.activation
        sizes = halvings(picture, len(channels))[::-1]
        self.smallest = (channels[-1], *sizes[0])
        self.enter = nn.Sequential(
            nn.Flatten(),
            Linear(math.prod(in_shape), features),
            copy.deepcopy(act),
            Linear(features, math.prod(self.smallest)),
        )
        levels: list[nn.Module] = []
        for (before, after), size in zip(pairwise((*channels[::-1], planes)), sizes[1:], strict=True):
            levels += [ResidualBlock(before, copy.deepcopy(act)) for _ in range(blocks)]
            levels += [copy.deepcopy(act), Doubled(before, after, size)]
        self.levels = nn.Sequential(*levels)

    def forward(self, z: Tensor) -> Tensor:
        smallest = self.enter(z).unflatten(1, self.smallest)
        h: Tensor = self.levels(smallest.contiguous(memory_format=torch.channels_last))
        return h


class Doubled(nn.Module):
    """A picture of twice the size: `[B, before, h, w]` to `[B, after, H, W]` with H in {2 h - 1, 2 h}, and W likewise.

    Args:
        before: Channels in.
        after: Channels out.
        size: `(H, W)`.
    """

    def __init__(self, before: int, after: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.before, self.after, self.size = before, after, size
        self.fourfold = nn.Conv2d(before, 4 * after, 3, padding=1)
        self.spread = nn.PixelShuffle(2)

    def forward(self, h: Tensor) -> Tensor:
        height, width = self.size
        grown: Tensor = self.spread(self.fourfold(h))
        return grown[..., :height, :width]
