"""Heads: from features to a distribution.

Posterior heads give q(z|x), likelihood heads give p(x|z), both as `torch.distributions.Distribution`; `Conditional`
puts a network before one.
"""

from lowerbound.heads.base import Conditional, Head
from lowerbound.heads.likelihoods import Bernoulli, ContinuousBernoulli, Likelihood, Normal
from lowerbound.heads.posteriors import Delta, DiagonalNormal, FlowedNormal, FullNormal

__all__ = [
    "Bernoulli",
    "Conditional",
    "ContinuousBernoulli",
    "Delta",
    "DiagonalNormal",
    "FlowedNormal",
    "FullNormal",
    "Head",
    "Likelihood",
    "Normal",
]
