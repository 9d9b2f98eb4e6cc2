r"""Optimisers: what an update makes of a gradient.

**Adam** divides each weight's mean gradient by the root of its mean square: the right scaling when the gradients
of different weights are uncorrelated. In a layer they are not: rows and columns of its gradient share the layer's
inputs and outputs.

**SOAP** is Adam in coordinates in which they nearly are. For a weight matrix with gradient \(G\) it keeps the moving
averages \(L = E[GG^\top]\) and \(R = E[G^\top G]\), and with their eigenvectors \(Q_L, Q_R\)

$$G' = Q_L^\top G\,Q_R, \qquad W \leftarrow W - \eta\; Q_L\,\mathrm{Adam}(G')\,Q_R^\top.$$

The eigenvectors change slowly: now and then one step of power iteration and an orthonormalisation keep up with them.
Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson and Kakade (2024), "SOAP: Improving and stabilizing Shampoo
using Adam". An update costs a few products of the size of the weights, whatever the batch, so it pays with large
batches, many draws of z, and layers that are not too wide.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from lowerbound.errors import UsageError

# Updates between two looks at the covariances, and their decay at each: a memory of about 40 updates.
_LOOK_EVERY = 4
_DECAY = 0.9


class Optimiser(ABC):
    """A choice of optimiser, without its state."""

    @abstractmethod
    def build(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        arithmetic: torch.dtype,
    ) -> torch.optim.Optimizer:
        """Returns the optimiser of these parameters; all of its state is in tensors.

        Args:
            parameters: What it updates.
            lr: The learning rate.
            betas: The decay rates of the mean and the mean square of the gradient.
            weight_decay: Decoupled weight decay.
            arithmetic: The type that products of matrices may be in; sums and state are float32.
        """


class _Stepped(torch.optim.Optimizer, ABC):
    """What the optimisers here have in common.

    Attributes:
        found_inf: Set from outside, on an accelerator, where nobody may wait to learn that a gradient is not finite:
            above 0 where no update is to be made.
    """

    found_inf: Tensor | None = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Makes one update of the parameters that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            self._update([p for p in group["params"] if p.grad is not None], group)
        return loss

    @abstractmethod
    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Updates parameters of a group, which have gradients."""


@dataclass(frozen=True)
class Adam(Optimiser):
    """Adam (Kingma and Ba, 2015), with decoupled weight decay (Loshchilov and Hutter, 2019), in one fused pass."""

    def build(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        arithmetic: torch.dtype,
    ) -> torch.optim.Optimizer:
        listed = list(parameters)
        kinds = {(p.device.type, p.dtype) for p in listed}
        if len(kinds) == 1 and kinds <= {("cpu", torch.float32), ("cuda", torch.float32)}:
            return _Fused(listed, lr, betas, weight_decay)
        return torch.optim.AdamW(listed, lr=lr, betas=betas, weight_decay=weight_decay)


