"""Networks: features in, features out.

A network knows no probability. It says what it takes (`in_shape`) and what it gives (`out_shape`), and maps
`[B, *in_shape]` to `[B, *out_shape]`; a head (`lowerbound.heads`) makes a distribution of that. Shapes come from the
data: nothing here knows of 28 or 64.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# The activations that networks are built with here, so that `lowerbound.nn` is enough to import.
from torch.nn import ELU as ELU
from torch.nn import GELU as GELU
from torch.nn import LeakyReLU as LeakyReLU
from torch.nn import Module as Module
from torch.nn import ReLU as ReLU
from torch.nn import SiLU as SiLU
from torch.nn import Tanh as Tanh

from lowerbound.errors import UsageError


class Network(nn.Module, ABC):
    """Features in, features out.

    Attributes:
        in_shape: The shape of one input.
        out_shape: The shape of one output: `(F,)`, or `(C, H, W)` for features that lie on a picture.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, *in_shape]` to `[B, *out_shape]`."""


class MLP(Network):
    """A multilayer perceptron: affine maps, each followed by an activation.

    Args:
        in_shape: The shape of one input; it is flattened.
        widths: The width of each hidden layer; the last is the number of features.
        activation: A `torch.nn` activation, used after every layer.

    Raises:
        UsageError: A shape or width is below 1.

    Example:
        >>> import torch
        >>> MLP((1, 28, 28), (400, 400), LeakyReLU(0.2))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 400])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        widths: tuple[int, ...] = (512, 512),
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_shape=in_shape, widths=widths)
        self.in_shape = tuple(in_shape)
        self.widths = tuple(widths)
        self.activation = nn.GELU() if activation is None else activation
        self.out_shape = (widths[-1],)
        sizes = (math.prod(in_shape), *widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        for layer in self.layers:
            h = self.activation(layer(h))
        return h


class ResidualMLP(Network):
    r"""An affine map to a width, residual blocks there, and a normalisation at the end.

    $$h \leftarrow h + W_2\,a(W_1\,N(h) + b_1) + b_2, \qquad \text{features} = N(h)$$

    with a an activation and N a layer normalisation (Ba, Kiros and Hinton, 2016). The features' size does not depend on
    that of the input, so that networks can feed one another, layer after layer, without growing out of all bounds.

    Args:
        in_shape: The shape of one input; it is flattened.
        width: The number of features, and units of each block.
        blocks: Residual blocks; with 0 the features are an affine map, normalised.
        activation: A `torch.nn` activation; GELU by default.

    Raises:
        UsageError: A shape or `width` is below 1, or `blocks` is negative.

    Example:
        >>> import torch
        >>> ResidualMLP((1, 28, 28), 64, blocks=2)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self, in_shape: tuple[int, ...], width: int = 512, blocks: int = 1, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        check_sizes(in_shape=in_shape, width=(width,), blocks=(blocks + 1,))
        self.in_shape, self.width, self.blocks = tuple(in_shape), width, blocks
        self.activation = nn.GELU() if activation is None else activation
        self.out_shape = (width,)
        self.enter = nn.Linear(math.prod(in_shape), width)
        self.residuals = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), copy.deepcopy(self.activation), nn.Linear(width, width)
            )
            for _ in range(blocks)
        )
        self.leave = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.enter(x.flatten(1))
        for residual in self.residuals:
            h = h + residual(h)
        features: Tensor = self.leave(h)
        return features


class BottomUp(Network):
    """Networks on top of each other, whose features are all given: `[B, *in_shape]` to `[B, F_1 + ... + F_L]`.

    Args:
        levels: The networks from the input on; each takes what the one before it gives.

    Attributes:
        feature_dims: F, the number of features of each level, in that order.

    Raises:
        UsageError: There is no level, or one does not take what the one before it gives.

    Example:
        >>> import torch
        >>> network = BottomUp((MLP((1, 8, 8), (32,)), MLP((32,), (16,))))
        >>> network.feature_dims, network(torch.zeros(2, 1, 8, 8)).shape
        ((32, 16), torch.Size([2, 48]))
    """

    def __init__(self, levels: tuple[Network, ...]) -> None:
        super().__init__()
        if not levels or any(below.out_shape != above.in_shape for below, above in pairwise(levels)):
            shapes = ", ".join(f"{level.in_shape} to {level.out_shape}" for level in levels)
            raise UsageError(
                "A BottomUp network needs at least one level, and each must take what the one before it gives; got "
                f"levels that map {shapes or 'nothing'}."
            )
        self.levels = nn.ModuleList(levels)
        self.in_shape = levels[0].in_shape
        self.feature_dims = tuple(math.prod(level.out_shape) for level in levels)
        self.out_shape = (sum(self.feature_dims),)

    def forward(self, x: Tensor) -> Tensor:
        features, h = [], x
        for level in self.levels:
            h = level(h)
            features.append(h.flatten(1))
        return torch.cat(features, 1)


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
        self.layers = nn.Sequential(*levels, nn.Flatten(), nn.Linear(channels[-1] * height * width, features), act)

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
            nn.Linear(math.prod(in_shape), features),
            act,
            nn.Linear(features, wide),
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


def beside(shape: tuple[int, ...], num_classes: int, *, planes: bool = False) -> tuple[int, ...]:
    """Returns the input shape of a network that takes a value and, beside it, a class label.

    Args:
        shape: The shape of one value.
        num_classes: C, how many classes there are.
        planes: The label is C constant planes beside a picture, for convolutions; else a one-hot vector beside the
            flattened value.

    Raises:
        UsageError: Planes are asked for beside what is no picture.

    Example:
        >>> beside((1, 28, 28), 10), beside((1, 28, 28), 10, planes=True)
        ((794,), (11, 28, 28))
    """
    if not planes:
        return (math.prod(shape) + num_classes,)
    if len(shape) != 3:
        raise UsageError(
            f"A label is made planes beside pictures of shape (channels, height, width); got {tuple(shape)}. Leave "
            "planes out, and the label is a one-hot vector beside the flattened value."
        )
    return (shape[0] + num_classes, *shape[1:])


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


class CausalTransformer(Network):
    """A transformer in which each place of a sequence sees itself and what is before it.

    Layers of attention and of an MLP, each added to what came in, normalised before (Vaswani et al., 2017; Radford et
    al., 2019). A shorter sequence than `in_shape` says will do: its outputs are the first of the longer one's.

    Args:
        in_shape: `(T, W)`: T places of W features.
        depth: Layers.
        num_heads: Attention heads a layer; W is a multiple.

    Raises:
        UsageError: A size is below 1, or W is no multiple of the heads.

    Example:
        >>> import torch
        >>> CausalTransformer((9, 16), depth=2, num_heads=2)(torch.zeros(5, 4, 16)).shape
        torch.Size([5, 4, 16])
    """

    def __init__(self, in_shape: tuple[int, ...], depth: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        check_sizes(in_shape=in_shape, depth=(depth,), num_heads=(num_heads,))
        if len(in_shape) != 2 or in_shape[1] % num_heads:
            raise UsageError(
                f"A transformer maps sequences of shape (T, W), W a multiple of its number of heads; got {in_shape} "
                f"and {num_heads} heads."
            )
        self.in_shape = self.out_shape = tuple(in_shape)
        self.depth, self.num_heads = depth, num_heads
        self.layers = nn.ModuleList(CausalLayer(in_shape[1], num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(in_shape[1])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        h: Tensor = self.norm(x)
        return h


class CausalLayer(nn.Module):
    """One layer of a `CausalTransformer`.

    Args:
        width: Features of a place.
        num_heads: Attention heads.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.width, self.num_heads = width, num_heads
        self.before = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.gather = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(self.before(x)).unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, heads, W / heads]
        query, key, value = heads.transpose(1, 3).unbind(2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.gather(seen.transpose(1, 2).flatten(2))
        h: Tensor = x + self.mlp(x)
        return h


def halvings(picture: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """Returns the sizes of a picture that is halved, rounding up: itself, then after each halving.

    Example:
        >>> halvings((28, 7), 2)
        [(28, 7), (14, 4), (7, 2)]
    """
    sizes = [(picture[0], picture[1])]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def check_sizes(**sizes: tuple[int, ...]) -> None:
    """Raises `UsageError` naming the argument when one of its sizes is not a whole number of at least 1."""
    for name, values in sizes.items():
        if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise UsageError(f"{name} should be whole numbers of at least 1; got {values}.")


def check_picture(shape: tuple[int, ...], halved: int) -> None:
    """Raises `UsageError` when `shape` is not `(C, H, W)` or a side is below 2^(halved - 1)."""
    if len(shape) != 3:
        raise UsageError(
            f"A convolutional network needs examples of shape (channels, height, width); got {tuple(shape)}. "
            "Use a recipe with an MLP for these data."
        )
    if min(shape[1:]) < 2 ** (halved - 1):
        raise UsageError(
            f"A picture of {shape[1]} by {shape[2]} cannot be halved {halved} times. Give fewer channels levels."
        )
