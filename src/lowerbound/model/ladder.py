r"""The ladder VAE: several layers of latent variables, and their rates.

$$p(x, z) = p(x|z)\,p(z_L) \prod_{l<L} p(z_l|z_{>l}), \qquad q(z|x) = q(z_L|x) \prod_{l<L} q(z_l|z_{>l}, x)$$

Sønderby, Raiko, Maaløe, Sønderby and Winther (2016, "Ladder variational autoencoders"). Encoder, decoder and prior are
parts as in every `VAE`: the encoder is a bottom-up network with a `LadderHead`, the prior a `LadderPrior`, and the
decoder any conditional over z, all layers of it (`lowerbound.model.topdown`). What the model adds is its trace.

**The rate** is a sum over layers,

$$KL(q(z|x)\,\|\,p(z)) = \sum_l E_{q(z_{>l}|x)}\big[KL(q(z_l|z_{>l}, x)\,\|\,p(z_l|z_{>l}))\big],$$

whose terms are in closed form *given the layers above*. Taken at the draws, their sum is an unbiased estimate of the
KL: in each layer the noise of \(z_l\) itself is integrated out of \(\log q - \log p\), which as a rule leaves much less
(not at the true posterior, where the noise of all terms of \(\log w\) together cancels). With more than one layer the
trace's `kl` still hangs on the draws, and whoever states an error must count that in (`Trace.kl_draws`).

**What an upper layer is for** shows in its own rate, `LadderTrace.rate_per_layer`: a layer whose rate is 0 says nothing
of x. Upper layers tend to be given up early, because the lowest alone can say all that there is to say; a KL that is
phased in slowly, or free bits for each layer (`FreeBits(groups=vae.latent_dims)`), keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowerbound.errors import UsageError
from lowerbound.heads import Conditional, DiagonalNormal, Head, Likelihood
from lowerbound.model.topdown import LadderHead, LadderPrior, Rung, TopDownPosterior, joined, log_p_of, log_q_of
from lowerbound.model.trace import Trace
from lowerbound.model.vae import VAE
from lowerbound.nn import BottomUp, Network, ResidualMLP, check_sizes
from lowerbound.priors import Prior, StandardNormal

# What the weights of a ladder's normal heads are multiplied with before training: p and q begin near N(0, I).
_QUIET = 0.1


@dataclass(frozen=True)
class LadderTrace(Trace):
    """The trace of a ladder, which holds what its one descent found.

    Attributes:
        rungs: The layers of the descent of q, the lowest first.
    """

    rungs: tuple[Rung, ...]

    @property
    def log_pz(self) -> Tensor:
        # With a graph it is evaluated at z itself, and not layer by layer on the way to it: estimators that change the
        # gradient which arrives at z (`DoublyReparameterised`) must find all of it there.
        return super().log_pz if self.z.requires_grad else log_p_of(self.rungs)

    @property
    def log_qz(self) -> Tensor:
        return log_q_of(self.rungs)

    @property
    def kl_draws(self) -> Tensor:
        """The conditional KLs of all layers at each draw, summed, `[K, B]`."""
        return self._kl_each_draw.sum(-1)

    @property
    def kl(self) -> Tensor:
        """An unbiased estimate of KL(q(z|x) || p(z)), `[B]`: the mean of `kl_draws`; for one layer the closed form."""
        return self.kl_each.sum(-1)

    @property
    def kl_each(self) -> Tensor:
        """The conditional KL of each component of z, averaged over the draws of the layers above, `[B, D]`."""
        return torch.cat([_mean_over_draws(rung.kl_each) for rung in self.rungs], -1)

    @property
    def rate_per_layer(self) -> Tensor:
        """The rate of each layer, the lowest first, averaged over the draws, nats, `[B, L]`; its sum is `kl`."""
        return torch.stack([_mean_over_draws(rung.kl_each).sum(-1) for rung in self.rungs], -1)

    @property
    def _kl_each_draw(self) -> Tensor:
        return torch.cat([rung.kl_each.expand_as(rung.z) for rung in self.rungs], -1)


def _mean_over_draws(each: Tensor) -> Tensor:
    # The top layer's is the same for every draw, and has no axis for them.
    return each.mean(0) if each.ndim == 3 else each


class LadderVAE(VAE):
    """A VAE with layers of latent variables (module docstring).

    z holds all layers, the lowest first: `[K, B, D_1 + ... + D_L]`. `mlp_ladder` puts one together.

    Args:
        encoder: x to q(z|x): a `BottomUp` network, or another that gives features for all layers, and a `LadderHead`.
        decoder: z to p(x|z); its head is a `Likelihood`.
        prior: p(z): a `LadderPrior`.

    Raises:
        UsageError: The parts do not fit each other.

    Example:
        >>> from lowerbound.heads import Bernoulli
        >>> vae = mlp_ladder((1, 4, 4), (4, 2), Bernoulli, width=16, state_dim=8)
        >>> trace = vae.trace(torch.zeros(8, 1, 4, 4), num_samples=5)
        >>> trace.z.shape, trace.log_w.shape, trace.rate_per_layer.shape
        (torch.Size([5, 8, 6]), torch.Size([5, 8]), torch.Size([8, 2]))
    """

    def __init__(self, encoder: Conditional, decoder: Conditional, prior: Prior) -> None:
        if not isinstance(encoder.head, LadderHead) or not isinstance(prior, LadderPrior):
            raise UsageError(
                "A LadderVAE has an encoder that ends in a LadderHead, and a LadderPrior; got a "
                f"{type(encoder.head).__name__} and a {type(prior).__name__}. Other parts go into a VAE."
            )
        super().__init__(encoder, decoder, prior)

    @property
    def latent_dims(self) -> tuple[int, ...]:
        """The number of components of z in each layer, the lowest first."""
        assert isinstance(self.prior, LadderPrior)
        return self.prior.latent_dims

    @property
    def layer_dims(self) -> tuple[int, ...]:
        return self.latent_dims

    @property
    def has_kl_each(self) -> bool:
        return True  # from the draws of the layers above

    def trace(self, x: Tensor, num_samples: int = 1) -> LadderTrace:
        """Goes down once, drawing z ~ q(z|x) differentiably, and evaluates the model there.

        Args:
            x: `[B, *event]`.
            num_samples: K, draws an example.
        """
        q: TopDownPosterior = self.encoder(x)
        rungs = q.descend(q.noise((num_samples,)))
        z = joined(rungs)
        return LadderTrace(z, self.decoder(z).log_prob(x), q, self.prior(), rungs)


def mlp_ladder(
    event_shape: tuple[int, ...],
    latent_dims: tuple[int, ...],
    likelihood: type[Likelihood],
    *,
    width: int = 512,
    state_dim: int = 256,
    blocks: int = 1,
    activation: nn.Module | None = None,
) -> LadderVAE:
    """Puts a ladder together from residual MLPs.

    p and q begin near N(0, I) in every layer, so with a KL near 0: the weights of their heads begin small.

    Args:
        event_shape: The shape of x.
        latent_dims: D_1, ..., D_L: components of z in each layer, the lowest first.
        likelihood: The decoder's head, called with the shape of its features and that of x.
        width: Units of the bottom-up network's levels and of the decoder.
        state_dim: Units of the networks that go down.
        blocks: Residual blocks of each network.
        activation: A `torch.nn` activation; GELU by default.

    Raises:
        UsageError: There are no layers, or a size is below 1.

    Example:
        >>> from lowerbound.heads import Bernoulli
        >>> mlp_ladder((1, 28, 28), (16, 8, 4), Bernoulli, width=32, state_dim=16).latent_shape
        (28,)
    """
    check_sizes(latent_dims=latent_dims)

    def network(in_shape: tuple[int, ...], units: int) -> ResidualMLP:
        return ResidualMLP(in_shape, units, blocks, activation)

    def normal(size: int, latent: int) -> Conditional:
        below = network((size,), state_dim)
        return Conditional(below, _quiet(DiagonalNormal(below.out_shape, (latent,))))

    layers = range(len(latent_dims))
    levels: list[Network] = [network(event_shape if layer == 0 else (width,), width) for layer in layers]
    bottom_up = BottomUp(tuple(levels))
    prior = LadderPrior(
        StandardNormal(latent_dims[-1]),
        tuple(normal(sum(latent_dims[layer + 1 :]), latent_dims[layer]) for layer in layers[:-1]),
    )
    shown = zip(prior.state_dims, bottom_up.feature_dims, latent_dims, strict=True)
    head = LadderHead(bottom_up.feature_dims, tuple(normal(state + own, latent) for state, own, latent in shown))
    decoder = network(prior.event_shape, width)
    return LadderVAE(
        Conditional(bottom_up, head), Conditional(decoder, likelihood(decoder.out_shape, event_shape)), prior
    )


def _quiet(head: Head) -> Head:
    with torch.no_grad():
        for parameter in head.project.parameters():
            parameter.mul_(_QUIET)
    return head
