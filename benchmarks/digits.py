"""The digits, as a file that any contestant can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import lowerbound as lb


def write(name: str, count: int, path: Path) -> int:
    """Writes the first `count` training digits, uint8 `[N, 784]`, and returns how many there were."""
    source = lb.open_data(name).joined().train
    assert isinstance(source, lb.data.ArraySource)
    values = source.values.flatten(1).numpy()[:count]
    np.save(path, values)
    return len(values)
