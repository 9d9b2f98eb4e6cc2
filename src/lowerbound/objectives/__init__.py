"""Objectives: what is optimised, per example.

Bounds on log p(x) (`bounds`), the bound with its rate held or taken apart (`regularised`), discrepancies between the
codes and the prior (`discrepancy`), what trains discrete codes (`quantised`), a bound that takes in what is known of
some examples (`supervised`), and one objective after another (`phases`). `base` says what an objective is.
"""

from lowerbound.objectives.base import Objective, Terms
from lowerbound.objectives.bounds import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    DoublyReparameterised,
    Estimator,
    Reconstruction,
    Reparameterised,
    StickingTheLanding,
)
from lowerbound.objectives.discrepancy import WAE, InfoVAE, InverseMultiquadratic, mmd
from lowerbound.objectives.phases import InTurn
from lowerbound.objectives.quantised import Quantised
from lowerbound.objectives.regularised import (
    DIPVAE,
    Aggregate,
    BetaTC,
    Capacity,
    Decomposition,
    DIPKind,
    FreeBits,
    MinibatchStratified,
    MinibatchWeighted,
)
from lowerbound.objectives.supervised import WithFactors

__all__ = [
    "CIWAE",
    "DIPVAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "WAE",
    "Aggregate",
    "BetaTC",
    "Capacity",
    "DIPKind",
    "Decomposition",
    "DoublyReparameterised",
    "Estimator",
    "FreeBits",
    "InTurn",
    "InfoVAE",
    "InverseMultiquadratic",
    "MinibatchStratified",
    "MinibatchWeighted",
    "Objective",
    "Quantised",
    "Reconstruction",
    "Reparameterised",
    "StickingTheLanding",
    "Terms",
    "WithFactors",
    "mmd",
]
