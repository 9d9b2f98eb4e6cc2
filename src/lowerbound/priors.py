r"""Priors: p(z), as modules that return a distribution.

A prior is called without arguments, because its parameters may be learned and so change between calls. The standard
normal has none: \(p(z) = N(0, I)\).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.distributions import DiagonalNormal
from lowerbound.nn import check_sizes


class Prior(nn.Module, ABC):
    """p(z).

    Attributes:
        event_shape: The shape of one z.
    """

    event_shape: tuple[int, ...]

    @abstractmethod
    def forward(self) -> Distribution:
        """Returns p(z), with an empty batch shape."""


class StandardNormal(Prior):
    """Independent normal components with mean 0 and standard deviation 1.

    Args:
        latent_dim: The number of components of z, at least 1.

    Raises:
        UsageError: `latent_dim` is below 1.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_sizes(latent_dim=(latent_dim,))
        self.latent_dim = latent_dim
        self.event_shape = (latent_dim,)
        self.register_buffer("loc", torch.zeros(latent_dim))
        self.register_buffer("log_scale", torch.zeros(latent_dim))

    def forward(self) -> DiagonalNormal:
        return DiagonalNormal(self.loc, self.log_scale)
