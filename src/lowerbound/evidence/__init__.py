r"""The evidence: log p(x), measured.

$$\log p(x) = \log \int p(x|z)\,p(z)\,dz$$

has no closed form. There are several ways to it, and none is best everywhere:

| function | what it gives | what it needs |
|---|---|---|
| `log_evidence` | a lower bound by importance weighting, with its error and k-hat | a q that covers p(z\|x) |
| `log_evidence(..., defensive=Defensive())` | the same, from a mixture that is wider than q | a q that is not far off |
| `log_evidence(..., ks=...)`, `sweep` | the bound against the number of draws, from one set of draws | as above |
| `annealed_evidence` | a lower bound by annealing, tighter with more temperatures | time |
| `bidirectional` | how far annealing is from the truth | data simulated from the model |
| `quadrature_evidence` | log p(x) and p(z\|x) themselves | 1 or 2 latent components |
| `class_evidence` | log p(x) and p(c\|x) of a conditional model | time for each class |
| `posterior_gap` | log p(x) - ELBO, split into what the family of q and what the encoder falls short of | time |

k-hat says when importance weighting is not enough: above 0.7 try a defensive proposal, then annealing.
"""

from lowerbound.evidence.annealed import AnnealedEvidence, Annealing, Start, annealed_evidence
from lowerbound.evidence.bidirectional import Bidirectional, bidirectional
from lowerbound.evidence.classes import ClassEvidence, class_evidence
from lowerbound.evidence.gap import Gap, Refinement, is_freeable, posterior_gap
from lowerbound.evidence.importance import KHAT_LIMIT, Evidence, Level, Sweep, log_evidence, sweep
from lowerbound.evidence.proposals import Defensive
from lowerbound.evidence.quadrature import QuadratureEvidence, quadrature_evidence
from lowerbound.evidence.streams import pareto_shape

__all__ = [
    "KHAT_LIMIT",
    "AnnealedEvidence",
    "Annealing",
    "Bidirectional",
    "ClassEvidence",
    "Defensive",
    "Evidence",
    "Gap",
    "Level",
    "QuadratureEvidence",
    "Refinement",
    "Start",
    "Sweep",
    "annealed_evidence",
    "bidirectional",
    "class_evidence",
    "is_freeable",
    "log_evidence",
    "pareto_shape",
    "posterior_gap",
    "quadrature_evidence",
    "sweep",
]
