"""What a network is, and the checks of sizes that all parts share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

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
        raise UsageError(f"A picture of {shape[1]} by {shape[2]} cannot be halved {halved} times; halve it less often.")
