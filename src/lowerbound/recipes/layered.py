"""Recipes with several layers of latent variables."""

from __future__ import annotations

import lowerbound as lb
from lowerbound.recipes.base import (
    BinariseName,
    LikelihoodName,
    Run,
    binarised,
    likelihood_head,
    started,
    swift,
    updates,
)


def ladder(
    data: lb.Data,
    *,
    latent_dims: tuple[int, ...] = (16, 8, 4),
    width: int = 512,
    state_dim: int = 256,
    blocks: int = 1,
    binarise: BinariseName = BinariseName.AUTO,
    likelihood: LikelihoodName = LikelihoodName.AUTO,
    warmup: float = 4.0,
    free_nats: float = 0.0,
    average: float = 0.99,
    patience: int = 0,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """A ladder VAE: layers of latent variables, each drawn given those above it, by the prior as by the posterior.

    Sønderby et al. (2016), with q relative to p as in NVAE (Vahdat and Kautz, 2020). The KL is phased in slowly, or the
    upper layers would be given up before the lower ones have anything to leave to them.

    Args:
        data: The data set.
        latent_dims: Components of z in each layer, the lowest first.
        width: Units of the networks that go up and of the decoder.
        state_dim: Units of the networks that go down.
        blocks: Residual blocks of each network.
        binarise: none, threshold, dynamic or fixed; auto is dynamic for grey values and none otherwise.
        likelihood: bernoulli, continuous-bernoulli, normal, poisson or negative-binomial; auto goes by the values that
            x can take.
        warmup: Epochs over which the KL's weight rises from 0; there is none with free nats.
        free_nats: Nats that each layer may carry for free; 0 for the plain bound.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss; 0 to train through.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data, binarise)
    vae = lb.model.mlp_ladder(
        seen.event_shape,
        latent_dims,
        likelihood_head(seen, likelihood),
        width=width,
        state_dim=state_dim,
        blocks=blocks,
    )
    objective: lb.objectives.Objective = lb.ELBO(warmup=updates(seen, warmup, batch_size))
    if free_nats:
        objective = lb.objectives.FreeBits(free_nats, groups=latent_dims)
    return Run(seen, started(vae, seen), objective, swift(epochs, batch_size, lr, average, patience))
