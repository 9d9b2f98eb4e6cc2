r"""The model: three distributions, composed.

$$p(x, z) = p(x|z)\,p(z), \qquad q(z|x) \approx p(z|x)$$

`VAE` holds an encoder (x to q(z|x)), a decoder (z to p(x|z)) and a prior (p(z)), and does one thing with them: `trace`
draws z ~ q(z|x) and returns the log-densities of that draw. Everything else in this package (objectives, evidence,
diagnostics) is written against that `Trace` alone, so whatever implements `trace` gets all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.distributions import analytic_kl_each
from lowerbound.errors import UsageError
from lowerbound.heads import Conditional, Likelihood
from lowerbound.model.trace import Trace
from lowerbound.priors import Prior


class VAE(nn.Module):
    """A variational autoencoder.

    Args:
        encoder: x to q(z|x).
        decoder: z to p(x|z); its head is a `Likelihood`.
        prior: p(z).

    Raises:
        UsageError: The parts do not fit each other.

    Attributes:
        classes: The labels that it must be told one of (`lowerbound.model.ConditionalVAE`); none for a plain model.

    Example:
        >>> import torch
        >>> from lowerbound import heads, nn, priors
        >>> def mlp(shape): return nn.MLP(shape, (16,))
        >>> vae = VAE(
        ...     heads.Conditional(mlp((1, 4, 4)), heads.DiagonalNormal((16,), (2,))),
        ...     heads.Conditional(mlp((2,)), heads.Bernoulli((16,), (1, 4, 4))),
        ...     priors.StandardNormal(2),
        ... )
        >>> trace = vae.trace(torch.zeros(8, 1, 4, 4), num_samples=5)
        >>> trace.z.shape, trace.log_w.shape
        (torch.Size([5, 8, 2]), torch.Size([5, 8]))
    """

    classes: tuple[int, ...] = ()

    def __init__(self, encoder: Conditional, decoder: Conditional, prior: Prior) -> None:
        super().__init__()
        latent = encoder.head.event_shape
        if not (latent == prior.event_shape and self._takes(decoder.network.in_shape, latent)):
            raise UsageError(
                f"Encoder, decoder and prior must agree on the shape of z, but the encoder gives {latent}, the decoder "
                f"takes {decoder.network.in_shape} and the prior is over {prior.event_shape}."
            )
        if not self._takes(encoder.network.in_shape, decoder.head.event_shape):
            raise UsageError(
                f"The encoder takes x of shape {encoder.network.in_shape}, but the decoder gives x of shape "
                f"{decoder.head.event_shape}; they must be the same."
            )
        if not isinstance(decoder.head, Likelihood):
            raise UsageError(f"A decoder ends in a likelihood head, not in {type(decoder.head).__name__}.")
        if prior.num_classes not in (0, len(self.classes)):
            raise UsageError(
                f"The prior tells {prior.num_classes} classes apart, and the model {len(self.classes)}. Give a "
                "ConditionalVAE a prior with as many classes as it has, and a VAE one without."
            )
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        prior.bind(encoder)

    def _takes(self, in_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether a network with that `in_shape` takes values of that shape."""
        return in_shape == shape

    def given(self, label: Tensor | int | None) -> VAE:
        """Returns the model of x given labels, for a batch that has them; a plain model is told nothing: itself."""
        return self

    def part(self, rows: slice) -> VAE:
        """Returns the model for those examples of the batch that it was given labels of; a plain model: itself."""
        return self

    def check_labels(self, labels: Tensor | None) -> None:
        """Raises `UsageError` for labels, `[N]` or none, that a conditional model does not know."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises `UsageError` when one x of the data has another shape than the model's."""
        if shape != self.event_shape:
            raise UsageError(
                f"The model is built for x of shape {self.event_shape}, the data's is {shape}. Give data of that "
                "shape, or build a model for this one."
            )

    def notes(self) -> list[str]:
        """Returns what a reader of this model's numbers must know, in words."""
        return []

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        return self.decoder.head.event_shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one z."""
        return self.prior.event_shape

    @property
    def likelihood(self) -> Likelihood:
        """The decoder's head."""
        head = self.decoder.head
        assert isinstance(head, Likelihood)
        return head

    @property
    def has_density(self) -> bool:
        """Whether q(z|x) has a density, or a mass where z is discrete, so that there is a bound on log p(x).

        A plain autoencoder's has none.
        """
        return self.encoder.head.has_density

    @property
    def has_codes(self) -> bool:
        """Whether z is a sequence of discrete codes, with all of q(z|x) on one, and not a vector of real numbers."""
        return self.encoder.head.num_codes > 0

    @property
    def has_kl_each(self) -> bool:
        """Whether traces know the KL of each component of z (`Trace.kl_each`)."""
        return analytic_kl_each(self.example_posterior(), self.prior()) is not None

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """The number of components of z in each layer of a ladder, the lowest first; none where there are no layers."""
        return ()

    def example_posterior(self) -> Distribution:
        """Returns a q(z|x) of the kind that this model gives, for one made-up set of features.

        What has a closed form is a matter of the kinds of distribution, and a head shows its kind without the network,
        which may be large, or count what it sees.
        """
        head = self.encoder.head
        like = next(head.parameters())
        with torch.no_grad():
            q: Distribution = head(like.new_zeros(1, *head.in_shape), torch.Size([1]))
        return q

    def trace(self, x: Tensor, num_samples: int = 1) -> Trace:
        """Draws z ~ q(z|x), differentiably, and evaluates the model there.

        Args:
            x: `[B, *event]`.
            num_samples: K, draws an example.
        """
        q = self.encoder(x)
        z = q.rsample((num_samples,))
        return Trace(z, self.decoder(z).log_prob(x), q, self.prior())
