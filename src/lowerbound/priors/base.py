"""What a prior is.

A prior is called without arguments, because its parameters may be learned and so change between calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn
from torch.distributions import Distribution

from lowerbound.heads import Conditional


class Prior(nn.Module, ABC):
    """p(z).

    Attributes:
        event_shape: The shape of one z.
    """

    event_shape: tuple[int, ...]

    @abstractmethod
    def forward(self) -> Distribution:
        """Returns p(z), with an empty batch shape."""

    def bind(self, encoder: Conditional) -> None:
        """Is told which encoder the prior is composed with; most priors do not care.

        Args:
            encoder: x to q(z|x), of the same model.

        Raises:
            UsageError: The prior depends on the encoder and cannot work with this one.
        """
