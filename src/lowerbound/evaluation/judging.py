"""`evaluate`: one model on one source."""

from __future__ import annotations

from lowerbound.data import Source
from lowerbound.evaluation.measuring import SPLIT_EXAMPLES, Plan, Report, measure_all, recovery
from lowerbound.evaluation.summary import Evaluation, summary
from lowerbound.model import VAE
from lowerbound.objectives import Objective
from lowerbound.training import Precision


def evaluate(
    vae: VAE,
    source: Source,
    *,
    num_samples: int = 100,
    limit: int | None = None,
    gap: int = SPLIT_EXAMPLES,
    seed: int = 0,
    precision: Precision = Precision.FP32,
    objective: Objective | None = None,
    notes: tuple[str, ...] = (),
    on_progress: Report | None = None,
) -> Evaluation:
    """Measures a model on a source.

    Args:
        vae: The model.
        source: The examples; for a number that can be compared, a split that nothing was selected on.
        num_samples: K, draws from q(z|x) an example; of discrete codes, from a mixture of that and the prior.
        limit: Measure only so many examples, picked at random by a fixed seed.
        gap: Split the posterior gap on so many of these, picked by a fixed seed: at least 2, or 0 to leave it out. One
            of them costs as much as some thousand draws.
        seed: Seeds the draws.
        precision: The arithmetic of the networks; densities and sums are always float32 and float64. In bf16 it takes
            some 60 % of the time where the processor has that, and is the evidence of the model whose networks are
            rounded so (`lowerbound.evaluation.measuring`).
        objective: What trained the model, to be named beside the numbers, with its notes.
        notes: Remarks on how the model was trained, to be carried along.
        on_progress: Called with the work done and its total, in passes of one z through the decoder.

    Raises:
        UsageError: There are fewer than 2 examples, `num_samples` is below 1, `gap` is 1 or negative, or the likelihood
            does not fit the data.
    """
    plan = Plan(num_samples, limit, gap, seed, precision).fitted(vae)
    measured, information = measure_all(vae, source, plan, on_progress)
    recovered, why_not = recovery(vae, source, plan)
    return summary(vae, source, measured, information, plan, objective, (*notes, *why_not), recovered)
