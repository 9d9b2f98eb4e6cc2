r"""The evidence: log p(x), measured.

$$\log p(x) = \log \int p(x|z)\,p(z)\,dz$$

has no closed form. What there is instead:

| function | what it gives | when |
|---|---|---|
| `log_evidence` | a lower bound by importance weighting, with its error and k-hat | always first |
| `log_evidence(..., defensive=Defensive())` | the same where q is too narrow | k-hat above 0.7 |
| `sweep` | the bound against the number of draws | to see whether K is large enough |
"""

from lowerbound.evidence.importance import KHAT_LIMIT, Evidence, Sweep, log_evidence, sweep
from lowerbound.evidence.proposals import Defensive
from lowerbound.evidence.streams import pareto_shape

__all__ = [
    "KHAT_LIMIT",
    "Defensive",
    "Evidence",
    "Sweep",
    "log_evidence",
    "pareto_shape",
    "sweep",
]
