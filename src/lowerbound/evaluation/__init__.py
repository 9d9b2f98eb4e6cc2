"""Judging a model: one table of numbers that mean what they are called.

The bound and the evidence are always the plain ones, whatever was optimised, and where a number is not what a reader
would take it for, `notes` says so in words.

| file | what it does |
|---|---|
| `measuring` | measures each example: the bound and the evidence on all, the posterior gap's parts on some |
| `summary` | makes an `Evaluation` of that: means and their errors |
| `caveats` | says in words what a number is not |
| `comparing` | holds several models against the first, pair by pair |
| `judging` | `evaluate` |
"""

from lowerbound.evaluation.comparing import Comparison, compare
from lowerbound.evaluation.judging import evaluate
from lowerbound.evaluation.measuring import SPLIT_EXAMPLES
from lowerbound.evaluation.summary import Evaluation, SweepPoint, bits_per_dim

__all__ = ["SPLIT_EXAMPLES", "Comparison", "Evaluation", "SweepPoint", "bits_per_dim", "compare", "evaluate"]
