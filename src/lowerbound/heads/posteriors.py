"""Posterior heads: features to q(z|x)."""

from __future__ import annotations

import torch
from torch import Tensor

from lowerbound import distributions
from lowerbound.heads.base import LOG_SCALE_BOUND, Head


class DiagonalNormal(Head):
    """A posterior with independent normal components: the mean-field Gaussian of Kingma and Welling (2014, eq. 9).

    Example:
        >>> q = DiagonalNormal((16,), (2,))(torch.zeros(5, 16), torch.Size([5]))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    num_parameters = 2

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.DiagonalNormal:
        loc, log_scale = self.parameters_of(features, batch)
        bounded = log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        return distributions.DiagonalNormal(loc, bounded, len(self.event_shape))


class Delta(Head):
    """A posterior that is a single point, which makes a plain autoencoder of the composition."""

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.Delta:
        (loc,) = self.parameters_of(features, batch)
        return distributions.Delta(loc, len(self.event_shape))
