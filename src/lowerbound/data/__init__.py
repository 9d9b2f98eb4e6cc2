"""Data: from sources to batches of x.

`open_data("mnist")` gives `Data(train, valid, test)`, three `Source`s. A source gathers many examples by index in one
call and decodes them on the device; `batches` walks through one in a given order, and the order of an epoch is a pure
function of `(seed, epoch)`.
"""

from lowerbound.data.arrays import Arrays
from lowerbound.data.binarise import Binarise
from lowerbound.data.dequantise import Dequantised
from lowerbound.data.named import NAMED
from lowerbound.data.open import SPLITS, Data, View, open_data
from lowerbound.data.order import derive_seed, epoch_order, generator
from lowerbound.data.reading import Reading
from lowerbound.data.source import ArraySource, Batch, Source, Support, batches, check_support, mean
from lowerbound.data.tables import Column, Kind, Table

__all__ = [
    "NAMED",
    "SPLITS",
    "ArraySource",
    "Arrays",
    "Batch",
    "Binarise",
    "Column",
    "Data",
    "Dequantised",
    "Kind",
    "Reading",
    "Source",
    "Support",
    "Table",
    "View",
    "batches",
    "check_support",
    "derive_seed",
    "epoch_order",
    "generator",
    "mean",
    "open_data",
]
