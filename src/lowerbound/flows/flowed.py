"""A distribution that a flow carries."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from lowerbound.data import generator
from lowerbound.distributions import DiagonalNormal, FullNormal
from lowerbound.errors import UsageError
from lowerbound.flows.base import Flow

# Pairs of opposite draws behind `Flowed.mean` and `Flowed.stddev`.
_PAIRS = 64


class Flowed(Distribution):
    """A normal distribution carried through a flow.

    **Its own draw is remembered.** The density of a value needs the inverse of the flow, which may take D passes; that
    of a value just drawn does not. So `rsample` keeps what it went through, and `log_prob` of that very tensor (the
    object, unchanged; not a copy, a slice or a detached one) uses it. The result is then a function of the parameters
    and the noise: its gradient is that of log q(z(parameters)), whole, and it has none with respect to z by itself. Any
    other value goes through the inverse. Only the last draw is remembered.

    There is no closed form for its KL to anything.

    Args:
        base: The distribution of what enters the flow, event shape `[D]`.
        flow: The flow.
        context: `[*batch, C]`, if the flow takes one.

    Raises:
        UsageError: The base's event is not `[D]`.

    Example:
        >>> from lowerbound.flows import inverse_autoregressive
        >>> q = Flowed(DiagonalNormal(torch.zeros(5, 2), torch.zeros(5, 2)), inverse_autoregressive(2))
        >>> z = q.rsample((3,))
        >>> z.shape, q.log_prob(z).shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, base: DiagonalNormal | FullNormal, flow: Flow, context: Tensor | None = None) -> None:
        if base.event_shape != (flow.latent_dim,):
            raise UsageError(
                f"The flow maps {flow.latent_dim} components, but its base distribution is over events of shape "
                f"{tuple(base.event_shape)}. Give both the same dimension."
            )
        self.base, self.flow, self.context = base, flow, context
        self._drawn: _Draw | None = None
        super().__init__(base.batch_shape, torch.Size((flow.latent_dim,)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.independent(constraints.real, 1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws from the base and carries that through the flow, differentiably, `[*sample, *batch, D]`."""
        z = self.base.rsample(sample_shape)
        y: Tensor
        y, log_det = self.flow(z, self.context)
        self._drawn = _Draw(y, z, log_det)
        return y

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, nats, `[*sample, *batch]`; of its own last draw without the flow's inverse."""
        if self._drawn is not None and self._drawn.serves(value):
            log_density: Tensor = self.base.log_prob(self._drawn.z) - self._drawn.log_det
            return log_density
        full = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        z, log_det = self.flow.inverse(value.expand(full), self.context)
        return self.base.log_prob(z) + log_det

    @property
    def mean(self) -> Tensor:
        """The mean, `[*batch, D]`, estimated: the average of the flow over 64 fixed pairs of opposite base draws.

        The draws are the same at each call and for each member of the batch, so it is deterministic, leaves torch's
        generator alone and can be compared between examples. It is exact where the flow is affine.
        """
        return self._fixed_draws().mean(0)

    @property
    def stddev(self) -> Tensor:
        """The standard deviation, `[*batch, D]`, estimated from the same draws as `mean`."""
        return self._fixed_draws().std(0, correction=0)

    @property
    def variance(self) -> Tensor:
        """The variance, `[*batch, D]`, estimated from the same draws as `mean`."""
        return self._fixed_draws().var(0, correction=0)

    def _fixed_draws(self) -> Tensor:
        half = torch.randn(_PAIRS, self.flow.latent_dim, generator=generator(_PAIRS), dtype=torch.float64, device="cpu")
        # Opposite pairs have mean 0; scaled to variance 1 as well, they give an affine flow's own.
        half = half / half.square().mean(0).sqrt()
        eps = torch.cat([half, -half]).to(self.base.loc)
        eps = eps.reshape(2 * _PAIRS, *[1] * len(self.batch_shape), -1).expand(2 * _PAIRS, *self.base.loc.shape)
        y: Tensor = self.flow(self.base.from_noise(eps), self.context)[0]
        return y

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flowed:
        """Returns the same distribution with a larger batch shape."""
        return Flowed(self.base.expand(batch_shape), self.flow, self.context)

    def __getitem__(self, index: Tensor) -> Flowed:
        """Returns the members of the batch at `index`."""
        return Flowed(self.base[index], self.flow, None if self.context is None else self.context[index])


class _Draw:
    """A draw y = f(z), and what it went through."""

    def __init__(self, y: Tensor, z: Tensor, log_det: Tensor) -> None:
        self.y, self.z, self.log_det = y, z, log_det
        self.version = _version(y)
        self.differentiable = y.requires_grad

    def serves(self, value: Tensor) -> bool:
        """Whether `value` is this very draw, unchanged, and what is remembered of it has the gradients that are due."""
        same = value is self.y and self.version == _version(value)
        return same and (self.differentiable or not torch.is_grad_enabled())


def _version(tensor: Tensor) -> int:
    # How often it was changed in place; not counted under torch.inference_mode.
    return 0 if tensor.is_inference() else tensor._version
