"""Recipes: named functions that put together everything a training needs.

A recipe takes a data set and settings, each with a default, and returns a `Run`. It is written with the same public
names that a user has, so a recipe of your own looks the same; the command line takes it as `module:function`:

```python
import lowerbound as lb

def mine(data: "lb.Data", *, latent_dim: int = 8, epochs: int = 5, batch_size: int = 128, lr: float = 1e-3) -> lb.Run:
    ...
```

Every recipe has the settings `epochs`, `batch_size` and `lr`.
"""

# This module is read for `lowerbound train --help`, so torch must not be imported by it: the package's public names are
# lazy, and annotations are not evaluated.
from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import lowerbound as lb


@dataclass(frozen=True)
class Run:
    """Everything a training needs.

    Attributes:
        data: What is learned from, validated and tested on.
        vae: The model, freshly initialised.
        objective: What is minimised.
        training: Budget, optimiser and the rest.
    """

    data: lb.Data
    vae: lb.VAE
    objective: lb.objectives.Objective
    training: lb.Training


class LikelihoodName(enum.StrEnum):
    """The likelihood heads by name."""

    AUTO = "auto"
    BERNOULLI = "bernoulli"
    CONTINUOUS_BERNOULLI = "continuous-bernoulli"
    NORMAL = "normal"


class BinariseName(enum.StrEnum):
    """The ways of binarisation by name."""

    AUTO = "auto"
    NONE = "none"
    THRESHOLD = "threshold"
    DYNAMIC = "dynamic"
    FIXED = "fixed"


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
        vae=_mlp_vae(data, latent_dim, (width, width), activation, lb.heads.DiagonalNormal, lb.heads.Bernoulli),
        objective=lb.ELBO(),
        training=_plain(epochs, batch_size, lr),
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
        vae=_mlp_vae(data, latent_dim, (width, width), activation, lb.heads.Delta, lb.heads.Bernoulli),
        objective=lb.Reconstruction(),
        training=_plain(epochs, batch_size, lr),
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
        binarise: none, threshold, dynamic or fixed; auto is dynamic for grey values and none otherwise.
        likelihood: bernoulli, continuous-bernoulli or normal; auto goes by the values that x can take.
        beta: The KL's weight.
        warmup: Epochs over which that weight rises from 0.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss; 0 to train through.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = data.binarised(_binarise(data, binarise))
    activation = lb.nn.GELU()
    likelihood_head = _likelihood(seen, likelihood)
    vae = _mlp_vae(seen, latent_dim, (width,) * depth, activation, lb.heads.DiagonalNormal, likelihood_head)
    return Run(
        data=seen,
        vae=_started(vae, seen),
        objective=lb.ELBO(beta=beta, warmup=_updates(seen, warmup, batch_size)),
        training=_swift(epochs, batch_size, lr, average, patience),
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
    """A convolutional VAE for pictures of any size.

    Args:
        data: The data set; its examples have the shape (channels, height, width).
        latent_dim: Components of z.
        channels: Channels at full size; they double each time the picture is halved.
        levels: How often the picture is halved.
        features: Width of the layer between the smallest picture and z.
        binarise: none, threshold, dynamic or fixed; auto is dynamic for grey values and none otherwise.
        likelihood: bernoulli, continuous-bernoulli or normal; auto goes by the values that x can take.
        beta: The KL's weight.
        warmup: Epochs over which that weight rises from 0.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss; 0 to train through.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = data.binarised(_binarise(data, binarise))
    widths = tuple(channels * 2**level for level in range(levels))
    down = lb.nn.ConvDown(seen.event_shape, widths, features)
    up = lb.nn.ConvUp((latent_dim,), (seen.event_shape[1], seen.event_shape[2]), widths, features)
    vae = lb.VAE(
        encoder=lb.heads.Conditional(down, lb.heads.DiagonalNormal(down.out_shape, (latent_dim,))),
        decoder=lb.heads.Conditional(up, _likelihood(seen, likelihood)(up.out_shape, seen.event_shape)),
        prior=lb.priors.StandardNormal(latent_dim),
    )
    return Run(
        data=seen,
        vae=_started(vae, seen),
        objective=lb.ELBO(beta=beta, warmup=_updates(seen, warmup, batch_size)),
        training=_swift(epochs, batch_size, lr, average, patience),
    )


RECIPES: dict[str, Callable[..., Run]] = {f.__name__: f for f in (tutorial, autoencoder, mlp, conv)}


def _started(vae: lb.VAE, data: lb.Data) -> lb.VAE:
    """Returns the model with its decoder's bias at the training data's mean."""
    vae.likelihood.start_at(lb.data.mean(data.train))
    return vae


def _mlp_vae(
    data: lb.Data,
    latent_dim: int,
    widths: tuple[int, ...],
    activation: lb.nn.Module,
    posterior: type[lb.heads.Head],
    likelihood: type[lb.heads.Likelihood],
) -> lb.VAE:
    down = lb.nn.MLP(data.event_shape, widths, activation)
    up = lb.nn.MLP((latent_dim,), widths[::-1], activation)
    return lb.VAE(
        encoder=lb.heads.Conditional(down, posterior(down.out_shape, (latent_dim,))),
        decoder=lb.heads.Conditional(up, likelihood(up.out_shape, data.event_shape)),
        prior=lb.priors.StandardNormal(latent_dim),
    )


def _binarise(data: lb.Data, asked: BinariseName) -> lb.Binarise:
    if asked is not BinariseName.AUTO:
        return lb.Binarise(asked.value)
    grey = data.support in (lb.Support.EIGHT_BIT, lb.Support.UNIT_INTERVAL)
    return lb.Binarise.DYNAMIC if grey else lb.Binarise.NONE


def _likelihood(data: lb.Data, asked: LikelihoodName) -> type[lb.heads.Likelihood]:
    match asked:
        case LikelihoodName.BERNOULLI:
            return lb.heads.Bernoulli
        case LikelihoodName.CONTINUOUS_BERNOULLI:
            return lb.heads.ContinuousBernoulli
        case LikelihoodName.NORMAL:
            return lb.heads.Normal
    if data.support is lb.Support.BINARY:
        return lb.heads.Bernoulli
    return lb.heads.Normal if data.support is lb.Support.REAL else lb.heads.ContinuousBernoulli


def _updates(data: lb.Data, epochs: float, batch_size: int) -> int:
    """Returns the number of updates in so many epochs."""
    return round(epochs * len(data.train) / max(1, batch_size))


def _plain(epochs: int, batch_size: int, lr: float) -> lb.Training:
    fp32 = lb.training.Precision.FP32
    return lb.Training(epochs=epochs, batch_size=batch_size, lr=lr, precision=fp32)


def _swift(epochs: int, batch_size: int, lr: float, average: float, patience: int) -> lb.Training:
    return lb.Training(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule=lb.training.Linear(warmup=0.05),
        clip=200.0,
        average=average or None,
        patience=patience or None,
    )
