"""Maps between the layers: another order of the components, another scale for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowerbound.data import generator
from lowerbound.flows.base import Flow, soft_clamp
from lowerbound.nn import check_sizes

# Normalisation may have to undo a badly scaled input: as wide as the log-scale of a head.
_NORM_BOUND = 10.0
_SMALLEST_STD = 1e-4


class Permutation(Flow):
    """Reorders the components, so that the next layer looks at them in another order; log|det| is 0.

    Args:
        latent_dim: D, at least 1.
        seed: Seeds a random order; None reverses it. The order is saved with the weights.

    Raises:
        UsageError: `latent_dim` is below 1.

    Example:
        >>> Permutation(3)(torch.tensor([1.0, 2.0, 3.0]))
        (tensor([3., 2., 1.]), tensor(0.))
    """

    order: Tensor
    back: Tensor

    def __init__(self, latent_dim: int, seed: int | None = None) -> None:
        super().__init__()
        check_sizes(latent_dim=(latent_dim,))
        self.latent_dim, self.seed = latent_dim, seed
        order = torch.arange(latent_dim - 1, -1, -1)
        if seed is not None:
            # The seeded generator draws on the CPU; without memory nothing is drawn anywhere.
            drawn_on = order.device if order.is_meta else torch.device("cpu")
            order = torch.randperm(latent_dim, generator=generator(seed), device=drawn_on).to(order.device)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z[..., self.order], z.new_zeros(z.shape[:-1])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y[..., self.back], y.new_zeros(y.shape[:-1])


class ActNorm(Flow):
    r"""A scale and a shift for each component, begun so that the first batch leaves it normalised.

    \(y = z\,e^{s} + t\), log|det| \(= \sum_d s_d\) (Kingma and Dhariwal, 2018, section 3.1). The first batch that is
    seen in training mode sets s and t so that what leaves has mean 0 and standard deviation 1, in whichever direction
    it passes; from then on they are ordinary parameters. In evaluation mode an uninitialised layer is the identity.

    Args:
        latent_dim: D, at least 1.

    Raises:
        UsageError: `latent_dim` is below 1.

    Example:
        >>> y, _ = ActNorm(2)(7 + 3 * torch.randn(1000, 2))
        >>> y.mean(0).abs().max().item() < 1e-4, (y.std(0) - 1).abs().max().item() < 1e-2
        (True, True)
    """

    initialised: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_sizes(latent_dim=(latent_dim,))
        self.latent_dim = latent_dim
        self.shift = nn.Parameter(torch.zeros(latent_dim))
        self.raw_log_scale = nn.Parameter(torch.zeros(latent_dim))
        self.register_buffer("initialised", torch.tensor(False))
        # What is known of the buffer without waiting for the device: read once, and again after a loading.
        self._known: bool | None = None
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    @property
    def log_scale(self) -> Tensor:
        """s, `[D]`, within +-10."""
        return soft_clamp(self.raw_log_scale, _NORM_BOUND)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and not self._is_initialised():
            loc, log_std = _moments(z.detach())
            self._begin(-loc * torch.exp(-log_std), -log_std)
        log_scale = self.log_scale
        return z * log_scale.exp() + self.shift, log_scale.sum().expand(z.shape[:-1])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and not self._is_initialised():
            self._begin(*_moments(y.detach()))
        log_scale = self.log_scale
        return (y - self.shift) * torch.exp(-log_scale), -log_scale.sum().expand(y.shape[:-1])

    def _is_initialised(self) -> bool:
        if self._known is None:
            self._known = bool(self.initialised)
        return self._known

    @torch.no_grad()
    def _begin(self, shift: Tensor, log_scale: Tensor) -> None:
        self.shift.copy_(shift)
        # The inverse of the soft clamp, which has none at the bound itself.
        self.raw_log_scale.copy_(_NORM_BOUND * torch.atanh((log_scale / _NORM_BOUND).clamp(-0.99, 0.99)))
        self.initialised.fill_(True)
        self._known = True


def _forget(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, ActNorm)
    module._known = None


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and log standard deviation of each component over all leading axes, `[D]` each."""
    rows = points.reshape(-1, points.shape[-1])
    std = rows.std(0, correction=0)
    # One point has no spread to learn from, and one that does not vary has none to divide by.
    log_std = std.clamp_min(_SMALLEST_STD).log() if len(rows) > 1 else torch.zeros_like(std)
    return rows.mean(0), log_std
