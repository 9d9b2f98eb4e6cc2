r"""Priors over a z of real components.

With p(z) free, the bound averaged over the data is largest where p(z) is the *aggregated posterior*
\(\tfrac1N \sum_n q(z|x_n)\). A standard normal is seldom that; what q leaves empty of it is then sampled in vain, and
the KL pays for the difference. The other priors here can come closer:

* `MixtureOfNormals`: \(\sum_m \pi_m N(z; \mu_m, \sigma_m)\), everything learned;
* `VampPrior`: \(\tfrac1M \sum_m q(z|u_m)\), a mixture of the encoder's own posteriors at learned inputs \(u_m\);
* `FlowPrior`: a standard normal carried through a flow.

None of them has a closed form for the KL of a posterior to it; objectives estimate it from the draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lowerbound.distributions import DiagonalNormal, Mixture
from lowerbound.errors import UsageError
from lowerbound.flows import Flow, Flowed
from lowerbound.flows.base import soft_clamp
from lowerbound.heads import Conditional, Delta, FlowedNormal
from lowerbound.heads.base import LOG_SCALE_BOUND
from lowerbound.nn import check_sizes
from lowerbound.priors.base import Prior


class StandardNormal(Prior):
    """Independent normal components with mean 0 and standard deviation 1.

    Args:
        latent_dim: The number of components of z, at least 1.

    Raises:
        UsageError: `latent_dim` is below 1.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_sizes(latent_dim=(latent_dim,))
        self.latent_dim = latent_dim
        self.event_shape = (latent_dim,)
        self.register_buffer("loc", torch.zeros(latent_dim))
        self.register_buffer("log_scale", torch.zeros(latent_dim))

    def forward(self) -> DiagonalNormal:
        return DiagonalNormal(self.loc, self.log_scale)


