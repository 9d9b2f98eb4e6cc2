r"""What a head is, and how it follows a network.

A head owns the last affine map and the meaning of its outputs; it knows nothing of depth. Whatever precision the
network ran in, the parameters of a distribution are at least float32, and log-scales are kept within \(\pm 10\), so
that no density, sum or gradient can leave the range of float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.errors import UsageError
from lowerbound.nn import Linear, Network, check_sizes

LOG_SCALE_BOUND = 10.0


def bounded(log_scale: Tensor) -> Tensor:
    """Returns log-scales cut to within `LOG_SCALE_BOUND`; there the gradient is 0."""
    # The same numbers as by a clamp, with one operation backwards and not four.
    return F.hardtanh(log_scale, -LOG_SCALE_BOUND, LOG_SCALE_BOUND)


class Head(nn.Module, ABC):
    """Features to a distribution over an event.

    Args:
        in_shape: The shape of one set of features, as a network's `out_shape`.
        event_shape: The shape of what is distributed.

    Attributes:
        num_parameters: Parameters of the distribution for each value of the event; a head whose number follows from its
            arguments sets it before this constructor is called.
        has_density: Of a head that gives q(z|x): whether that has a density, or a mass where z is discrete.
        num_codes: How many discrete codes there are at each position of z; 0 where z is of real numbers.
    """

    num_parameters: int = 1
    has_density: bool = True
    num_codes: int = 0

    def __init__(self, in_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        super().__init__()
        check_sizes(in_shape=in_shape, event_shape=event_shape)
        self.in_shape = tuple(in_shape)
        self.event_shape = tuple(event_shape)
        self.on_picture = len(in_shape) == 3 and len(event_shape) == 3 and in_shape[1:] == event_shape[1:]
        self.project = self._affine()

    def _affine(self) -> nn.Module:
        """Returns the affine map of the features; a head whose parameters do not lie on the event has another."""
        if self.on_picture:
            # Features that lie on the picture: the same affine map at every pixel.
            return nn.Conv2d(self.in_shape[0], self.num_parameters * self.event_shape[0], 1)
        return Linear(math.prod(self.in_shape), self.num_parameters * math.prod(self.event_shape))

    def parameters_of(self, features: Tensor, batch: torch.Size) -> tuple[Tensor, ...]:
        """Returns `num_parameters` tensors of shape `[*batch, *event]`, at least float32."""
        raw = self._raw(features, batch)
        # Of one parameter there is nothing to take apart; backwards, unbind would copy all of it.
        return (raw.squeeze(len(batch)),) if self.num_parameters == 1 else tuple(raw.unbind(len(batch)))

    def parameters_last(self, features: Tensor, batch: torch.Size) -> Tensor:
        """Returns the same parameters as one tensor `[*batch, *event, num_parameters]`: for many of one kind."""
        return self._raw(features, batch).movedim(len(batch), -1)

    def _raw(self, features: Tensor, batch: torch.Size) -> Tensor:
        raw: Tensor = self.project(features if self.on_picture else features.flatten(1))
        if raw.dtype in (torch.bfloat16, torch.float16):
            raw = raw.float()
        return raw.reshape(*batch, self.num_parameters, *self.event_shape)

    # What is asked of a head that gives q(z|x); most have nothing to add.

    @property
    def density_cost(self) -> int | None:
        """Numbers at hand for the density of one example's z under another's q; None where it takes a network."""
        return math.prod(self.event_shape)

    def moments(self, q: Distribution) -> tuple[Tensor, Tensor]:
        """Returns the mean and the standard deviation of a q that this head gave, `[*batch, *event]` each."""
        return q.mean, q.stddev

    def moved(self, q: Distribution) -> Tensor:
        """Returns what of q moves with x where z is used, `[*batch, *event]`: its mean (`metrics.active_units`)."""
        mean: Tensor = q.mean
        return mean

    def notes(self) -> list[str]:
        """Returns what a reader of the numbers of such a q must know, in words."""
        return []

    @abstractmethod
    def forward(self, features: Tensor, batch: torch.Size) -> Distribution:
        """Maps features `[prod(batch), *in_shape]` to a distribution of that batch shape."""


class Conditional(nn.Module):
    """A conditional distribution: a network, then a head.

    It accepts any batch shape: `[*batch, *network.in_shape]` gives a distribution with that batch shape, so the same
    decoder takes z as `[B, D]` and as `[K, B, D]`.

    Args:
        network: Features in, features out.
        head: Features to a distribution.

    Raises:
        UsageError: The head does not take what the network gives; on a call, the network does not take the condition.
    """

    def __init__(self, network: Network, head: Head) -> None:
        super().__init__()
        if network.out_shape != head.in_shape:
            raise UsageError(
                f"The head takes features of shape {head.in_shape}, but its network gives {network.out_shape}. Build "
                "the head with in_shape=network.out_shape."
            )
        self.network = network
        self.head = head

    def forward(self, condition: Tensor) -> Distribution:
        distribution: Distribution = self.head(*self.features(condition))
        return distribution

    def features(self, condition: Tensor) -> tuple[Tensor, torch.Size]:
        """Returns what the network makes of conditions, `[prod(batch), *network.out_shape]`, and their batch shape."""
        batch = condition.shape[: condition.ndim - len(self.network.in_shape)]
        if condition.shape[len(batch) :] != self.network.in_shape:
            raise UsageError(
                f"This network takes {self.network.in_shape}, with any batch shape before it; got a tensor of shape "
                f"{tuple(condition.shape)}. The parts of a ConditionalVAE take a label besides: use those of "
                "vae.given(label)."
            )
        return self.network(condition.reshape(-1, *self.network.in_shape)), batch
