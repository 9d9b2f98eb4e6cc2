"""The best VAE that so much time can buy: recipes for a budget, chosen on validation data.

What they share: a large step that falls to zero, SOAP (`lowerbound.optimisers`), averaged weights, and all training
examples, validation included: their settings were chosen before, and nothing is selected in a run. `docs/speed.md`
tells what was tried. The epochs are for some 60,000 examples; fewer want more of them.
"""

from __future__ import annotations

import lowerbound as lb
from lowerbound.recipes.base import LikelihoodName, Run, binarised, likelihood_head, mlp_vae, started, updates


def fast(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 384,
    epochs: int = 8,
    batch_size: int = 512,
    lr: float = 1e-2,
) -> Run:
    """The tutorial's quality in seconds: the same measure, another network and optimiser.

    Grey pixels in [0, 1] with binary cross-entropy, as `tutorial`, so that the two can be compared; it is no
    likelihood, and the numbers say so. Other data get the likelihood that goes with their values.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    grey = data.support in (lb.Support.EIGHT_BIT, lb.Support.UNIT_INTERVAL)
    likelihood = likelihood_head(data, LikelihoodName.BERNOULLI if grey else LikelihoodName.AUTO)
    vae = mlp_vae(data, latent_dim, (width, width), lb.nn.GELU(), lb.heads.DiagonalNormal, likelihood)
    joined = data.joined()
    return Run(joined, started(vae, joined), lb.ELBO(), _soap(epochs, batch_size, lr, 0.98, clip=20.0))


def nll_10(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 320,
    blocks: int = 3,
    flow_layers: int = 6,
    flow_width: int = 128,
    draws: int = 5,
    share: float = 0.2,
    epochs: int = 124,
    batch_size: int = 1024,
    lr: float = 6e-3,
) -> Run:
    """The best log p(x) in ten minutes on two cores: residual layers, a flow prior, a tighter bound at the end.

    Args:
        data: The data set; grey values are read as probabilities and binarised afresh at each look.
        latent_dim: Components of z.
        width: Units of each layer.
        blocks: Residual blocks each way.
        flow_layers: Couplings of the prior's flow.
        flow_width: Units of each of the two hidden layers in a coupling.
        draws: Draws of z an example in the importance-weighted bound at the end.
        share: The last share of the epochs, which have that bound.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data.joined())
    down = lb.nn.ResidualMLP(seen.event_shape, width, blocks)
    up = lb.nn.ResidualMLP((latent_dim,), width, blocks)
    vae = lb.VAE(
        encoder=lb.heads.Conditional(down, lb.heads.DiagonalNormal(down.out_shape, (latent_dim,))),
        decoder=lb.heads.Conditional(up, likelihood_head(seen)(up.out_shape, seen.event_shape)),
        prior=lb.priors.FlowPrior(latent_dim, lb.flows.real_nvp(latent_dim, flow_layers, flow_width)),
    )
    objective = _tighter_at_the_end(seen, draws, share, epochs, batch_size)
    return Run(seen, started(vae, seen), objective, _soap(epochs, batch_size, lr, 0.999, clip=50.0))


def nll_60(
    data: lb.Data,
    *,
    latent_dim: int = 40,
    channels: int = 16,
    levels: int = 2,
    blocks: int = 2,
    features: int = 512,
    flow_layers: int = 6,
    flow_width: int = 128,
    draws: int = 5,
    share: float = 0.1,
    epochs: int = 105,
    batch_size: int = 256,
    lr: float = 4e-3,
) -> Run:
    """The best log p(x) in an hour on two cores: residual convolutions, a flow prior, a tighter bound at the end.

    Args:
        data: The data set, of pictures; grey values are read as probabilities and binarised afresh at each look.
        latent_dim: Components of z.
        channels: Channels after the first halving of the picture; they double at each further one.
        levels: How often the picture is halved.
        blocks: Residual blocks at each size, each way.
        features: Units between the smallest picture and z, each way.
        flow_layers: Couplings of the prior's flow.
        flow_width: Units of each of the two hidden layers in a coupling.
        draws: Draws of z an example in the importance-weighted bound at the end.
        share: The last share of the epochs, which have that bound.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data.joined())
    prior = lb.priors.FlowPrior(latent_dim, lb.flows.real_nvp(latent_dim, flow_layers, flow_width))
    widths = tuple(channels * 2**level for level in range(levels))
    vae = _residual_vae(seen, prior, widths, blocks, features)
    objective = _tighter_at_the_end(seen, draws, share, epochs, batch_size)
    return Run(seen, started(vae, seen), objective, _soap(epochs, batch_size, lr, 0.999, clip=50.0))


def gpu_25(
    data: lb.Data,
    *,
    latent_dim: int = 40,
    channels: int = 64,
    levels: int = 2,
    blocks: int = 2,
    features: int = 1024,
    flow_layers: int = 8,
    flow_width: int = 256,
    draws: int = 5,
    share: float = 0.1,
    epochs: int = 300,
    batch_size: int = 512,
    lr: float = 3e-3,
) -> Run:
    """For 25 minutes on one H100: `nll-60` with wider networks, a larger flow, and more epochs.

    Its size is by reckoning: 43 TFLOP an epoch of 60,000 digits. It was not run on an accelerator yet, and neither
    its time nor its log p(x) is known.

    Args:
        data: The data set, of pictures; grey values are read as probabilities and binarised afresh at each look.
        latent_dim: Components of z.
        channels: Channels after the first halving of the picture; they double at each further one.
        levels: How often the picture is halved.
        blocks: Residual blocks at each size, each way.
        features: Units between the smallest picture and z, each way.
        flow_layers: Couplings of the prior's flow.
        flow_width: Units of each of the two hidden layers in a coupling.
        draws: Draws of z an example in the importance-weighted bound at the end.
        share: The last share of the epochs, which have that bound.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    return nll_60(
        data,
        latent_dim=latent_dim,
        channels=channels,
        levels=levels,
        blocks=blocks,
        features=features,
        flow_layers=flow_layers,
        flow_width=flow_width,
        draws=draws,
        share=share,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
    )


def _residual_vae(
    data: lb.Data, prior: lb.priors.Prior, channels: tuple[int, ...], blocks: int, features: int
) -> lb.VAE:
    latent_dim = prior.event_shape[0]
    down = lb.nn.ResNetDown(data.event_shape, channels, blocks, features)
    picture = (data.event_shape[1], data.event_shape[2])
    up = lb.nn.ResNetUp((latent_dim,), picture, channels, blocks, features)
    return lb.VAE(
        encoder=lb.heads.Conditional(down, lb.heads.DiagonalNormal(down.out_shape, (latent_dim,))),
        decoder=lb.heads.Conditional(up, likelihood_head(data)(up.out_shape, data.event_shape)),
        prior=prior,
    )


def _tighter_at_the_end(
    data: lb.Data, draws: int, share: float, epochs: int, batch_size: int
) -> lb.objectives.Objective:
    dreg = lb.objectives.IWAE(draws, lb.objectives.DoublyReparameterised())
    return lb.objectives.InTurn(lb.ELBO(), dreg, updates(data, (1 - share) * epochs, batch_size))


def _soap(epochs: int, batch_size: int, lr: float, average: float, clip: float) -> lb.Training:
    return lb.Training(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule=lb.training.Linear(warmup=0.05),
        clip=clip,
        average=average,
        optimiser=lb.optimisers.SOAP(),
    )
