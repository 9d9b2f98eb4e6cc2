"""What recipes share: the `Run` they return, the names of choices, and the pieces that they are put together from."""

# This package is read for `lowerbound train --help`, so torch must not be imported by it: the package's public names
# are lazy, and annotations are not evaluated.
from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import lowerbound as lb
from lowerbound.errors import UsageError


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
    POISSON = "poisson"
    NEGATIVE_BINOMIAL = "negative-binomial"
    DISCRETISED_LOGISTIC = "discretised-logistic"
    LOGISTIC_MIXTURE = "logistic-mixture"


class BinariseName(enum.StrEnum):
    """The ways of binarisation by name."""

    AUTO = "auto"
    NONE = "none"
    THRESHOLD = "threshold"
    DYNAMIC = "dynamic"
    FIXED = "fixed"


def started(vae: lb.VAE, data: lb.Data) -> lb.VAE:
    """Returns the model with its decoder's bias at the training data's mean."""
    vae.likelihood.start_at(lb.data.mean(data.train))
    return vae


def mlp_vae(
    data: lb.Data,
    latent_dim: int,
    widths: tuple[int, ...],
    activation: lb.nn.Module,
    posterior: Callable[[tuple[int, ...], tuple[int, ...]], lb.heads.Head],
    likelihood: type[lb.heads.Likelihood],
    prior: lb.priors.Prior | None = None,
) -> lb.VAE:
    """Returns a VAE of two mirrored MLPs; the prior is a standard normal unless another is given."""
    down = lb.nn.MLP(data.event_shape, widths, activation)
    up = lb.nn.MLP((latent_dim,), widths[::-1], activation)
    return lb.VAE(
        encoder=lb.heads.Conditional(down, posterior(down.out_shape, (latent_dim,))),
        decoder=lb.heads.Conditional(up, likelihood(up.out_shape, data.event_shape)),
        prior=lb.priors.StandardNormal(latent_dim) if prior is None else prior,
    )


def binarised(data: lb.Data, asked: BinariseName = BinariseName.AUTO) -> lb.Data:
    """Returns the data binarised as asked; auto is dynamic for grey values, and none in colour and otherwise."""
    return data.binarised(_way(data, asked))


def _way(data: lb.Data, asked: BinariseName) -> lb.Binarise:
    if asked is not BinariseName.AUTO:
        return lb.Binarise(asked.value)
    grey = data.support in (lb.Support.EIGHT_BIT, lb.Support.UNIT_INTERVAL)
    # Who has MNIST in mind wants it binary; nobody wants a photograph to be.
    return lb.Binarise.DYNAMIC if grey and not _in_colour(data) else lb.Binarise.NONE


def _in_colour(data: lb.Data) -> bool:
    return len(data.event_shape) == 3 and data.event_shape[0] == 3


def likelihood_head(data: lb.Data, asked: LikelihoodName = LikelihoodName.AUTO) -> type[lb.heads.Likelihood]:
    """Returns the likelihood asked for; auto goes by the values that x can take."""
    match asked:
        case LikelihoodName.BERNOULLI:
            return lb.heads.Bernoulli
        case LikelihoodName.CONTINUOUS_BERNOULLI:
            return lb.heads.ContinuousBernoulli
        case LikelihoodName.NORMAL:
            return lb.heads.Normal
        case LikelihoodName.POISSON:
            return lb.heads.Poisson
        case LikelihoodName.NEGATIVE_BINOMIAL:
            return lb.heads.NegativeBinomial
        case LikelihoodName.DISCRETISED_LOGISTIC:
            return lb.heads.DiscretisedLogistic
        case LikelihoodName.LOGISTIC_MIXTURE:
            return lb.heads.DiscretisedLogisticMixture
    match data.support:
        case lb.Support.BINARY:
            return lb.heads.Bernoulli
        case lb.Support.COUNT:
            # Given z, counts still vary by more than their mean as a rule, and it contains the Poisson as a limit.
            return lb.heads.NegativeBinomial
        case lb.Support.REAL:
            return lb.heads.Normal
        case lb.Support.EIGHT_BIT if _in_colour(data):
            return lb.heads.DiscretisedLogistic
        case lb.Support.TOKENS:
            raise UsageError(
                f"What this recipe is for means nothing for values with support {data.support.value}, as the lines of "
                f"{data.name} are. These do: RecurrentText. Use the recipe text (lowerbound train text)."
            )
        case lb.Support.TABLE:
            raise UsageError(
                f"What this recipe is for means nothing for values with support {data.support.value}, as the rows of "
                f"{data.name} are. These do: Columns. Use the recipe tabular (lowerbound train tabular)."
            )
        case _:
            return lb.heads.ContinuousBernoulli


def updates(data: lb.Data, epochs: float, batch_size: int) -> int:
    """Returns the number of updates in so many epochs."""
    return round(epochs * len(data.train) / max(1, batch_size))


def plain(epochs: int, batch_size: int, lr: float) -> lb.Training:
    """Returns Adam with a constant step in float32: what tutorials use."""
    fp32 = lb.training.Precision.FP32
    return lb.Training(epochs=epochs, batch_size=batch_size, lr=lr, precision=fp32)


def swift(epochs: int, batch_size: int, lr: float, average: float = 0.99, patience: int = 0) -> lb.Training:
    """Returns a large step that rises shortly and falls to zero, and averaged weights: good in few epochs."""
    return lb.Training(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule=lb.training.Linear(warmup=0.05),
        clip=200.0,
        average=average or None,
        patience=patience or None,
    )
