"""Priors: p(z), as modules that return a distribution."""

from lowerbound.priors.base import Prior
from lowerbound.priors.conditional import NormalPerClass
from lowerbound.priors.continuous import FlowPrior, MixtureOfNormals, StandardNormal, VampPrior

__all__ = ["FlowPrior", "MixtureOfNormals", "NormalPerClass", "Prior", "StandardNormal", "VampPrior"]
