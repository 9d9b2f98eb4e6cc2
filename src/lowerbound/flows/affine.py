"""Affine maps whose shifts and scales come from a masked network: couplings and autoregressive layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowerbound.errors import UsageError
from lowerbound.flows.base import Flow, soft_clamp
from lowerbound.nn import Linear, check_sizes, linear

# A layer scales a component by e^-3 to e^3: more than any needs, and ten of them stay far within float32.
_LAYER_BOUND = 3.0


class _Conditioner(nn.Module):
    """Shift and log-scale of each component, from those of lower degree alone: a masked network.

    Every input, unit and output has a degree. A unit sees what has no higher degree than its own, and output d sees
    units of a lower degree than component d (Germain et al., 2015, with degrees that are spread evenly instead of
    drawn). The context is seen by every unit.

    Args:
        degrees: The degree of each component, `[D]`.
        unit_degrees: The degree of each unit of either hidden layer, `[W]`.
        context_dim: C.
        activation: Of the hidden units.
    """

    degrees: Tensor
    unit_degrees: Tensor

    def __init__(self, degrees: Tensor, unit_degrees: Tensor, context_dim: int, activation: nn.Module) -> None:
        super().__init__()
        # Buffers, to be saved: a model is built without memory first, and only what is loaded has values then. The
        # masks follow from them, and are W times larger.
        self.register_buffer("degrees", degrees)
        self.register_buffer("unit_degrees", unit_degrees)
        width = len(unit_degrees)
        self.enter = Linear(len(degrees), width)
        self.hidden = Linear(width, width)
        self.leave = Linear(width, 2 * len(degrees))
        self.context = Linear(context_dim, width, bias=False) if context_dim else None
        self.activation = activation
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        units, outputs = self.unit_degrees, self.degrees.repeat(2)
        h = _masked(self.enter, z, units[:, None] >= self.degrees)
        if self.context is not None:
            if context is None:
                raise UsageError(
                    f"This flow takes a context of width {self.context.in_features}, and was given none. Pass the "
                    "context, or build the flow with context_dim=0."
                )
            h = h + self.context(context)
        h = _masked(self.hidden, self.activation(h), units[:, None] >= units)
        raw = _masked(self.leave, self.activation(h), outputs[:, None] > units)
        # Networks may run in bf16; what becomes of z must not.
        shift, log_scale = raw.to(z.dtype).chunk(2, -1)
        return shift, soft_clamp(log_scale, _LAYER_BOUND)


def _masked(layer: Linear, x: Tensor, mask: Tensor) -> Tensor:
    return linear(x, torch.where(mask, layer.weight, 0), layer.bias)


class AffineCoupling(Flow):
    r"""Scales and shifts every other component by what the rest say (Dinh, Sohl-Dickstein and Bengio, 2017, RealNVP).

    With a mask b that is 1 where a component is kept,

    $$y = b \odot z + (1 - b) \odot \big(z \odot e^{s(b \odot z, c)} + t(b \odot z, c)\big)$$

    Both directions take one pass. Where D = 1 there is nothing to keep: the map is affine in z (or, with `keep_even`,
    the identity).

    Args:
        latent_dim: D, at least 1.
        width: Units in each of the two hidden layers.
        keep_even: Keep components 0, 2, ...; otherwise 1, 3, ...
        context_dim: C; 0 for none.
        activation: Of the hidden units; tanh if None (module docstring).

    Raises:
        UsageError: A size is below 1, or `context_dim` is negative.

    Example:
        >>> flow = AffineCoupling(3, 8, keep_even=True)
        >>> y, log_det = flow(torch.zeros(5, 2, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 2, 3]), torch.Size([5, 2]))
    """

    forward_passes = 1
    inverse_passes = 1

    def __init__(
        self,
        latent_dim: int,
        width: int = 64,
        keep_even: bool = True,
        context_dim: int = 0,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _check(latent_dim, width, context_dim)
        self.latent_dim, self.width, self.context_dim = latent_dim, width, context_dim
        self.keep_even = keep_even
        self.activation = nn.Tanh() if activation is None else activation
        # Degree 0 is kept and seen, degree 1 is moved.
        degrees = (torch.arange(latent_dim) + (0 if keep_even else 1)) % 2
        units = torch.zeros(width, dtype=torch.int64)
        self.conditioner = _Conditioner(degrees, units, context_dim, self.activation)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._affine(z, context)
        return z * log_scale.exp() + shift, log_scale.sum(-1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._affine(y, context)
        return (y - shift) * torch.exp(-log_scale), -log_scale.sum(-1)

    def _affine(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.conditioner(kept, context)
        moved = self.conditioner.degrees == 1
        return torch.where(moved, shift, 0), torch.where(moved, log_scale, 0)


class AutoregressiveAffine(Flow):
    r"""Scales and shifts each component by what those before it say, through a masked network.

    $$y_d = z_d\, e^{s_d(z_{<d}, c)} + t_d(z_{<d}, c)$$

    `forward` takes one pass, `inverse` takes D. As it stands it is a layer of an inverse autoregressive flow (Kingma et
    al., 2016); `Inverse(AutoregressiveAffine(...))` is a layer of a masked autoregressive flow (Papamakarios, Pavlakou
    and Murray, 2017), whose density takes one pass and whose samples take D. The masks are those of MADE (Germain et
    al., 2015).

    Args:
        latent_dim: D, at least 1.
        width: Units in each of the two hidden layers; fewer than D leave components with the same inputs.
        context_dim: C; 0 for none.
        activation: Of the hidden units; tanh if None (module docstring).

    Raises:
        UsageError: A size is below 1, or `context_dim` is negative.

    Example:
        >>> flow = AutoregressiveAffine(3, 8)
        >>> flow.forward_passes, flow.inverse_passes
        (1, 3)
    """

    forward_passes = 1

    def __init__(
        self, latent_dim: int, width: int = 64, context_dim: int = 0, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        _check(latent_dim, width, context_dim)
        self.latent_dim, self.width, self.context_dim = latent_dim, width, context_dim
        self.activation = nn.Tanh() if activation is None else activation
        self.inverse_passes = latent_dim
        # Units from "sees the context alone" (-1) to "sees all but the last component" (D - 2); the former are of no
        # use without a context, unless they are all there is.
        lowest = -1 if context_dim or latent_dim == 1 else 0
        units = lowest + torch.arange(width) * (latent_dim - 1 - lowest) // width
        self.conditioner = _Conditioner(torch.arange(latent_dim), units, context_dim, self.activation)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.conditioner(z, context)
        return z * log_scale.exp() + shift, log_scale.sum(-1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_scale = torch.zeros_like(y), torch.zeros_like(y)
        # After d passes the first d components are right, and so is what they say of the next.
        for _ in range(self.latent_dim):
            shift, log_scale = self.conditioner(z, context)
            z = (y - shift) * torch.exp(-log_scale)
        return z, -log_scale.sum(-1)


def _check(latent_dim: int, width: int, context_dim: int) -> None:
    check_sizes(latent_dim=(latent_dim,), width=(width,))
    if context_dim:
        check_sizes(context_dim=(context_dim,))
