r"""Evidence over classes: what a conditional model says of x alone, and of its class.

A `ConditionalVAE` gives p(x|c). With class probabilities p(c) it gives the rest by Bayes' theorem:

$$\log p(x) = \log \sum_c p(c)\,p(x|c), \qquad p(c|x) = \frac{p(c)\,p(x|c)}{p(x)}.$$

Each p(x|c) is estimated without bias by importance weighting, hence so is their sum, and the logarithm is a lower bound
on log p(x) in expectation, as always. p(c|x) is a classifier that nobody trained. For a class that x is not of, q(z|x,
c) was never trained and can miss where p(z|x, c) lies: p(x|c) then comes out too low, and the right class too sure.
`khat` tells, and a `Defensive` proposal often mends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowerbound.errors import UsageError
from lowerbound.evidence.checks import CHUNK
from lowerbound.evidence.importance import log_evidence
from lowerbound.evidence.proposals import Defensive
from lowerbound.model import ConditionalVAE

_ROUNDING = 1e-6


@dataclass(frozen=True)
class ClassEvidence:
    """log p(x) and p(c|x) of a conditional model, for each of B examples and C classes, in nats.

    Attributes:
        classes: The labels, in the order of the last axis below.
        log_px: log sum_c p(c) p(x|c), `[B]`.
        stderr: Its Monte-Carlo standard error, by the delta method, `[B]`.
        log_px_given: log p(x|c), `[B, C]`.
        log_posterior: log p(c|x), `[B, C]`.
        khat: Pareto shape of the largest weights of each class, `[B, C]`; NaN where there are too few draws to tell.
    """

    classes: tuple[int, ...]
    log_px: Tensor
    stderr: Tensor
    log_px_given: Tensor
    log_posterior: Tensor
    khat: Tensor

    @property
    def predicted(self) -> Tensor:
        """The label of the most probable class, int64 `[B]`."""
        best = self.log_posterior.argmax(-1)
        return torch.tensor(self.classes, device=best.device)[best]


@torch.no_grad()
def class_evidence(
    vae: ConditionalVAE,
    x: Tensor,
    num_samples: int = 1000,
    *,
    proportions: tuple[float, ...] | None = None,
    defensive: Defensive | None = None,
    chunk: int = CHUNK,
) -> ClassEvidence:
    """Estimates log p(x) and p(c|x) by importance weighting under every class (module docstring).

    Args:
        vae: The model, in evaluation mode.
        x: Examples, `[B, *event]`.
        num_samples: Draws an example and class.
        proportions: p(c) for each of `vae.classes`, positive, with the sum 1; all alike by default.
        defensive: See `log_evidence`.
        chunk: See `log_evidence`.

    Raises:
        UsageError: The model is not conditional, `proportions` are no probabilities of its classes, or as
            `log_evidence`.
    """
    log_pc = _log_proportions(vae, proportions, x)
    found = [log_evidence(vae.given(c), x, num_samples, defensive=defensive, chunk=chunk) for c in vae.classes]
    log_px_given = torch.stack([each.log_px for each in found], -1)
    log_joint = log_px_given + log_pc
    log_px = log_joint.logsumexp(-1)
    log_posterior = log_joint - log_px[:, None]
    return ClassEvidence(
        classes=vae.classes,
        log_px=log_px,
        stderr=(log_posterior.exp() * torch.stack([each.stderr for each in found], -1)).square().sum(-1).sqrt(),
        log_px_given=log_px_given,
        log_posterior=log_posterior,
        khat=torch.stack([each.khat for each in found], -1),
    )


def _log_proportions(vae: ConditionalVAE, proportions: tuple[float, ...] | None, x: Tensor) -> Tensor:
    count = len(vae.classes)
    if not count:
        raise UsageError("Evidence over classes needs a ConditionalVAE; for this model use log_evidence.")
    given = (1 / count,) * count if proportions is None else proportions
    if len(given) != count or not min(given) > 0 or not abs(sum(given) - 1) < _ROUNDING:
        raise UsageError(
            f"proportions should be the probabilities of the model's {count} classes, positive, with the sum 1; got "
            f"{given}. Leave them out for classes that are all alike."
        )
    return torch.tensor(given, dtype=torch.float64, device=x.device).log()
