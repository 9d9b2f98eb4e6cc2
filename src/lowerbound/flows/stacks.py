"""The stacks of flows that have names in the literature."""

from __future__ import annotations

from lowerbound.flows.affine import AffineCoupling, AutoregressiveAffine
from lowerbound.flows.base import Chain, Flow, Inverse
from lowerbound.flows.componentwise import ActNorm, Permutation
from lowerbound.nn import check_sizes


def real_nvp(latent_dim: int, layers: int = 6, width: int = 64, context_dim: int = 0) -> Chain:
    """Couplings that keep one half of the components and then the other, each with a normalisation behind it.

    Both directions take one pass a layer. With fewer than 3 layers (or D = 1) some components influence no other.

    Args:
        latent_dim: D.
        layers: How many couplings.
        width: Units in each of the two hidden layers of a coupling's network.
        context_dim: C; 0 for none.

    Raises:
        UsageError: A size is below 1.

    Example:
        >>> flow = real_nvp(4, layers=6)
        >>> flow.forward_passes, flow.inverse_passes
        (6, 6)
    """
    check_sizes(layers=(layers,))
    flows: list[Flow] = []
    for layer in range(layers):
        flows += [AffineCoupling(latent_dim, width, layer % 2 == 1, context_dim), ActNorm(latent_dim)]
    return Chain(flows)


def inverse_autoregressive(latent_dim: int, layers: int = 4, width: int = 64, context_dim: int = 0) -> Chain:
    """Autoregressive layers with the order reversed between them, fast to sample: for posteriors.

    `forward` takes one pass a layer, `inverse` takes D.

    Args:
        latent_dim: D.
        layers: How many autoregressive layers.
        width: Units in each of the two hidden layers of a layer's network.
        context_dim: C; 0 for none.

    Raises:
        UsageError: A size is below 1.

    Example:
        >>> flow = inverse_autoregressive(8, layers=4, context_dim=16)
        >>> flow.forward_passes, flow.inverse_passes
        (4, 32)
    """
    check_sizes(layers=(layers,))
    flows: list[Flow] = [AutoregressiveAffine(latent_dim, width, context_dim)]
    for _ in range(layers - 1):
        flows += [Permutation(latent_dim), AutoregressiveAffine(latent_dim, width, context_dim)]
    return Chain(flows)


def masked_autoregressive(latent_dim: int, layers: int = 4, width: int = 64, context_dim: int = 0) -> Inverse:
    """The inverse of `inverse_autoregressive`, fast to evaluate: for priors.

    `inverse`, and with it the density of any value, takes one pass a layer; `forward`, and with it a sample, takes D.

    Args:
        latent_dim: D.
        layers: How many autoregressive layers.
        width: Units in each of the two hidden layers of a layer's network.
        context_dim: C; 0 for none.

    Raises:
        UsageError: A size is below 1.

    Example:
        >>> flow = masked_autoregressive(8, layers=4)
        >>> flow.forward_passes, flow.inverse_passes
        (32, 4)
    """
    return Inverse(inverse_autoregressive(latent_dim, layers, width, context_dim))
