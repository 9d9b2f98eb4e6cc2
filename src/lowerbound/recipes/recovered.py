"""The recipe that finds the causes of photographs."""

from __future__ import annotations

from dataclasses import replace

import lowerbound as lb
from lowerbound.errors import UsageError
from lowerbound.recipes.base import Run, likelihood_head, started, swift

# A factor that was told is in its component to within a hundredth of a standard deviation.
_SCALE = 0.01


def camera(
    data: lb.Data,
    *,
    labelled: float = 0.01,
    presence: float = 0.2,
    latent_dim: int = 0,
    width: int = 256,
    channels: int = 32,
    beta: float = 6.0,
    told_seed: int = 0,
    average: float = 0.99,
    patience: int = 0,
    epochs: int = 15,
    batch_size: int = 100,
    lr: float = 2e-3,
) -> Run:
    """Finds the true factors of the data, told those of one example in a hundred.

    Locatello et al. (2020), as a bound: a factor that is told is observed through its own component of z. With
    --labelled 0 nothing is told and the objective is that of `tc` (Chen et al., 2018), which finds components that are
    independent, but in general not the factors (Locatello et al., 2019).

    Args:
        data: The data set; its examples have factors, as those of camera.
        labelled: The share of the training examples whose factors are told; 0 for none.
        presence: The share that these are shown to have of an epoch, so that every batch has some.
        latent_dim: Components of z; 0 for as many as there are factors.
        width: Units of each of the two hidden layers of the decoder, and of the encoder where x is no picture.
        channels: Channels of the encoder's convolutions, half as many in the first.
        beta: The weight of the total correlation where nothing is told.
        told_seed: Seeds which examples are told.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss, which knows the factors of all validation
            examples; 0 to train through.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    factors = data.train.factors
    if factors is None:
        raise UsageError(
            f"The recipe camera finds factors that are known, to be told a few and to be held against them, and "
            f"{data.name} has none. Use --data camera, or the recipe tc, which asks for none."
        )
    latent = latent_dim or len(factors.names)
    head = lb.heads.DiscretisedLogistic if data.support is lb.Support.EIGHT_BIT else likelihood_head(data)
    down = _encoder(data.event_shape, width, channels)
    up = lb.nn.MLP((latent,), (width, width), lb.nn.GELU())
    vae = lb.VAE(
        encoder=lb.heads.Conditional(down, lb.heads.DiagonalNormal(down.out_shape, (latent,))),
        decoder=lb.heads.Conditional(up, head(up.out_shape, data.event_shape)),
        prior=lb.priors.StandardNormal(latent),
    )
    objective: lb.objectives.Objective = lb.objectives.BetaTC(len(data.train), beta=beta)
    if labelled:
        train = lb.data.partly_told(data.train, labelled, presence, told_seed)
        objective = _told(lb.ELBO(), train)
        data = replace(data, train=train)
    return Run(data, started(vae, data), objective, swift(epochs, batch_size, lr, average, patience))


def _encoder(event_shape: tuple[int, ...], width: int, channels: int) -> lb.nn.Network:
    """Returns convolutions for pictures, which see a few examples for what they have in common; else an MLP."""
    if len(event_shape) != 3:
        return lb.nn.MLP(event_shape, (width, width), lb.nn.GELU())
    return lb.nn.ConvToGrid(event_shape, (channels // 2, channels, channels), blocks=1)


def _told(objective: lb.objectives.Objective, train: lb.Source) -> lb.objectives.WithFactors:
    """Returns the objective with the factors that are told, moved and scaled to mean 0 and variance 1."""
    factors = train.factors
    assert factors is not None
    told = factors.values[factors.values.isfinite().all(1)].double()
    widths = told.std(0).tolist() if len(told) > 1 else [0.0]
    if min(widths) == 0:
        raise UsageError(
            f"The few examples whose factors are told must differ in each of them, but {len(told.unique(dim=0))} do "
            "not. Raise --labelled."
        )
    return lb.objectives.WithFactors(objective, tuple(told.mean(0).tolist()), tuple(widths), _SCALE)
