"""Options that several commands have, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from lowerbound.errors import UsageError

if TYPE_CHECKING:
    from lowerbound import training

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
Precision = Annotated[str, Parameter(help="auto, fp32 or bf16: the arithmetic of the networks. bf16 may be faster.")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.")]
Json = Annotated[bool, Parameter(help="Print one JSON document.")]


def precision_of(name: str) -> training.Precision:
    """Returns the precision called `name`.

    Raises:
        UsageError: There is none.
    """
    from lowerbound.training import Precision

    known = [precision.value for precision in Precision]
    if name not in known:
        raise UsageError(f"--precision should be one of {', '.join(known)}; got {name!r}.")
    return Precision(name)
