"""Posterior heads: features to q(z|x)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowerbound import distributions
from lowerbound.errors import UsageError
from lowerbound.flows import Flow, Flowed
from lowerbound.flows.base import soft_clamp
from lowerbound.heads.base import Head, bounded
from lowerbound.nn import Linear

# A component hangs on each one before it by at most so many times its own conditional spread: a correlation of 0.995.
_SLOPE_BOUND = 10.0


class DiagonalNormal(Head):
    """A posterior with independent normal components: the mean-field Gaussian of Kingma and Welling (2014, eq. 9).

    Example:
        >>> q = DiagonalNormal((16,), (2,))(torch.zeros(5, 16), torch.Size([5]))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    num_parameters = 2

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.DiagonalNormal:
        return _diagonal(self.parameters_of(features, batch), len(self.event_shape))


class FullNormal(Head):
    r"""A normal posterior with a full covariance, by its Cholesky factor (Kingma and Welling, 2019).

    $$z = \mu + L\epsilon, \qquad L = \mathrm{diag}(e^{s})\,U, \qquad U_{dd} = 1, \quad U_{de} = 0 \text{ for } e > d$$

    mu, s and the slopes below the diagonal of U are affine maps of the features. It begins diagonal: the slopes are 0.
    They stay within \(\pm 10\) by a tanh, which bounds how nearly singular the covariance can become beyond its scales.

    Args:
        in_shape: The shape of the features.
        event_shape: The shape of z: `(D,)`. There are D (D + 1) / 2 outputs for the factor.

    Raises:
        UsageError: z is no vector.

    Example:
        >>> q = FullNormal((16,), (3,))(torch.zeros(5, 16), torch.Size([5]))
        >>> q.batch_shape, q.scale_tril.shape
        (torch.Size([5]), torch.Size([5, 3, 3]))
    """

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        super().__init__(in_shape, event_shape)
        size = _vector(event_shape)
        self.factor = Linear(math.prod(in_shape), size * (size + 1) // 2)
        row, column = self._places()
        with torch.no_grad():
            for parameter in (self.factor.weight, self.factor.bias):
                parameter[row != column] = 0

    @property
    def density_cost(self) -> int:
        # A triangular solve takes D^2 operations, but in fast matrix arithmetic.
        (size,) = self.event_shape
        return max(size, size**2 // 16)

    def _places(self) -> Tensor:
        """Where each output of `factor` stands in the matrix: `[2, D (D + 1) / 2]`, rows and columns."""
        return torch.tril_indices(*self.event_shape, *self.event_shape, device=self.factor.weight.device)

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.FullNormal:
        (loc,) = self.parameters_of(features, batch)
        entries = self.factor(features.flatten(1)).to(loc.dtype)
        row, column = self._places()
        raw = entries.new_zeros(*entries.shape[:-1], *self.event_shape, *self.event_shape)
        raw[..., row, column] = entries
        raw = raw.reshape(*batch, *raw.shape[-2:])
        log_scale = bounded(raw.diagonal(dim1=-2, dim2=-1))
        slopes = soft_clamp(raw, _SLOPE_BOUND).tril(-1)
        scale = log_scale.exp()
        return distributions.FullNormal(loc, scale.unsqueeze(-1) * slopes + torch.diag_embed(scale))


class FlowedNormal(Head):
    """A mean-field normal posterior that a flow carries on (Rezende and Mohamed, 2015; Kingma et al., 2016).

    If the flow takes a context, that is an affine map of the features too. The flow should be fast forward, as
    `lowerbound.flows.inverse_autoregressive` and `real_nvp` are: a posterior is drawn from, and its density is asked
    for its own draws, which it remembers. Its mean and standard deviation are estimates (`lowerbound.flows.Flowed`).

    Args:
        in_shape: The shape of the features.
        event_shape: The shape of z: `(D,)`.
        flow: The flow over D components.

    Raises:
        UsageError: z is no vector, or the flow is over another number of components.

    Example:
        >>> from lowerbound.flows import inverse_autoregressive
        >>> head = FlowedNormal((16,), (2,), inverse_autoregressive(2, context_dim=8))
        >>> head(torch.zeros(5, 16), torch.Size([5])).batch_shape
        torch.Size([5])
    """

    num_parameters = 2

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...], flow: Flow) -> None:
        super().__init__(in_shape, event_shape)
        if _vector(event_shape) != flow.latent_dim:
            raise UsageError(
                f"The posterior is over z of shape {tuple(event_shape)}, but its flow is over {flow.latent_dim} "
                "components. Build the flow with that latent_dim."
            )
        self.flow = flow
        self.context = Linear(math.prod(in_shape), flow.context_dim) if flow.context_dim else None

    @property
    def density_cost(self) -> None:
        """None: it takes the inverse of the flow."""
        return

    def notes(self) -> list[str]:
        mean = (
            "the mean of a flowed posterior has no closed form: active_units goes by an average over 64 fixed pairs of"
        )
        pairs = (
            "mutual_information and marginal_kl, which need the flow's inverse for each pair of examples, are left out"
        )
        return [f"{mean} opposite draws; and {pairs}"]

    def forward(self, features: Tensor, batch: torch.Size) -> Flowed:
        base = _diagonal(self.parameters_of(features, batch), 1)
        if self.context is None:
            return Flowed(base, self.flow)
        context = self.context(features.flatten(1)).to(base.loc.dtype)
        return Flowed(base, self.flow, context.reshape(*batch, -1))


class Delta(Head):
    """A posterior that is a single point, which makes a plain autoencoder of the composition."""

    has_density = False

    def notes(self) -> list[str]:
        return [
            (
                "the posterior is a single point without a density: there is no rate, no bound and no evidence, only "
                "the distortion"
            )
        ]

    def forward(self, features: Tensor, batch: torch.Size) -> distributions.Delta:
        (loc,) = self.parameters_of(features, batch)
        return distributions.Delta(loc, len(self.event_shape))


def _diagonal(parameters: tuple[Tensor, ...], event_ndim: int) -> distributions.DiagonalNormal:
    loc, log_scale = parameters
    return distributions.DiagonalNormal(loc, bounded(log_scale), event_ndim)


def _vector(event_shape: tuple[int, ...]) -> int:
    """Returns D of `(D,)`, and refuses any other shape."""
    if len(event_shape) != 1:
        raise UsageError(
            f"This posterior is over vectors z of shape (D,); got {tuple(event_shape)}. Flatten z, or use a "
            "DiagonalNormal posterior."
        )
    return event_shape[0]
