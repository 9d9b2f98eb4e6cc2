"""Heads: from features to a distribution.

Posterior heads give q(z|x), likelihood heads give p(x|z), both as `torch.distributions.Distribution`; `Conditional`
puts a network before one.
"""

from lowerbound.heads.base import Conditional, Head
from lowerbound.heads.columns import Columns
from lowerbound.heads.levels import (
    Categorical,
    DiscretisedLogistic,
    DiscretisedLogisticMixture,
    NegativeBinomial,
    Poisson,
)
from lowerbound.heads.likelihoods import (
    Bernoulli,
    CalibratedNormal,
    ContinuousBernoulli,
    HeteroscedasticNormal,
    Likelihood,
    Normal,
    NormalPerDimension,
)
from lowerbound.heads.posteriors import Delta, DiagonalNormal, FlowedNormal, FullNormal
from lowerbound.heads.quantisers import FiniteScalar, Quantiser, VectorQuantised
from lowerbound.heads.text import RecurrentText

__all__ = [
    "Bernoulli",
    "CalibratedNormal",
    "Categorical",
    "Columns",
    "Conditional",
    "ContinuousBernoulli",
    "Delta",
    "DiagonalNormal",
    "DiscretisedLogistic",
    "DiscretisedLogisticMixture",
    "FiniteScalar",
    "FlowedNormal",
    "FullNormal",
    "Head",
    "HeteroscedasticNormal",
    "Likelihood",
    "NegativeBinomial",
    "Normal",
    "NormalPerDimension",
    "Poisson",
    "Quantiser",
    "RecurrentText",
    "VectorQuantised",
]
