"""Networks for sequences."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lowerbound.errors import UsageError
from lowerbound.nn.base import Network, check_sizes
from lowerbound.nn.linear import Linear


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
        self.project = Linear(width, 3 * width)
        self.gather = Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(self.before(x)).unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, heads, W / heads]
        query, key, value = heads.transpose(1, 3).unbind(2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.gather(seen.transpose(1, 2).flatten(2))
        h: Tensor = x + self.mlp(x)
        return h
