"""Priors: p(z), as modules that return a distribution."""

from lowerbound.priors.base import Prior
from lowerbound.priors.continuous import FlowPrior, MixtureOfNormals, StandardNormal, VampPrior

__all__ = ["FlowPrior", "MixtureOfNormals", "Prior", "StandardNormal", "VampPrior"]
