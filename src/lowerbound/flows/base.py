"""What a flow is, and how flows are put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowerbound.errors import UsageError


def soft_clamp(raw: Tensor, bound: float) -> Tensor:
    r"""Returns \(b \tanh(r / b)\): close to r where r is small, within \(\pm b\) always, with a gradient everywhere.

    Example:
        >>> soft_clamp(torch.tensor([0.1, 100.0]), 3.0)
        tensor([0.1000, 3.0000])
    """
    return bound * torch.tanh(raw / bound)


class Flow(nn.Module, ABC):
    """An invertible map of R^D, possibly another one for each context.

    Attributes:
        latent_dim: D.
        context_dim: C, the width of the context; 0 if it takes none (and ignores one that it is given).
        forward_passes: How often `forward` runs a network: what it costs.
        inverse_passes: How often `inverse` does.
    """

    latent_dim: int
    context_dim: int = 0
    forward_passes: int = 0
    inverse_passes: int = 0

    @abstractmethod
    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps z to y.

        Args:
            z: `[..., D]`.
            context: `[..., C]`; its leading shape is broadcast to that of z: `[B, C]` goes with z `[K, B, D]`.

        Returns:
            y, `[..., D]`, and log|det dy/dz|, nats, `[...]`.

        Raises:
            UsageError: The flow takes a context and there is none.
        """

    @abstractmethod
    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps y back to z; returns z, `[..., D]`, and log|det dz/dy|, nats, `[...]`."""


class Inverse(Flow):
    """Another flow, the other way round: its `forward` is that one's `inverse`, with its cost.

    Args:
        flow: The flow to turn round.

    Example:
        >>> from lowerbound.flows import AutoregressiveAffine
        >>> masked = Inverse(AutoregressiveAffine(3, 8))
        >>> masked.forward_passes, masked.inverse_passes
        (3, 1)
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.latent_dim, self.context_dim = flow.latent_dim, flow.context_dim
        self.forward_passes, self.inverse_passes = flow.inverse_passes, flow.forward_passes

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(y, context)
        return z, log_det


class Chain(Flow):
    """Flows one after another; all that take a context get the same.

    Args:
        flows: The flows, at least one, in the order in which `forward` applies them.

    Raises:
        UsageError: There are none, or they disagree on D or on the width of the context.

    Example:
        >>> from lowerbound.flows import ActNorm, Permutation
        >>> Chain((Permutation(2), ActNorm(2)))(torch.zeros(5, 2))[1].shape
        torch.Size([5])
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        super().__init__()
        dims, contexts = {f.latent_dim for f in flows}, {f.context_dim for f in flows} - {0}
        if len(dims) != 1 or len(contexts) > 1:
            raise UsageError(
                "A Chain takes at least one flow, all over the same number of components and with contexts of one "
                f"width; got components {sorted(dims)} and contexts {sorted(contexts)}."
            )
        self.flows = nn.ModuleList(flows)
        self.latent_dim = dims.pop()
        self.context_dim = max(contexts, default=0)
        self.forward_passes = sum(f.forward_passes for f in flows)
        self.inverse_passes = sum(f.inverse_passes for f in flows)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[:-1])
        for flow in self.flows:
            z, log_det = flow(z, context)
            total = total + log_det
        return z, total

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[:-1])
        for flow in reversed(self.flows):
            assert isinstance(flow, Flow)
            y, log_det = flow.inverse(y, context)
            total = total + log_det
        return y, total
