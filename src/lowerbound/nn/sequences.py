"""Networks for sequences, of vectors and of token numbers.

A sequence of tokens ends with its first 0 (`lowerbound.data.Text`), and no network here sees anything behind that.
"""

from __future__ import annotations

from typing import Self

import torch
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


class GRU(nn.GRU):
    """A recurrent layer with gates (Cho et al., 2014), `[B, T, I]` to `[B, T, H]`, in training mode throughout.

    It has no dropout, so the mode changes no number; but on CUDA a recurrent layer in evaluation mode cannot be
    differentiated, and a better posterior is looked for there by the gradient of p(x|z).

    Args:
        in_features: I.
        width: H, units.

    Example:
        >>> GRU(3, 8).eval()(torch.zeros(2, 5, 3))[0].shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__(in_features, width, batch_first=True)
        self.in_features, self.width = in_features, width

    def train(self, mode: bool = True) -> Self:
        return super().train(True)


class TokenEncoder(Network):
    """Reads a sequence of tokens from both ends, with a GRU each way; their last states are the features.

    The way back begins at the sequence's own end, so that no feature depends on how many places are left behind it.

    Args:
        in_shape: `(T,)`: places for tokens.
        num_tokens: How many different tokens there are.
        width: H, units of each GRU; there are 2 H features.
        embedding: Components of a token's vector.

    Raises:
        UsageError: `in_shape` has another number of axes, or a size is below 1.

    Example:
        >>> network = TokenEncoder((6,), num_tokens=10, width=4, embedding=3).eval()
        >>> x = torch.tensor([[5.0, 2, 0, 0, 0, 0]])
        >>> network(x).shape, torch.equal(network(x), network(x[:, :3]))
        (torch.Size([1, 8]), True)
    """

    def __init__(self, in_shape: tuple[int, ...], num_tokens: int, width: int = 128, embedding: int = 64) -> None:
        super().__init__()
        check_sizes(in_shape=in_shape, num_tokens=(num_tokens,), width=(width,), embedding=(embedding,))
        if len(in_shape) != 1:
            raise UsageError(f"A sequence of tokens has the shape (T,); got {tuple(in_shape)}. Open a file of text.")
        self.in_shape = tuple(in_shape)
        self.num_tokens, self.width, self.embedding = num_tokens, width, embedding
        self.out_shape = (2 * width,)
        self.embed = nn.Embedding(num_tokens, embedding)
        self.forth, self.back = GRU(embedding, width), GRU(embedding, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.long()
        counts = token_counts(tokens)
        tokens = tokens[:, : longest(counts)]
        last = (counts - 1)[:, None]
        place = torch.arange(tokens.shape[1], device=x.device)
        backwards = tokens.gather(1, (last - place).clamp_min(0))
        states = [gru(self.embed(way))[0] for gru, way in ((self.forth, tokens), (self.back, backwards))]
        at = last[..., None].expand(-1, -1, self.width)
        return torch.cat([state.gather(1, at).squeeze(1) for state in states], 1)


def token_counts(tokens: Tensor) -> Tensor:
    """Returns how many tokens each row says something by: up to its first 0, with it, or all where there is none.

    Args:
        tokens: `[..., T]`.

    Returns:
        int64 `[...]`, from 1 to T.

    Example:
        >>> token_counts(torch.tensor([[3, 0, 0], [0, 0, 0], [3, 4, 5]])).tolist()
        [2, 1, 3]
    """
    before = (tokens == 0).cumsum(-1).eq(0).sum(-1)
    return (before + 1).clamp_max(tokens.shape[-1])


def longest(counts: Tensor) -> int | None:
    """Returns the largest of these numbers, or None where reading it would wait for an accelerator."""
    return int(counts.max()) if counts.device.type == "cpu" and counts.numel() else None
