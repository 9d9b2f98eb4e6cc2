"""The recipe of a model that is told labels."""

from __future__ import annotations

import lowerbound as lb
from lowerbound.errors import UsageError
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


def conditional(
    data: lb.Data,
    *,
    latent_dim: int = 32,
    width: int = 768,
    depth: int = 2,
    class_prior: bool = False,
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
    """The recipe mlp told each example's label: it generates examples of the class asked for.

    Sohn, Lee and Yan (2015); Kingma et al. (2014). Its numbers are of p(x|c), with the label c given. Labels may be any
    whole numbers; the model remembers which there were.

    Args:
        data: The data set; its examples have labels.
        latent_dim: Components of z.
        width: Units of each hidden layer.
        depth: Hidden layers each way.
        class_prior: Learn a prior for each class, a normal with its own mean and scale, in place of one standard normal
            for all.
        binarise: none, threshold, dynamic or fixed; auto is dynamic for grey values and none otherwise.
        likelihood: bernoulli, continuous-bernoulli, normal, poisson or negative-binomial; auto goes by the values that
            x can take.
        beta: The KL's weight.
        warmup: Epochs over which that weight rises from 0.
        average: Decay of the moving average of the weights; 0 for none.
        patience: Stop after so many epochs without a better validation loss; 0 to train through.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    classes = _classes(data)
    seen, widths, activation = binarised(data, binarise), (width,) * depth, lb.nn.GELU()
    down = lb.nn.MLP(lb.nn.beside(seen.event_shape, len(classes)), widths, activation)
    up = lb.nn.MLP(lb.nn.beside((latent_dim,), len(classes)), widths, activation)
    priors = lb.priors
    vae = lb.ConditionalVAE(
        encoder=lb.heads.Conditional(down, lb.heads.DiagonalNormal(down.out_shape, (latent_dim,))),
        decoder=lb.heads.Conditional(up, likelihood_head(seen, likelihood)(up.out_shape, seen.event_shape)),
        prior=priors.NormalPerClass(latent_dim, len(classes)) if class_prior else priors.StandardNormal(latent_dim),
        classes=classes,
    )
    if seen.valid is not None:
        vae.check_labels(seen.valid.labels)
    return Run(
        data=seen,
        vae=started(vae, seen),
        objective=lb.ELBO(beta=beta, warmup=updates(seen, warmup, batch_size)),
        training=swift(epochs, batch_size, lr, average, patience),
    )


def _classes(data: lb.Data) -> tuple[int, ...]:
    """Returns the labels of the training data, in order."""
    labels = data.train.labels
    if labels is None:
        raise UsageError(
            f"The recipe conditional learns p(x|c) with c the label of an example, and {data.name} has no labels. Give "
            "a source with labels (an array y beside x in a .npz file; mnist, fashion-mnist, mnist-5k and digits have "
            "them), or use the recipe mlp, which needs none."
        )
    return tuple(labels.unique().tolist())
