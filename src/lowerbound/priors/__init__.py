"""Priors: p(z), as modules that return a distribution."""

from lowerbound.priors.base import Prior
from lowerbound.priors.codes import AutoregressiveCodes
from lowerbound.priors.conditional import NormalPerClass
from lowerbound.priors.continuous import FlowPrior, MixtureOfNormals, StandardNormal, VampPrior

__all__ = [
    "AutoregressiveCodes",
    "FlowPrior",
    "MixtureOfNormals",
    "NormalPerClass",
    "Prior",
    "StandardNormal",
    "VampPrior",
]
