"""Recipes of models whose z is a sequence of discrete codes."""

from __future__ import annotations

import math

import lowerbound as lb
from lowerbound.recipes.base import Run, binarised, likelihood_head, started, swift


def vq(
    data: lb.Data,
    *,
    positions: int = 10,
    code_dim: int = 16,
    num_codes: int = 32,
    halvings: int = 0,
    width: int = 512,
    channels: int = 64,
    commitment: float = 0.25,
    prior_width: int = 64,
    prior_depth: int = 2,
    average: float = 0.0,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """VQ-VAE: z is a sequence of codes out of a learned codebook, under a learned autoregressive prior.

    Van den Oord, Vinyals and Kavukcuoglu (2017). The prior, a small transformer, learns beside the codes, so the model
    samples.

    Args:
        data: The data set.
        positions: Codes an example; with halvings, their number follows from the picture.
        code_dim: Components of a code's vector.
        num_codes: Codes in the codebook.
        halvings: Convolutions that halve a picture before it is coded, with one code a place; 0 for an MLP to codes
            that each see all of x.
        width: Units of each of the two hidden layers each way, without halvings.
        channels: Channels at the smallest picture, with halvings; half as many at each size above.
        commitment: The weight of what pulls the encoder to its codes.
        prior_width: Width of the prior's transformer.
        prior_depth: Its layers.
        average: Decay of the moving average of the weights; 0 for none, because the codebook is one already, and the
            average of the networks would be an older one.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    down, up, event = _networks(seen, (positions, code_dim), width, halvings, channels)
    head = lb.heads.VectorQuantised(down.out_shape, event, num_codes)
    vae = _vae(seen, down, head, up, prior_width, prior_depth)
    return Run(seen, vae, lb.objectives.Quantised(commitment), swift(epochs, batch_size, lr, average))


def fsq(
    data: lb.Data,
    *,
    positions: int = 10,
    levels: tuple[int, ...] = (6, 6),
    halvings: int = 0,
    width: int = 512,
    channels: int = 64,
    prior_width: int = 64,
    prior_depth: int = 2,
    average: float = 0.99,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 2e-3,
) -> Run:
    """Finite scalar quantisation: codes are rounded numbers, and nothing of a codebook is learned.

    Mentzer, Minnen, Agustsson and Tschannen (2023). With the same learned prior as `vq`.

    Args:
        data: The data set.
        positions: Codes an example; with halvings, their number follows from the picture.
        levels: Levels of each number of a code, at least 3 (--levels 8 --levels 5); their product is the number of
            codes.
        halvings: Convolutions that halve a picture before it is coded, with one code a place; 0 for an MLP to codes
            that each see all of x.
        width: Units of each of the two hidden layers each way, without halvings.
        channels: Channels at the smallest picture, with halvings; half as many at each size above.
        prior_width: Width of the prior's transformer.
        prior_depth: Its layers.
        average: Decay of the moving average of the weights; 0 for none.
        epochs: Passes over the training examples.
        batch_size: Examples an update.
        lr: The highest learning rate.
    """
    seen = binarised(data)
    down, up, event = _networks(seen, (positions, len(levels)), width, halvings, channels)
    head = lb.heads.FiniteScalar(down.out_shape, event, levels)
    vae = _vae(seen, down, head, up, prior_width, prior_depth)
    return Run(seen, vae, lb.objectives.Quantised(), swift(epochs, batch_size, lr, average))


def _networks(
    data: lb.Data, event: tuple[int, int], width: int, halvings: int, channels: int
) -> tuple[lb.nn.Network, lb.nn.Network, tuple[int, int]]:
    """Returns the two networks, and the shape of z between them."""
    if not halvings:
        return lb.nn.MLP(data.event_shape, (width, width)), lb.nn.MLP(event, (width, width)), event
    levels = tuple(max(1, channels >> level) for level in reversed(range(halvings)))
    down = lb.nn.ConvToGrid(data.event_shape, levels)
    grid = (math.prod(down.out_shape[1:]), event[1])
    return down, lb.nn.ConvFromGrid(grid, (data.event_shape[1], data.event_shape[2]), levels), grid


def _vae(
    data: lb.Data, down: lb.nn.Network, head: lb.heads.Quantiser, up: lb.nn.Network, width: int, depth: int
) -> lb.VAE:
    """Returns the model, with a prior over the head's codes."""
    vae = lb.VAE(
        encoder=lb.heads.Conditional(down, head),
        decoder=lb.heads.Conditional(up, likelihood_head(data)(up.out_shape, data.event_shape)),
        prior=lb.priors.AutoregressiveCodes(head.event_shape, head.num_codes, width, depth),
    )
    return started(vae, data)
