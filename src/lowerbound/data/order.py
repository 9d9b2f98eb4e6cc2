"""Randomness as a pure function of where we are.

Everything random in a training follows from `(seed, epoch)` or `(seed, step)` and from nothing else: not from
how often a figure was drawn in between, nor from whether the process was killed and went on. That is what makes
an exact resume possible with no generator state to carry.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
# Keeps an epoch's order apart from other uses of the same seed.
_EPOCH = 0x65706F6368


def derive_seed(*parts: int) -> int:
    """Mixes integers into one seed in [0, 2^63), so that neighbouring inputs give unrelated seeds.

    Each part goes through one round of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom
    number generators").

    Example:
        >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
        (True, False)
    """
    state = 0
    for part in parts:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def generator(*parts: int) -> torch.Generator:
    """Returns a CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def epoch_order(num_examples: int, seed: int, epoch: int) -> Tensor:
    """Returns the order in which epoch `epoch` visits the examples: a permutation, int64 `[N]`.

    Example:
        >>> bool((epoch_order(10, seed=0, epoch=3) == epoch_order(10, seed=0, epoch=3)).all())
        True
    """
    return torch.randperm(num_examples, generator=generator(seed, _EPOCH, epoch))
