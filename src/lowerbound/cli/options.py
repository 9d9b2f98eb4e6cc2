"""Options that several commands have, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Run = Annotated[Path, Parameter(help="The run folder.")]
Data = Annotated[str | None, Parameter(help="Another source than the run's own, read and binarised in the same way.")]
Split = Annotated[
    str | None,
    Parameter(
        help="test, valid, train, or all in the source's own order; by default test, and all of another file that has "
        "no splits of its own."
    ),
]
Samples = Annotated[int, Parameter(help="K, importance samples an example for log p(x).")]
Seed = Annotated[int, Parameter(help="Seeds the draws.")]
DataDir = Annotated[Path | None, Parameter(help="A folder in which named data sets are looked for first.")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.")]
Json = Annotated[bool, Parameter(help="Print one JSON document.")]
