"""Every part by a name, in a size for tests, and models made of them.

A part that the package exports and that is missing here fails `tests/test_grid.py`, which says where to put it. The
first entry of a class is the one that the grid combines with everything; further entries are other settings of it.
"""

import inspect
from abc import ABC
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from lowerbound import flows, heads, priors
from lowerbound import nn as networks
from lowerbound.data import Column, Kind, Support, generator
from lowerbound.model import VAE
from lowerbound.objectives import (
    CIWAE,
    DIPVAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    WAE,
    BetaTC,
    Capacity,
    DIPKind,
    DoublyReparameterised,
    FreeBits,
    InfoVAE,
    InverseMultiquadratic,
    MinibatchStratified,
    Objective,
    Reconstruction,
    StickingTheLanding,
)

LATENT = 3
EVENT = (1, 2, 3)
BATCH = 4

# (features, x) -> a likelihood head.
LIKELIHOODS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], heads.Likelihood]] = {
    "bernoulli": heads.Bernoulli,
    "continuous-bernoulli": heads.ContinuousBernoulli,
    "normal": heads.Normal,
    "normal-fixed": partial(heads.Normal, scale=0.1),
    "normal-per-dimension": heads.NormalPerDimension,
    "normal-heteroscedastic": heads.HeteroscedasticNormal,
    "normal-calibrated": partial(heads.CalibratedNormal, decay=0.5),
    "discretised-logistic": heads.DiscretisedLogistic,
    "mixture": partial(heads.DiscretisedLogisticMixture, num_components=3),
    "categorical": heads.Categorical,
    "categorical-17": partial(heads.Categorical, num_levels=17),
    "categorical-2": partial(heads.Categorical, num_levels=2),
    "poisson": heads.Poisson,
    "negative-binomial": heads.NegativeBinomial,
}

# (features, z) -> a posterior head.
POSTERIORS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], heads.Head]] = {
    "diagonal": heads.DiagonalNormal,
    "full": heads.FullNormal,
    "real-nvp": lambda shape, z: heads.FlowedNormal(shape, z, flows.real_nvp(*z, 2, 8)),
    "iaf": lambda shape, z: heads.FlowedNormal(shape, z, flows.inverse_autoregressive(*z, 2, 8, 4)),
    "maf": lambda shape, z: heads.FlowedNormal(shape, z, flows.masked_autoregressive(*z, 2, 8, 4)),
    "delta": heads.Delta,
}

# (components of z, the shape of x) -> a prior.
PRIORS: dict[str, Callable[[int, tuple[int, ...]], priors.Prior]] = {
    "standard": lambda d, _: priors.StandardNormal(d),
    "mixture": lambda d, _: priors.MixtureOfNormals(d, 5),
    "vamp": lambda d, event: priors.VampPrior(d, event, 6),
    "real-nvp": lambda d, _: priors.FlowPrior(d, flows.real_nvp(d, 2, 8)),
    "maf": lambda d, _: priors.FlowPrior(d, flows.masked_autoregressive(d, 2, 8)),
}

OBJECTIVES: dict[str, Objective] = {
    "elbo": ELBO(),
    "elbo-sampled": ELBO(closed_form=False, num_samples=3),
    "elbo-beta-warmup": ELBO(beta=4, warmup=10),
    "reconstruction": Reconstruction(),
    "iwae": IWAE(3),
    "iwae-stl": IWAE(1, StickingTheLanding()),
    "iwae-dreg": IWAE(3, DoublyReparameterised()),
    "miwae": MIWAE(2, 2, DoublyReparameterised()),
    "piwae": PIWAE(2, 2),
    "piwae-dreg": PIWAE(2, 2, DoublyReparameterised()),
    "ciwae": CIWAE(0.3, 3),
    "ciwae-dreg": CIWAE(0.3, 3, DoublyReparameterised()),
    "free-bits": FreeBits(0.05),
    "free-bits-whole": FreeBits(0.5, groups=1, num_samples=2),
    "capacity": Capacity(gamma=10, capacity=5, warmup=10),
    "beta-tc": BetaTC(1000),
    "beta-tc-stratified": BetaTC(1000, alpha=0.5, beta=2, gamma=3, aggregate=MinibatchStratified()),
    "dip-means": DIPVAE(DIPKind.MEANS),
    "dip-codes": DIPVAE(DIPKind.CODES, lambda_od=1, lambda_d=2),
    "info": InfoVAE(alpha=0.5, lambda_=10),
    "wae": WAE(10, InverseMultiquadratic(scales=(0.5, 2.0))),
}