class MixtureOfNormals(Prior):
    """A mixture of normals with independent components; weights, means and scales are learned.

    It begins with equal weights, and with means that are spread so that the whole has mean 0 and variance 1, in
    expectation. Log-scales stay within +-10.

    Args:
        latent_dim: The number of components of z, at least 1.
        num_components: M, the number of normals, at least 1.

    Raises:
        UsageError: A size is below 1.

    Example:
        >>> MixtureOfNormals(2, num_components=10)().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, latent_dim: int, num_components: int = 100) -> None:
        super().__init__()
        check_sizes(latent_dim=(latent_dim,), num_components=(num_components,))
        self.latent_dim, self.num_components = latent_dim, num_components
        self.event_shape = (latent_dim,)
        # Half of the variance between the normals and half within each.
        self.loc = nn.Parameter(math.sqrt(0.5) * torch.randn(num_components, latent_dim))
        self.raw_log_scale = nn.Parameter(torch.full((num_components, latent_dim), 0.5 * math.log(0.5)))
        self.logits = nn.Parameter(torch.zeros(num_components))

    def forward(self) -> Mixture:
        log_scale = soft_clamp(self.raw_log_scale, LOG_SCALE_BOUND)
        return Mixture(self.logits, DiagonalNormal(self.loc, log_scale))


class VampPrior(Prior):
    r"""A mixture of the encoder's posteriors at learned pseudo-inputs (Tomczak and Welling, 2018).

    $$p(z) = \frac1M \sum_{m=1}^M q(z|u_m)$$

    "Variational mixture of posteriors". The encoder is the model's own, trained through both of its uses; `VAE` binds
    it. It is no submodule of the prior: its weights are counted and saved once.

    A value of a pseudo-input outside [0, 1] counts as the nearest one inside, as in the authors' implementation.
    Pseudo-inputs begin as noise; `start_at` gives them a better place.

    Args:
        latent_dim: The number of components of z, at least 1.
        input_shape: The shape of one x.
        num_components: M, the number of pseudo-inputs, at least 1. A density costs M encodings and, for each value, M
            densities.
        unit_interval: Keep pseudo-inputs in [0, 1]; False for data on the whole real line.

    Raises:
        UsageError: A size is below 1; on a call, no encoder is bound.

    Example:
        >>> from lowerbound import heads, nn
        >>> prior = VampPrior(2, (4,), num_components=3)
        >>> prior.bind(heads.Conditional(nn.MLP((4,), (8,)), heads.DiagonalNormal((8,), (2,))))
        >>> prior().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self, latent_dim: int, input_shape: tuple[int, ...], num_components: int = 500, unit_interval: bool = True
    ) -> None:
        super().__init__()
        check_sizes(latent_dim=(latent_dim,), input_shape=input_shape, num_components=(num_components,))
        self.latent_dim, self.num_components, self.unit_interval = latent_dim, num_components, unit_interval
        self.input_shape = tuple(input_shape)
        self.event_shape = (latent_dim,)
        noise = torch.rand if unit_interval else torch.randn
        self.raw_inputs = nn.Parameter(noise(num_components, *input_shape))
        # In a tuple, so that it is not registered as a submodule; a deep copy of the model follows it all the same, to
        # the copy's own encoder.
        self._encoder: tuple[Conditional, ...] = ()

    def bind(self, encoder: Conditional) -> None:
        head = encoder.head
        if encoder.network.in_shape != self.input_shape:
            raise UsageError(
                f"The VampPrior's pseudo-inputs have shape {self.input_shape}, but the encoder takes x of shape "
                f"{encoder.network.in_shape}. Build the prior with input_shape={encoder.network.in_shape}."
            )
        if isinstance(head, Delta):
            raise UsageError(
                "A VampPrior is a mixture of the encoder's posteriors, and a Delta posterior has no density: use a "
                "StandardNormal prior, or a DiagonalNormal posterior."
            )
        if isinstance(head, FlowedNormal) and head.flow.inverse_passes > head.flow.forward_passes:
            raise UsageError(
                "A VampPrior asks its encoder's posteriors for the density of values that they have not drawn, and "
                f"this posterior's flow takes {head.flow.inverse_passes} passes for one. Use a flow that is fast in "
                "both directions, flows.real_nvp, or a DiagonalNormal or FullNormal posterior."
            )
        self._encoder = (encoder,)

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs u, `[M, *input_shape]`."""
        return self.raw_inputs.clamp(0, 1) if self.unit_interval else self.raw_inputs

    def start_at(self, x: Tensor) -> None:
        """Sets the pseudo-inputs to examples, a better place to start than noise.

        Args:
            x: Examples, `[M, *input_shape]`, picked at random from the training data.

        Raises:
            UsageError: There are not M of them, or they have another shape.
        """
        if x.shape != self.raw_inputs.shape:
            raise UsageError(
                f"A VampPrior with {self.num_components} pseudo-inputs starts at as many examples, of shape "
                f"{tuple(self.raw_inputs.shape)} together; got {tuple(x.shape)}."
            )
        with torch.no_grad():
            self.raw_inputs.copy_(x)

    def forward(self) -> Mixture:
        if not self._encoder:
            raise UsageError(
                "A VampPrior is a mixture of an encoder's posteriors and has no encoder yet: put it into a VAE, or "
                "call its bind(encoder)."
            )
        (encoder,) = self._encoder
        return Mixture(self.raw_inputs.new_zeros(self.num_components), encoder(self.inputs))


class FlowPrior(Prior):
    """A standard normal that a flow carries.

    Training needs the density of the posterior's draws, so the flow should be fast in its inverse:
    `lowerbound.flows.real_nvp`, which is also fast to sample, or `masked_autoregressive`, which takes D passes for
    that.

    Args:
        latent_dim: The number of components of z, at least 1.
        flow: A flow over as many, without a context.

    Raises:
        UsageError: `latent_dim` is below 1, or the flow is over another number of components or takes a context.

    Example:
        >>> from lowerbound.flows import real_nvp
        >>> FlowPrior(2, real_nvp(2))().sample((5,)).shape
        torch.Size([5, 2])
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, latent_dim: int, flow: Flow) -> None:
        super().__init__()
        check_sizes(latent_dim=(latent_dim,))
        if flow.latent_dim != latent_dim or flow.context_dim:
            raise UsageError(
                f"A FlowPrior over {latent_dim} components needs a flow over as many that takes no context; got one "
                f"over {flow.latent_dim} with a context of width {flow.context_dim}."
            )
        self.latent_dim, self.flow = latent_dim, flow
        self.event_shape = (latent_dim,)
        self.register_buffer("loc", torch.zeros(latent_dim))
        self.register_buffer("log_scale", torch.zeros(latent_dim))

    def forward(self) -> Flowed:
        return Flowed(DiagonalNormal(self.loc, self.log_scale), self.flow)
