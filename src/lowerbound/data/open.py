"""From a source's name or path to its three splits.

`train` is learned from, `valid` selects (early stopping, hyperparameters), and `test` is looked at once, at the end.
Validation is the tail of the training examples.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowerbound.data.binarise import Binarise
from lowerbound.data.dequantise import Dequantised, fixed_noise
from lowerbound.data.named import NAMED
from lowerbound.data.order import generator
from lowerbound.data.source import ArraySource, Source, Support
from lowerbound.errors import DataError, UsageError, did_you_mean

SPLITS = ("train", "valid", "test")
# A file without splits of its own is split 80/10/10 in an order drawn with this seed.
_FILE_SEED = 1
_MAX_COUNT = 1 << 24


@dataclass(frozen=True)
class View:
    """How a source is looked at: what was asked of its splits, so that it can be asked again.

    Attributes:
        num_valid: Validation examples asked for; None for the source's own number.
        joined: Whether validation was given back to training.
        binarise: How grey values become binary.
        seed: Seeds the fixed draws of a binarisation or dequantisation.
        dequantise: Whether 8-bit levels are spread over [0, 1].
    """

    num_valid: int | None = None
    joined: bool = False
    binarise: Binarise = Binarise.NONE
    seed: int = 0
    dequantise: bool = False

    def of(self, source: str, data_dir: Path | None = None) -> Data:
        """Opens a source and looks at it this way."""
        data = open_data(source, data_dir=data_dir, num_valid=self.num_valid)
        if self.joined:
            data = data.joined()
        data = data.binarised(self.binarise, self.seed)
        return data.dequantised(self.seed) if self.dequantise else data


@dataclass(frozen=True)
class Data:
    """A data set in its three splits.

    Attributes:
        name: The source's name, or its path.
        train: What is learned from.
        valid: What selects; None when every training example is learned from.
        test: What is measured on, in the end.
        view: How the splits were made from the source.

    Raises:
        UsageError: A split is empty.
    """

    name: str
    train: Source
    valid: Source | None
    test: Source
    view: View = View()

    def __post_init__(self) -> None:
        for name in SPLITS:
            source: Source | None = getattr(self, name)
            if source is not None and len(source) == 0:
                raise UsageError(
                    f"Each split of the data needs at least one example, but {name} of {self.name!r} is empty. Give it "
                    "some, or, to learn from all training examples, valid=None."
                )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        return self.train.event_shape

    @property
    def support(self) -> Support:
        """The values that x can take."""
        return self.train.support

    def split(self, name: str) -> Source:
        """Returns the split called `name`.

        Raises:
            UsageError: There is no such split.
        """
        if name not in SPLITS:
            raise UsageError(f"There is no split {name!r}. {did_you_mean(name, SPLITS)}")
        source: Source | None = getattr(self, name)
        if source is None:
            raise UsageError(
                f"This run learned from all training examples, so there is no {name} split to look at; "
                "use --split test or --split train."
            )
        return source

    def joined(self) -> Data:
        """Returns the data with validation given back to training: nothing is left to select on."""
        view = replace(self.view, joined=True)
        if self.valid is None:
            return replace(self, view=view)
        seen = self.view.dequantise or self.view.binarise is not Binarise.NONE
        if seen or not (isinstance(self.train, ArraySource) and isinstance(self.valid, ArraySource)):
            raise UsageError("Join the splits before they are binarised or dequantised.")
        return replace(self, train=self.train.joined(self.valid), valid=None, view=view)

    def binarised(self, how: Binarise, seed: int = 0) -> Data:
        """Returns the data binarised: for training as asked, for validation and test by one fixed draw.

        Args:
            how: `NONE` returns the data unchanged.
            seed: Seeds the fixed draws, each split with its own.

        Raises:
            UsageError: The values are no probabilities, or were dequantised.
        """
        if how is Binarise.NONE:
            return self
        if self.view.binarise is not Binarise.NONE:
            raise UsageError(f"The data are binarised already ({self.view.binarise.value}); open them again.")
        if self.view.dequantise:
            raise UsageError(
                "These data were dequantised, and what is binarised after that is noise in part. Binarise the data as "
                "they were opened, or use binarise none."
            )
        return replace(
            self,
            view=replace(self.view, binarise=how, seed=seed),
            train=how.for_training(self.train, seed),
            valid=None if self.valid is None else how.for_judging(self.valid, seed + 1),
            test=how.for_judging(self.test, seed + 2),
        )

    def dequantised(self, seed: int = 0) -> Data:
        """Returns 8-bit data spread over [0, 1]: afresh at each look in training, by one fixed draw to judge on.

        Args:
            seed: Seeds the fixed draws, each split with its own.

        Raises:
            UsageError: The values are not 8-bit levels.
        """
        return replace(
            self,
            view=replace(self.view, dequantise=True, seed=seed),
            train=Dequantised(self.train),
            valid=None if self.valid is None else fixed_noise(self.valid, seed + 1),
            test=fixed_noise(self.test, seed + 2),
        )


def open_data(source: str, *, data_dir: Path | None = None, num_valid: int | None = None) -> Data:
    """Opens a data set by name or path.

    What the values of a file can be follows from their type: uint8 are 8-bit levels, other integers are counts, and
    floats are real numbers, or grey values where all lie in [0, 1]; zeros and ones are binary in any type. Where that
    is not what they are, build the source by hand: `ArraySource(values, support=...)`.

    Args:
        source: A name (`mnist`, `fashion-mnist`, `mnist-5k`, `digits`), or the path of a `.npy` or `.npz` file.
        data_dir: A folder in which named data sets are looked for first.
        num_valid: How many of the last training examples are for validation; by default 5,000 of MNIST's 60,000, and
            about a tenth elsewhere.

    Raises:
        DataError: The source is unknown, broken or cannot be had.
        UsageError: `num_valid` leaves nothing to train on.
    """
    if source in NAMED:
        named = NAMED[source]
        learned, test = named.load(data_dir)
        default = named.valid
    else:
        learned, test = _open_file(source)
        default = min(max(1, len(learned) // 9), len(learned) - 1)
    held_out = default if num_valid is None else num_valid
    if not 0 <= held_out < len(learned):
        raise UsageError(
            f"Validation takes the last of {len(learned):,} training examples, so it can have 0 to "
            f"{len(learned) - 1:,}; got {held_out:,}."
        )
    cut = len(learned) - held_out
    valid = learned.slice(cut, len(learned)) if held_out else None
    name = source if source in NAMED else str(Path(source).resolve())
    return Data(name, learned.slice(0, cut), valid, test, View(num_valid))


def _open_file(source: str) -> tuple[ArraySource, ArraySource]:
    path = Path(source)
    if path.suffix not in (".npy", ".npz"):
        raise DataError(
            f"There is no data source {source!r}: it is neither a known name nor the path of a .npy or .npz file. "
            f"{did_you_mean(source, NAMED)}"
        )
    if not os.path.isfile(path):  # unlike Path.is_file, it raises nothing for a name that is too long
        raise DataError(f"There is no file {source}. Check the path; it is taken from {Path.cwd()}.")
    try:
        arrays = _load_arrays(path)
    except Exception as error:  # NumPy reads a header as Python, so a damaged one can end in anything
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source} cannot be read as a NumPy file ({reason}); save it again with numpy.save."
        ) from error
    if "x_train" in arrays:
        learned, test = _as_sources(arrays, (("x_train", "y_train"), ("x_test", "y_test")), source, 2, 1)
        return learned, test
    (whole,) = _as_sources(arrays, (("x", "y"),), source, 3)
    shuffled = whole.take(torch.randperm(len(whole), generator=generator(_FILE_SEED)))
    cut = len(whole) - max(1, len(whole) // 10)
    return shuffled.slice(0, cut), shuffled.slice(cut, len(whole))


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{key} is no array")
    return arrays


def _as_sources(
    arrays: dict[str, np.ndarray], keys: tuple[tuple[str, str], ...], name: str, *fewest: int
) -> tuple[ArraySource, ...]:
    for x, _ in keys:
        if x not in arrays:
            raise DataError(
                f"{name} should hold an array {x!r}, but has {', '.join(sorted(arrays)) or 'nothing'}. Name the "
                "examples 'x' (and their labels 'y'), or 'x_train' and 'x_test'."
            )
    values = [_as_tensor(arrays[x], f"{name}, array {x}", n) for (x, _), n in zip(keys, fewest, strict=True)]
    first = values[0]
    for other, (x, _) in zip(values, keys, strict=True):
        if other.shape[1:] != first.shape[1:] or other.dtype != first.dtype:
            raise DataError(
                f"{name} should hold training and test examples alike, but {keys[0][0]} has {first.dtype} of "
                f"shape {list(first.shape[1:])}, and {x} {other.dtype} of shape {list(other.shape[1:])}."
            )
    order = list(Support)
    support = max((_narrowest(v) for v in values), key=order.index)
    # Zeros and ones as bytes are not nearly black pictures.
    scale = 1.0 if support in (Support.BINARY, Support.COUNT) else 1 / 255
    labels = [_as_labels(arrays[y], f"{name}, array {y}") if y in arrays else None for _, y in keys]
    return tuple(
        ArraySource(v, label, support=support, scale=scale, name=name) for v, label in zip(values, labels, strict=True)
    )


def _as_labels(array: np.ndarray, name: str) -> Tensor:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{name} should hold one whole number for each example, [N], but has {array.dtype} of shape "
            f"{list(array.shape)}. Number the classes from 0."
        )
    return torch.from_numpy(array.astype(np.int64))


def _as_tensor(array: np.ndarray, name: str, fewest: int) -> Tensor:
    if array.ndim < 2 or len(array) < fewest or array.size == 0:
        raise DataError(
            f"{name} should be [N, ...], with N at least {fewest} and values in each example, but has shape "
            f"{list(array.shape)}."
        )
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if array.dtype != np.uint8 and np.issubdtype(array.dtype, np.integer):
        _check_counts(array, name)
        array = array.astype(np.int32)
    elif array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{name} has values of type {array.dtype}. Save 8-bit images as uint8, counts as int32, and anything else "
            "as float32."
        )
    elif array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused with its place
            array = array.astype(np.float32)
    if array.ndim == 3:
        array = array[:, None]  # [N, H, W] is read as grey images, [N, 1, H, W]
    return torch.from_numpy(np.array(array))


def _check_counts(array: np.ndarray, name: str) -> None:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > _MAX_COUNT:
        raise DataError(
            f"{name} has {array.dtype} values from {low:,} to {high:,}. Whole numbers are read as counts, from 0 to "
            f"{_MAX_COUNT:,} (float32 has no longer every one above that). Save other values as float32."
        )
    if array.ndim > 2 and high > 1:
        # Taken for counts, pictures would be given a likelihood that is not theirs, and nobody would notice.
        raise DataError(
            f"{name} has {array.dtype} values up to {high} of shape {list(array.shape)}, which can be pictures or "
            "counts. Save pictures as uint8 (or as float32 in [0, 1]), and counts as [N, D]; or say what they are by "
            "lowerbound.ArraySource(values, support=...)."
        )


def _narrowest(values: Tensor) -> Support:
    if bool(((values == 0) | (values == 1)).all()):
        return Support.BINARY
    if values.dtype == torch.uint8:
        return Support.EIGHT_BIT
    if values.dtype == torch.int32:
        return Support.COUNT
    if bool(((values >= 0) & (values <= 1)).all()):
        return Support.UNIT_INTERVAL
    return Support.REAL
