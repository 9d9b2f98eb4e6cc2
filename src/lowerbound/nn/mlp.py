"""Networks of fully connected layers, plain and residual."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from lowerbound.errors import UsageError
from lowerbound.nn.base import Network, check_sizes
from lowerbound.nn.linear import Linear


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
        >>> MLP((1, 28, 28), (400, 400), nn.LeakyReLU(0.2))(torch.zeros(2, 1, 28, 28)).shape
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
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))

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
        self.enter = Linear(math.prod(in_shape), width)
        self.residuals = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), Linear(width, width), copy.deepcopy(self.activation), Linear(width, width)
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
