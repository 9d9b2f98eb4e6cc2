r"""Affine maps, with their matrix products where the processor does them best.

$$y = x W^\top + b, \qquad \bar x = \bar y\,W, \qquad \bar W = \bar y^\top x$$

On most processors torch multiplies float32 matrices with MKL. MKL uses the 512-bit vectors of its own maker's
processors alone; oneDNN, which torch carries too and uses for convolutions, uses them on any that has them, and there
does these three products in about half the time. The numbers are those of float32 either way; they are added in another
order. Wherever this does not hold (other devices, types and processors, matrices so small that starting the product is
what takes the time) the map is torch's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# Multiplications, and the shortest side, below which starting a product takes longer than what is saved.
_WORTH_IT = 1 << 22
_SHORTEST = 16


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`.

    Example:
        >>> import torch
        >>> Linear(784, 200)(torch.zeros(5, 784)).shape
        torch.Size([5, 200])
    """

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns x W^T + b, as `torch.nn.functional.linear` does.

    Args:
        x: `[..., I]`.
        weight: W, `[O, I]`.
        bias: b, `[O]`; None for 0.

    Returns:
        `[..., O]`.
    """
    if not _pays(x, weight):
        return F.linear(x, weight, bias)
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y = _multiply()(rows, weight, bias)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], -1)


def _pays(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= _WORTH_IT
        and min(*weight.shape, x.numel() // x.shape[-1]) >= _SHORTEST
        # Autocast wants another type; a compiler, an exporter or a transform of functions an operation that it knows.
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not torch._C._are_functorch_transforms_active()
        and bool(torch.backends.mkldnn.enabled)
        and _there()
    )


@functools.cache
def _there() -> bool:
    """Whether this processor has 512-bit vectors, and this torch the product, and it is right."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    a = torch.eye(40, device="cpu")[:32]
    b = torch.arange(48.0 * 40, device="cpu").reshape(48, 40)
    try:
        # Transposed views as well, because what comes backwards does.
        forwards, backwards = _product(a, b, None), _product(a.T, b.T[:32].T, None)
        return torch.equal(forwards, b.T[:32]) and torch.equal(backwards[:32], b.T[:32])
    except (AttributeError, RuntimeError, TypeError):
        return False


def _multiply() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    return _Affine.apply if torch.is_grad_enabled() else _product


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return y


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # Both products are affine maps themselves, of the same three sides, and as such can be differentiated again.
        (g,), multiply = gradients, _multiply()
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            multiply(g, weight.T, None) if to_x else None,
            multiply(g.T, x.T, None) if to_weight else None,
            g.sum(0) if to_bias else None,
        )
