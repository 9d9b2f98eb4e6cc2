"""One paper, one part: recipes that differ from `mlp` in a single part of the composition."""

from __future__ import annotations

from collections.abc import Callable

import lowerbound as lb
from lowerbound.recipes.base import Run, binarised, likelihood_head, mlp_vae, started, swift, updates


def beta(
    data: lb.Data,
    *,
    latent_dim: int = 10,
    width: int = 512,
    beta: float = 4.0,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """The KL weighted by beta: fewer, more separate latent components, at the bound's expense.

    Higgins et al. (2017). The numbers that `evaluate` gives are of the plain bound.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        beta: The weight of the KL.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    return Run(seen, _mlp(seen, latent_dim, width), lb.ELBO(beta=beta), swift(epochs, batch_size, lr))


def tc(
    data: lb.Data,
    *,
    latent_dim: int = 10,
    width: int = 512,
    beta: float = 6.0,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """beta-TCVAE: only the total correlation of z is weighted, so that components separate.

    Chen et al. (2018).

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        beta: The weight of the total correlation.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    objective = lb.objectives.BetaTC(dataset_size=len(seen.train), beta=beta)
    return Run(seen, _mlp(seen, latent_dim, width), objective, swift(epochs, batch_size, lr))


def wae(
    data: lb.Data,
    *,
    latent_dim: int = 8,
    width: int = 512,
    strength: float = 100.0,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """A Wasserstein autoencoder: reconstruction, and codes whose aggregate is pulled to the prior by MMD.

    Tolstikhin et al. (2018). There is a bound to report, but it is not what was optimised.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        strength: The weight of the MMD penalty.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    return Run(seen, _mlp(seen, latent_dim, width), lb.objectives.WAE(lambda_=strength), swift(epochs, batch_size, lr))


def iwae(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 512,
    num_samples: int = 5,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """The importance-weighted bound with several draws an example.

    Burda, Grosse and Salakhutdinov (2016). Tighter than the ELBO; the posterior may grow broader than with it.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        num_samples: Draws of z an example.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    return Run(seen, _mlp(seen, latent_dim, width), lb.objectives.IWAE(num_samples), swift(epochs, batch_size, lr))


def dreg(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 512,
    num_samples: int = 5,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """The importance-weighted bound with doubly reparameterised gradients.

    Tucker, Lawson, Gu and Maddison (2019). The same bound as `iwae`, with less noise in the encoder's gradient.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        num_samples: Draws of z an example.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    objective = lb.objectives.IWAE(num_samples, lb.objectives.DoublyReparameterised())
    return Run(seen, _mlp(seen, latent_dim, width), objective, swift(epochs, batch_size, lr))


def full_covariance(
    data: lb.Data,
    *,
    latent_dim: int = 20,
    width: int = 512,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """A posterior with a full covariance: components of z may depend on each other, given x.

    The gap between the evidence and the bound gets smaller where the true posterior is correlated.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    vae = _mlp(seen, latent_dim, width, posterior=lb.heads.FullNormal)
    return Run(seen, vae, _warm(seen, batch_size), swift(epochs, batch_size, lr))


def iaf(
    data: lb.Data,
    *,
    latent_dim: int = 20,
    width: int = 512,
    flow_layers: int = 2,
    flow_width: int = 128,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """A normal posterior carried on by an inverse autoregressive flow.

    Kingma et al. (2016). It can bend and skew; the KL is estimated from the draws.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        flow_layers: Autoregressive maps.
        flow_width: Units of their hidden layers.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)

    def posterior(in_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> lb.heads.Head:
        flow = lb.flows.inverse_autoregressive(latent_dim, flow_layers, flow_width, context_dim=latent_dim)
        return lb.heads.FlowedNormal(in_shape, event_shape, flow)

    vae = _mlp(seen, latent_dim, width, posterior=posterior)
    return Run(seen, vae, _warm(seen, batch_size), swift(epochs, batch_size, lr))


def vamp(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 512,
    components: int = 200,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """VampPrior: the prior is a mixture of the posteriors of learned pseudo-inputs.

    Tomczak and Welling (2018).

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        components: Pseudo-inputs; they begin at training examples.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    unit = seen.support is not lb.Support.REAL
    prior = lb.priors.VampPrior(latent_dim, seen.event_shape, min(components, len(seen.train)), unit)
    vae = _mlp(seen, latent_dim, width, prior=prior)
    prior.start_at(seen.train.examples(lb.data.epoch_order(len(seen.train), 0, 0)[: prior.num_components]).x)
    return Run(seen, vae, _warm(seen, batch_size), swift(epochs, batch_size, lr))


def flow_prior(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 512,
    flow_layers: int = 6,
    flow_width: int = 128,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """A prior that is a flow of coupling layers: as flexible as the codes need it to be.

    RealNVP (Dinh, Sohl-Dickstein and Bengio, 2017) as the prior of a VAE.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        flow_layers: Coupling layers.
        flow_width: Units of their hidden layers.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    prior = lb.priors.FlowPrior(latent_dim, lb.flows.real_nvp(latent_dim, flow_layers, flow_width))
    return Run(seen, _mlp(seen, latent_dim, width, prior=prior), _warm(seen, batch_size), swift(epochs, batch_size, lr))


def sigma(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 512,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """Grey values under a normal density whose standard deviation is the best one, in closed form.

    sigma-VAE (Rybkin, Daniilidis and Levine, 2021): no weight between reconstruction and KL is left to choose.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    vae = _mlp(data, latent_dim, width, likelihood=lb.heads.CalibratedNormal)
    return Run(data, vae, _warm(data, batch_size), swift(epochs, batch_size, lr))


def logistic(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 512,
    epochs: int = 16,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """8-bit pixels under a discretised logistic: a true probability of each level, in bits per dimension.

    Kingma et al. (2016); Salimans et al. (2017). For pictures with values k/255.

    Args:
        data: The data set.
        latent_dim: Components of z.
        width: Units of each of the two hidden layers each way.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    vae = _mlp(data, latent_dim, width, likelihood=lb.heads.DiscretisedLogistic)
    return Run(data, vae, _warm(data, batch_size), swift(epochs, batch_size, lr))


def _mlp(
    data: lb.Data,
    latent_dim: int,
    width: int,
    *,
    posterior: Callable[[tuple[int, ...], tuple[int, ...]], lb.heads.Head] | None = None,
    likelihood: type[lb.heads.Likelihood] | None = None,
    prior: lb.priors.Prior | None = None,
) -> lb.VAE:
    """Returns the model that all these recipes share, but for the part that is given."""
    vae = mlp_vae(
        data,
        latent_dim,
        (width, width),
        lb.nn.GELU(),
        posterior or lb.heads.DiagonalNormal,
        likelihood or likelihood_head(data),
        prior,
    )
    return started(vae, data)


def _warm(data: lb.Data, batch_size: int) -> lb.ELBO:
    """Returns the plain bound with the KL rising over the first epoch."""
    return lb.ELBO(warmup=updates(data, 1.0, batch_size))
