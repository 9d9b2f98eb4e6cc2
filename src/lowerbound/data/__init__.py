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
from lowerbound.data.pictures import Pictures
from lowerbound.data.reading import Reading, Report
from lowerbound.data.source import ArraySource, Batch, Factors, Source, Support, batches, check_support, mean
from lowerbound.data.stored import Rows, StoredSource, rows_of
from lowerbound.data.tables import Column, Kind, Table
from lowerbound.data.text import Text, Unit
from lowerbound.data.told import PartlyTold, partly_told

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
    "Factors",
    "Kind",
    "PartlyTold",
    "Pictures",
    "Reading",
    "Report",
    "Rows",
    "Source",
    "StoredSource",
    "Support",
    "Table",
    "Text",
    "Unit",
    "View",
    "batches",
    "check_support",
    "derive_seed",
    "epoch_order",
    "generator",
    "mean",
    "open_data",
    "partly_told",
    "rows_of",
]
