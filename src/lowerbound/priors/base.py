"""What a prior is.

A prior is called without arguments, because its parameters may be learned and so change between calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.heads import Conditional


class Prior(nn.Module, ABC):
    """p(z).

    Attributes:
        event_shape: The shape of one z.
        num_classes: How many classes it tells apart; 0 where p(z) does not depend on a class.
    """

    event_shape: tuple[int, ...]
    num_classes: int = 0

    @abstractmethod
    def forward(self) -> Distribution:
        """Returns p(z), with an empty batch shape."""

    def given(self, index: Tensor) -> Distribution:
        """Returns p(z|c); p(z) itself for a prior that does not depend on a class.

        Args:
            index: The classes by their place among the model's, int64 `[B]` or `[]`.
        """
        distribution: Distribution = self()
        return distribution

    def between(self, start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
        """Returns points on the way from one z to another: on a straight line, unless the prior knows a better one.

        Args:
            start: z, `[*batch, *event_shape]`.
            end: z, likewise.
            weight: 0 at the start and 1 at the end, broadcastable with both.
        """
        return torch.lerp(start, end, weight)

    def bind(self, encoder: Conditional) -> None:
        """Is told which encoder the prior is composed with; most priors do not care.

        Args:
            encoder: x to q(z|x), of the same model.

        Raises:
            UsageError: The prior depends on the encoder and cannot work with this one.
        """
