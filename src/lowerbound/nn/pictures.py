"""Convolutional networks for pictures of any size: to a vector and back, and to a grid of places and back."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

from torch import Tensor, nn

from lowerbound.errors import UsageError
from lowerbound.nn.base import Network, check_picture, check_sizes, halvings
from lowerbound.nn.linear import Linear


class ConvDown(Network):
    """Convolutions that halve a picture again and again: `[C, H, W]` to `(F,)`.

    Each level is a 3x3 convolution and one of stride 2, so any height and width will do. With one level more, pictures
    of twice the side reach the same size; the last features go through one affine map.

    Args:
        in_shape: `(C, H, W)`.
        channels: Channels at each level; the picture is halved between them.
        features: Width of the output.
        activation: A `torch.nn` activation.

    Raises:
        UsageError: `in_shape` is not a picture, or is too small to be halved so often.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        channels: tuple[int, ...] = (32, 64),
        features: int = 256,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_picture(in_shape, len(channels))
        check_sizes(in_shape=in_shape, channels=channels, features=(features,))
        self.in_shape, self.channels, self.features = tuple(in_shape), tuple(channels), features
        self.activation = nn.GELU() if activation is None else activation
        self.out_shape = (features,)
        act = self.activation
        levels: list[nn.Module] = []
        for before, after in pairwise((in_shape[0], *channels)):
            levels += [nn.Conv2d(before, after, 3, padding=1), copy.deepcopy(act)]
            levels += [nn.Conv2d(after, after, 3, stride=2, padding=1), copy.deepcopy(act)]
        height, width = halvings(in_shape[1:], len(channels))[-1]
        self.layers = nn.Sequential(*levels, nn.Flatten(), Linear(channels[-1] * height * width, features), act)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x)
        return h


class ConvUp(Network):
    """The reverse of `ConvDown`: `(D,)` to features `(channels[0], H, W)` that lie on the picture.

    Args:
        in_shape: The shape of one input, flattened.
        picture: `(H, W)` of the output.
        channels: As for `ConvDown`: the first is at full size, the last at the smallest.
        features: Width of the hidden layer between the input and the smallest picture.
        activation: A `torch.nn` activation.

    Raises:
        UsageError: `picture` is too small to be halved so often.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        picture: tuple[int, int],
        channels: tuple[int, ...] = (32, 64),
        features: int = 256,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_picture((1, *picture), len(channels))
        check_sizes(in_shape=in_shape, channels=channels, features=(features,))
        self.in_shape, self.channels, self.features = tuple(in_shape), tuple(channels), features
        self.picture = (picture[0], picture[1])
        self.activation = nn.GELU() if activation is None else activation
        self.out_shape = (channels[0], *picture)
        act = self.activation
        sizes = halvings(picture, len(channels))[::-1]
        height, width = sizes[0]
        wide = channels[-1] * height * width
        layers: list[nn.Module] = [
            nn.Flatten(),
            Linear(math.prod(in_shape), features),
            act,
            Linear(features, wide),
            copy.deepcopy(act),
            nn.Unflatten(1, (channels[-1], height, width)),
        ]
        up = (*channels[::-1], channels[0])
        for (before, after), (small, large) in zip(pairwise(up), pairwise(sizes), strict=True):
            # A side of n grows to 2n - 1 or 2n, whichever it was before it was halved.
            grow = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
            layers += [
                nn.ConvTranspose2d(before, after, 3, 2, padding=1, output_padding=grow),
                copy.deepcopy(act),
            ]
            layers += [nn.Conv2d(after, after, 3, padding=1), copy.deepcopy(act)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x)
        return h


class ConvToGrid(Network):
    """Convolutions that halve a picture again and again and leave it one: `[C, H, W]` to `[channels[-1], h, w]`.

    Where `ConvDown` ends in one vector, this ends in features for each place of a grid. As in the encoder of van den
    Oord, Vinyals and Kavukcuoglu (2017, section 4.1): strided convolutions, one a level, then residual blocks. Any
    height and width will do.

    Args:
        in_shape: `(C, H, W)`.
        channels: Channels after each halving.
        blocks: Residual blocks on the grid, at least 0.
        activation: A `torch.nn` activation.

    Raises:
        UsageError: `in_shape` is not a picture, or is too small to be halved so often.

    Example:
        >>> ConvToGrid((1, 28, 28), (32, 64)).out_shape
        (64, 7, 7)
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        channels: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_picture(in_shape, len(channels))
        check_sizes(in_shape=in_shape, channels=channels, blocks=(blocks + 1,))
        self.in_shape, self.channels, self.blocks = tuple(in_shape), tuple(channels), blocks
        self.activation = nn.GELU() if activation is None else activation
        self.out_shape = (channels[-1], *halvings(in_shape[1:], len(channels))[-1])
        layers: list[nn.Module] = []
        for before, after in pairwise((in_shape[0], *channels)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), copy.deepcopy(self.activation)]
        layers += [ConvBlock(channels[-1], copy.deepcopy(self.activation)) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x)
        return h


class ConvFromGrid(Network):
    """The reverse of `ConvToGrid`, from a sequence of vectors, one for each place of the grid, row by row.

    `[T, D]` to features `[channels[0], H, W]` that lie on the picture.

    Args:
        in_shape: `(T, D)`, with T the number of places of the picture after all halvings.
        picture: `(H, W)` of the output.
        channels: As for `ConvToGrid`: the last is at the smallest size.
        blocks: Residual blocks on the grid, at least 0.
        activation: A `torch.nn` activation.

    Raises:
        UsageError: `picture` is too small to be halved so often, or T is not the number of places.

    Example:
        >>> ConvFromGrid((49, 16), (28, 28), (32, 64)).out_shape
        (32, 28, 28)
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        picture: tuple[int, int],
        channels: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_picture((1, *picture), len(channels))
        check_sizes(in_shape=in_shape, channels=channels, blocks=(blocks + 1,))
        sizes = halvings(picture, len(channels))[::-1]
        if len(in_shape) != 2 or in_shape[0] != math.prod(sizes[0]):
            raise UsageError(
                f"A picture of {picture[0]} by {picture[1]} halved {len(channels)} times has {math.prod(sizes[0])} "
                f"places, so the input should have the shape ({math.prod(sizes[0])}, D); got {tuple(in_shape)}."
            )
        self.in_shape, self.channels, self.blocks = tuple(in_shape), tuple(channels), blocks
        self.picture = (picture[0], picture[1])
        self.activation = nn.GELU() if activation is None else activation
        self.out_shape = (channels[0], *picture)
        act = self.activation
        layers: list[nn.Module] = [
            nn.Unflatten(2, sizes[0]),
            nn.Conv2d(in_shape[1], channels[-1], 3, padding=1),
            copy.deepcopy(act),
            *(ConvBlock(channels[-1], copy.deepcopy(act)) for _ in range(blocks)),
        ]
        up = (*channels[::-1], channels[0])
        for (before, after), (small, large) in zip(pairwise(up), pairwise(sizes), strict=True):
            grow = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
            layers += [nn.ConvTranspose2d(before, after, 3, 2, padding=1, output_padding=grow), copy.deepcopy(act)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x.transpose(1, 2))
        return h


class ConvBlock(nn.Module):
    """A residual block on a picture: two convolutions, added to what came in.

    Args:
        channels: Channels in and out.
        activation: A `torch.nn` activation.
    """

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.channels, self.activation = channels, activation
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), activation, nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = x + self.layers(x)
        return h
