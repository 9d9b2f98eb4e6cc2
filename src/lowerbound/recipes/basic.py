"""The recipes to begin with."""

from __future__ import annotations

import lowerbound as lb
from lowerbound.recipes.base import (
    BinariseName,
    LikelihoodName,
    Run,
    binarised,
    likelihood_head,
    mlp_vae,
    plain,
    started,
    swift,
    updates,
)


def tutorial(
    data: lb.Data,
    *,
    latent_dim: int = 200,
    width: int = 400,
    epochs: int = 100,
    batch_size: int = 100,
    lr: float = 1e-3,
) -> Run:
    """The textbook VAE: 784-400-400-200, grey pixels, no tricks.

    Two hidden layers with LeakyReLU(0.2) each way, a normal posterior, plain Adam. It trains on grey pixels with binary
    cross-entropy, which is no likelihood (the numbers say so), and on all training examples, validation included: it
    selects nothing.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each hidden layer.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: Adam's learning rate.
    """
    activation = lb.nn.LeakyReLU(0.2)
    return Run(
        data=data.joined(),
        vae=mlp_vae(data, latent_dim, (width, width), activation, lb.heads.DiagonalNormal, lb.heads.Bernoulli),
        objective=lb.ELBO(),
        training=plain(epochs, batch_size, lr),
    )


def autoencoder(
    data: lb.Data,
    *,
    latent_dim: int = 200,
    width: int = 400,
    epochs: int = 100,
    batch_size: int = 100,
    lr: float = 1e-3,
) -> Run:
    """The tutorial's network as a plain autoencoder: one point z for each x.

    It reconstructs better than the VAE and has no distribution to generate from: nothing in its training says where in
    the latent space codes should lie.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each hidden layer.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: Adam's learning rate.
    """
    activation = lb.nn.LeakyReLU(0.2)
    return Run(
        data=data.joined(),
        vae=mlp_vae(data, latent_dim, (width, width), activation, lb.heads.Delta, lb.heads.Bernoulli),
        objective=lb.Reconstruction(),
        training=plain(epochs, batch_size, lr),
    )


def mlp(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 768,
    depth: int = 2,
    binarise: BinariseName = BinariseName.AUTO,
    likelihood: LikelihoodName = LikelihoodName.AUTO,
    beta: float = 1.0,
    warmup: float = 1.0,
    average: float = 0.99,
    patience: int = 0,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 3e-3,
) -> Run:
    """A good VAE in a minute: wide GELU layers, a large step that falls to zero, averaged weights.

    Grey values in [0, 1] are read as probabilities and binarised afresh each time they are seen, as in most published
    results on MNIST, so the numbers are a true likelihood.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each hidden layer.
        depth: Hidden layers each way.
        binarise: none, threshold, dynamic or fixed; auto is dynamic for grey values, and none in colour and otherwise.
        likelihood: bernoulli, continuous-bernoulli, normal, poisson, negative-binomial, discretised-logistic or
            logistic-mixture; auto goes by the values that x can take, and is discretised-logistic for 8-bit colour.
        beta: The KL's weight.
        warmup: Epochs over which that weight rises from 0.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss; 0 to train through.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data, binarise)
    activation = lb.nn.GELU()
    head = likelihood_head(seen, likelihood)
    vae = mlp_vae(seen, latent_dim, (width,) * depth, activation, lb.heads.DiagonalNormal, head)
    return Run(
        data=seen,
        vae=started(vae, seen),
        objective=lb.ELBO(beta=beta, warmup=updates(seen, warmup, batch_size)),
        training=swift(epochs, batch_size, lr, average, patience),
    )


def conv(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    channels: int = 32,
    levels: int = 2,
    features: int = 256,
    binarise: BinariseName = BinariseName.AUTO,
    likelihood: LikelihoodName = LikelihoodName.AUTO,
    beta: float = 1.0,
    warmup: float = 1.0,
    average: float = 0.99,
    patience: int = 0,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """A convolutional VAE for pictures of any size, grey or colour.

    Pictures in colour are given an 8-bit likelihood, so its bits per dimension are what a coder would pay for them.

    Args:
        data: The data set; its examples have the shape (channels, height, width).
        latent_dim: Components of z.
        channels: Channels at full size; they double each time the picture is halved.
        levels: How often the picture is halved.
        features: Width of the layer between the smallest picture and z.
        binarise: none, threshold, dynamic or fixed; auto is dynamic for grey values, and none in colour and otherwise.
        likelihood: bernoulli, continuous-bernoulli, normal, poisson, negative-binomial, discretised-logistic or
            logistic-mixture; auto goes by the values that x can take, and is discretised-logistic for 8-bit colour.
        beta: The KL's weight.
        warmup: Epochs over which that weight rises from 0.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss; 0 to train through.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data, binarise)
    widths = tuple(channels * 2**level for level in range(levels))
    down = lb.nn.ConvDown(seen.event_shape, widths, features)
    up = lb.nn.ConvUp((latent_dim,), (seen.event_shape[1], seen.event_shape[2]), widths, features)
    vae = lb.VAE(
        encoder=lb.heads.Conditional(down, lb.heads.DiagonalNormal(down.out_shape, (latent_dim,))),
        decoder=lb.heads.Conditional(up, likelihood_head(seen, likelihood)(up.out_shape, seen.event_shape)),
        prior=lb.priors.StandardNormal(latent_dim),
    )
    return Run(
        data=seen,
        vae=started(vae, seen),
        objective=lb.ELBO(beta=beta, warmup=updates(seen, warmup, batch_size)),
        training=swift(epochs, batch_size, lr, average, patience),
    )
