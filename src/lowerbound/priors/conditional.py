r"""Priors that depend on a class.

$$p(z|c) = N(z; \mu_c, \sigma_c), \qquad c \in \{1, \dots, C\}$$

Without them a conditional VAE has p(z|c) = p(z), as in Kingma, Mohamed, Rezende and Welling (2014): z is then what is
left of x once its class is known. A prior for each class (Sohn, Lee and Yan, 2015, where a network gives it) lets
classes lie in different places, and be of different spread.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lowerbound.distributions import DiagonalNormal
from lowerbound.flows.base import soft_clamp
from lowerbound.heads.base import LOG_SCALE_BOUND
from lowerbound.nn import check_sizes
from lowerbound.priors.base import Prior


class NormalPerClass(Prior):
    """Independent normal components whose means and scales are learned for each class.

    Every class begins at the standard normal. Log-scales stay within +-10.

    Called without a class it gives the distributions of all classes, batch shape `[C]`; `given` picks those of a batch.

    Args:
        latent_dim: The number of components of z, at least 1.
        num_classes: C, at least 1.

    Raises:
        UsageError: A size is below 1.

    Example:
        >>> prior = NormalPerClass(2, num_classes=10)
        >>> prior.given(torch.tensor([3, 3, 7])).batch_shape, prior().batch_shape
        (torch.Size([3]), torch.Size([10]))
    """

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        check_sizes(latent_dim=(latent_dim,), num_classes=(num_classes,))
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.event_shape = (latent_dim,)
        self.loc = nn.Parameter(torch.zeros(num_classes, latent_dim))
        self.raw_log_scale = nn.Parameter(torch.zeros(num_classes, latent_dim))

    def forward(self) -> DiagonalNormal:
        return DiagonalNormal(self.loc, soft_clamp(self.raw_log_scale, LOG_SCALE_BOUND))

    def given(self, index: Tensor) -> DiagonalNormal:
        # An embedding sums its gradients in the same order every time; indexing may not.
        each = self()
        return DiagonalNormal(F.embedding(index, each.loc), F.embedding(index, each.log_scale))