class _Fused(_Stepped):
    """What `torch.optim.AdamW(fused=True)` computes, bit for bit, and keeps, by the same names.

    That sorts and groups its tensors anew at each step, which takes half as long as the update of a million weights.
    Here they are of one device and type.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8}
        # "fused" tells torch, when a state is loaded, that the counts of steps belong on the device too.
        super().__init__(parameters, defaults | {"fused": True})

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] or self._begin(p) for p in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


@dataclass(frozen=True)
class SOAP(Optimiser):
    """Adam in the eigenbasis of each layer's gradients (module docstring).

    A convolution's weight is taken as the matrix of its outputs against all else. Vectors, and matrices both of whose
    sides are longer than `largest`, are left to Adam; of a matrix with one long side only the short one is rotated.
    Departure from the paper: the mean gradient is kept in the rotated coordinates and carried along when they change.

    Attributes:
        every: Updates between two corrections of the eigenvectors.
        largest: The longest side that is rotated; the cost of a correction grows with its cube.

    Raises:
        UsageError: A number is below 1.

    Example:
        >>> from lowerbound.training import Training
        >>> Training(batch_size=512, lr=1e-2, optimiser=SOAP()).optimiser
        SOAP(every=20, largest=512)
    """

    every: int = 20
    largest: int = 512

    def __post_init__(self) -> None:
        if self.every < 1 or self.largest < 1:
            raise UsageError(f"SOAP's every and largest should be at least 1; got {self.every} and {self.largest}.")

    def build(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        arithmetic: torch.dtype,
    ) -> torch.optim.Optimizer:
        return _Rotated(parameters, lr, betas, weight_decay, self, arithmetic)


class _Rotated(_Stepped):
    """The state of `SOAP`, a few tensors for each parameter.

    `step`, `mean` and `square` as in Adam; `covariance_i` and `basis_i` for each side i that is rotated.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        choice: SOAP,
        arithmetic: torch.dtype,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})
        self.choice, self.arithmetic = choice, arithmetic

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            self._update_one(parameter, parameter.grad, group)

    def _update_one(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            self._begin(state, gradient)
        state["step"] += 1
        # It lies on the CPU, so that to read it waits for nothing.
        step = int(state["step"])
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf.bool(), 0.0, gradient)
        matrix = gradient.flatten(1) if gradient.ndim > 1 else gradient
        sides = [side for side in (0, 1) if f"basis_{side}" in state]
        if sides:
            self._follow(state, matrix, sides, step)
        bases = {side: state[f"basis_{side}"].to(self.arithmetic) for side in sides}
        turned = self._turn(matrix, bases, back=False)
        (beta1, beta2), lr = group["betas"], group["lr"]
        mean, square = state["mean"], state["square"]
        mean.lerp_(turned, 1 - beta1)
        square.mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        scale = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        change = self._turn(mean / scale, bases, back=True).view_as(parameter)
        if self.found_inf is not None:
            change = change * (1 - self.found_inf)
        if group["weight_decay"]:
            parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(change, alpha=-lr / (1 - beta1**step))

    def _begin(self, state: dict[str, Tensor], gradient: Tensor) -> None:
        matrix = gradient.flatten(1) if gradient.ndim > 1 else gradient
        state["step"] = torch.zeros(())
        state["mean"] = torch.zeros_like(matrix)
        state["square"] = torch.zeros_like(matrix)
        for side, length in enumerate(matrix.shape if matrix.ndim == 2 else ()):
            if 1 < length <= self.choice.largest:
                state[f"covariance_{side}"] = matrix.new_zeros(length, length)
                state[f"basis_{side}"] = torch.eye(length, dtype=matrix.dtype, device=matrix.device)

    def _follow(self, state: dict[str, Tensor], matrix: Tensor, sides: list[int], step: int) -> None:
        """Keeps up with the covariances now and then, and more seldom with their eigenvectors."""
        if step % _LOOK_EVERY == 1:
            seen = matrix.to(self.arithmetic)
            for side in sides:
                product = seen @ seen.T if side == 0 else seen.T @ seen
                # The first look stands for all before it.
                state[f"covariance_{side}"].lerp_(product.to(matrix.dtype), 1.0 if step == 1 else 1 - _DECAY)
        if step == 1 or step % self.choice.every == 0:
            for side in sides:
                self._correct(state, side, first=step == 1)

    def _correct(self, state: dict[str, Tensor], side: int, *, first: bool) -> None:
        covariance, basis = state[f"covariance_{side}"], state[f"basis_{side}"]
        new = torch.linalg.eigh(covariance)[1].flip(1) if first else torch.linalg.qr(covariance @ basis)[0]
        change = basis.T @ new
        state["mean"] = change.T @ state["mean"] if side == 0 else state["mean"] @ change
        basis.copy_(new)

    def _turn(self, matrix: Tensor, bases: dict[int, Tensor], *, back: bool) -> Tensor:
        """Returns a gradient in the rotated coordinates, or what Adam made of it back from there."""
        if not bases:
            return matrix
        turned = matrix.to(self.arithmetic)
        if 0 in bases:
            turned = (bases[0] if back else bases[0].T) @ turned
        if 1 in bases:
            turned = turned @ (bases[1].T if back else bases[1])
        return turned.to(matrix.dtype)
