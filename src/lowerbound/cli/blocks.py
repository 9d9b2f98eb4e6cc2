"""Results that arrive in blocks, some examples at a time, as files: memory does not grow with their number."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".csv", ".parquet", ".npz")
# What of each array of a .npz waits in memory for the others; the rest waits in a file beside the one to be made.
_WAITING_BYTES = 16 << 20


def write_blocks(path: Path, blocks: Iterator[dict[str, Tensor]]) -> None:
    """Writes columns that arrive in blocks, whole or not at all.

    Args:
        path: .csv or .parquet, where each column is `[n]`; or .npz, where it is `[n, ...]`.
        blocks: The columns by name, in the same order each time; there is at least one block.

    Raises:
        ResourceError: The disk is full or refuses; what was there before is intact.
    """
    match path.suffix.lower():
        case ".csv":
            _write_csv(path, blocks)
        case ".parquet":
            _write_parquet(path, blocks)
        case _:
            _write_npz(path, blocks)


def _write_csv(path: Path, blocks: Iterator[dict[str, Tensor]]) -> None:
    from lowerbound.checkpoint import writing

    first = next(blocks)
    with writing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(first)
        for block in chain([first], blocks):
            writer.writerows(zip(*(column.tolist() for column in block.values()), strict=True))
        text.detach()  # or it would close the file, which is not on the disk yet


def _write_parquet(path: Path, blocks: Iterator[dict[str, Tensor]]) -> None:
    from lowerbound.checkpoint import writing
    from lowerbound.data.tables.cells import arrow

    table = arrow().table
    from pyarrow import parquet

    tables = (table({name: column.numpy() for name, column in block.items()}) for block in blocks)
    first = next(tables)
    with writing(path) as file, parquet.ParquetWriter(file, first.schema) as writer:
        for part in chain([first], tables):
            writer.write_table(part)


def _write_npz(path: Path, blocks: Iterator[dict[str, Tensor]]) -> None:
    """An archive takes one array after another, and an array begins with its length: so they wait."""
    import numpy as np

    from lowerbound.checkpoint import writing
    from lowerbound.errors import disk_errors

    with ExitStack() as stack:
        stack.enter_context(disk_errors(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting: dict[str, Any] = {}
        kinds: dict[str, tuple[Any, tuple[int, ...]]] = {}
        count = 0
        for block in blocks:
            arrays = {name: value.numpy() for name, value in block.items()}
            for name, array in arrays.items():
                if name not in waiting:
                    spool = tempfile.SpooledTemporaryFile(_WAITING_BYTES, dir=str(path.parent))  # noqa: SIM115
                    waiting[name], kinds[name] = stack.enter_context(spool), (array.dtype, array.shape[1:])
                waiting[name].write(np.ascontiguousarray(array).data)
            count += len(next(iter(arrays.values())))
        with writing(path) as file, ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for name, spool in waiting.items():
                dtype, event = kinds[name]
                descr = np.lib.format.dtype_to_descr(dtype)
                header = {"descr": descr, "fortran_order": False, "shape": (count, *event)}
                spool.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(spool, member, 1 << 20)
