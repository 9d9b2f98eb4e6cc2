"""Where and in which arithmetic: devices, precisions, and the seeds of their generators."""

from __future__ import annotations

import enum
from contextlib import AbstractContextManager, nullcontext

import torch

from lowerbound.errors import UsageError


class Precision(enum.StrEnum):
    """The arithmetic of the networks; densities, sums, weights and the optimiser are always float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


def seed_everything(seed: int, device: torch.device) -> None:
    """Seeds torch's generators for the CPU and `device`, and no others."""
    # torch.manual_seed would queue a traceback for every backend that is not initialised: too slow for every step.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def resolve_device(name: str) -> torch.device:
    """Returns the device called `name`; `auto` is the first of cuda, mps, cpu that there is.

    Raises:
        UsageError: The device is unknown or not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in there.items() if present)
    if not there.get(name.split(":")[0], False):
        found = ", ".join(kind for kind, present in there.items() if present)
        raise UsageError(f"There is no device {name!r} here; found: {found}. Use --device auto.")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device: {str(error).splitlines()[0]} Use --device auto.") from error


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which networks run in that precision."""
    if resolve_precision(precision, device) is Precision.FP32:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Returns what `AUTO` means on a device: bf16 where its processor multiplies that natively."""
    if precision is not Precision.AUTO:
        return precision
    return Precision.BF16 if has_bf16(device) else Precision.FP32


def has_bf16(device: torch.device) -> bool:
    """Returns whether `device` multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Emulated bf16 is many times slower than float32, so the instruction must be there.
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(probe() for probe in probes if probe is not None)
    return False
