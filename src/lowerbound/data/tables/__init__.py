"""Tables with holes: CSV, TSV and Parquet files as rows of cells, some of which may be missing.

A row is x, `[D]`: one number a column, NaN where the cell is missing. `Table` says how a file's columns become numbers
and numbers cells again; `Column` is what it knows of one column.
"""

from lowerbound.data.tables.balance import balanced_index, mean_repeats
from lowerbound.data.tables.columns import Column, Kind
from lowerbound.data.tables.table import Look, Sheet, Table
from lowerbound.data.tables.writing import Writer, written

__all__ = [
    "Column",
    "Kind",
    "Look",
    "Sheet",
    "Table",
    "Writer",
    "balanced_index",
    "mean_repeats",
    "written",
]