# Objectives whose loss of one example depends on its batch; their distortion, KL and ELBO do not.
OF_A_BATCH = (FreeBits, Capacity, BetaTC, DIPVAE, InfoVAE, WAE)
# Objectives that ask for no density, neither of q nor of the prior: all that accept a posterior that is a point.
WITHOUT_DENSITY = (Reconstruction, WAE)

# Exported parts that cannot be combined with all others, and the file that tests them instead.
ELSEWHERE = {
    "VectorQuantised": "tests/test_codes.py",
    "FiniteScalar": "tests/test_codes.py",
    "AutoregressiveCodes": "tests/test_codes.py",
    "Quantised": "tests/test_codes.py",
    "InTurn": "tests/test_objectives.py",
    "WithFactors": "tests/test_supervised.py",
    "NormalPerClass": "tests/test_conditional.py",
    "RecurrentText": "tests/test_text.py",
    "Columns": "tests/test_tables.py",
}


def likelihood_named(name: str) -> heads.Likelihood:
    """Returns a likelihood head of the package with that name, of a size for tests."""
    if name == "Columns":
        return heads.Columns((3,), (Column("a", Kind.REAL),))
    return (
        heads.RecurrentText((3,), (2,), num_tokens=9) if name == "RecurrentText" else getattr(heads, name)((3,), (2,))
    )


def exported(module: ModuleType, kind: type) -> set[type]:
    """Returns the concrete classes of a kind that a module exports, but for those that are tested elsewhere."""
    found = (getattr(module, name) for name in module.__all__ if name not in ELSEWHERE)
    return {cls for cls in found if inspect.isclass(cls) and issubclass(cls, kind) and is_concrete(cls)}


def is_concrete(cls: type) -> bool:
    """Whether a class is meant to be built: not a base that says what others are."""
    return not inspect.isabstract(cls) and ABC not in cls.__bases__


def first_of_each_class(made: dict[str, object]) -> list[str]:
    """Returns the names of the first part of each class."""
    return list({type(part): name for name, part in reversed(made.items())}.values())[::-1]


def build(
    posterior: str = "diagonal",
    prior: str = "standard",
    likelihood: str = "bernoulli",
    *,
    event: tuple[int, ...] = EVENT,
    network: str = "mlp",
    latent: int = LATENT,
) -> VAE:
    """Returns a small model of the parts with these names, always with the same weights."""
    torch.manual_seed(0)
    if network == "mlp":
        down, up = networks.MLP(event, (8, 6)), networks.MLP((latent,), (6, 8))
    else:
        down = networks.ConvDown(event, (4, 6), 8)
        up = networks.ConvUp((latent,), event[1:], (4, 6), 8)
    return VAE(
        heads.Conditional(down, POSTERIORS[posterior](down.out_shape, (latent,))),
        heads.Conditional(up, LIKELIHOODS[likelihood](up.out_shape, event)),
        PRIORS[prior](latent, event),
    )


def scramble(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Moves all weights away from every start at zero, so that nothing agrees by chance."""
    draws = generator(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draws))
    return module


def examples(head: heads.Likelihood, count: int = BATCH, seed: int = 0) -> Tensor:
    """Returns x that the likelihood is meant for, `[count, *event]`."""
    x = torch.rand(count, *head.event_shape, generator=generator(seed))
    if Support.BINARY in head.exact:
        return (x < 0.4).float()
    if Support.COUNT in head.exact:
        return (20 * x**3).round()
    return (255 * x).round() / 255 if Support.EIGHT_BIT in head.exact else x
