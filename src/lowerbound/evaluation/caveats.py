"""What a number is not, in words."""

from __future__ import annotations

from lowerbound.data import Source
from lowerbound.evaluation.measuring import Plan
from lowerbound.evidence import KHAT_LIMIT, Defensive
from lowerbound.metrics import CodebookUsage, Information
from lowerbound.model import VAE
from lowerbound.training import Precision

# The share of examples with a high k-hat from which on something is said.
_MANY = 0.1


def caveats(vae: VAE, source: Source) -> list[str]:
    """Returns what follows from the parts of the model and the kind of the data."""
    likelihood, support = vae.likelihood, source.support
    said = [text for text in (likelihood.relaxed.get(support), likelihood.caveats.get(support)) if text]
    said += [*source.notes, *vae.notes()]
    if vae.has_density and source.log_correction and support in likelihood.exact:
        said.append(
            "x are 8-bit levels dequantised by uniform noise: the bound and log p(x) are of the density of x; for the "
            f"probability of the levels add {source.log_correction:.3f} nats, which gives a lower bound on its "
            "logarithm, as bits per dimension do"
        )
    said += vae.encoder.head.notes()
    return said


def codes(usage: CodebookUsage | None, num_samples: int) -> list[str]:
    """Returns what is different where z is discrete."""
    if usage is None:
        return []
    used = f"{usage.used} are used, with a perplexity of {usage.perplexity:.1f}"
    point = "all of q(z|x) is on one sequence of codes, whose log p(x, z) is the ELBO"
    by_prior = Defensive().counts(num_samples, widenable=False)[-1]
    if by_prior:
        found = f"{point}; log p(x) is bounded by those and {by_prior} of the {num_samples:,} draws from the prior"
    else:
        found = f"{point}, and so is the bound on log p(x) from {num_samples} draws; 4 or more add some from the prior"
    missed = "the sequences that no draw met are missing from it, no k-hat or error tells how many"
    gap = "and posterior_gap is at most -log p(z|x) of the encoder's codes, in the mean, and is not split"
    return [
        f"z is {usage.positions} discrete codes, each one of {usage.num_codes}; {used}",
        f"{found}; {missed}, {gap}",
    ]


def trust(khat_bad: float | None, split_khat_bad: float | None, split_far: float | None) -> list[str]:
    """Returns which estimates are in doubt by what was seen while they were made."""
    said = []
    if khat_bad is not None and khat_bad >= _MANY:
        finding = f"for {khat_bad:.0%} of the examples k-hat is above {KHAT_LIMIT}: few draws carry the weights"
        said.append(f"{finding}, and log p(x) is likely higher than said; use more samples")
    if split_khat_bad is not None and split_khat_bad >= _MANY:
        finding = f"for {split_khat_bad:.0%} of the examples of the split even the best proposal has a k-hat above"
        said.append(f"{finding} {KHAT_LIMIT}: approximation_gap and split_gap are likely larger than said")
    if split_far is not None and split_far >= _MANY:
        finding = f"for {split_far:.0%} of the examples of the split the best posterior is far from the encoder's, and"
        said.append(
            f"{finding} may not have been reached: amortisation_gap is then too small, approximation_gap too large"
        )
    return said


def left_out(vae: VAE, plan: Plan, split_n: int) -> list[str]:
    """Returns why the posterior gap could not be split, if it was to be."""
    if not vae.has_density or plan.gap == 0 or split_n:
        return []
    head = type(vae.encoder.head).__name__
    return [
        f"the posterior gap is not split: how to look for the best posterior of one example is not known for {head}"
    ]


def rounded(plan: Plan) -> list[str]:
    """Returns which model the numbers are of, where the networks ran in less than float32."""
    if plan.precision is Precision.FP32:
        return []
    numbers = "the ELBO, its parts and log p(x) are those of the model whose networks are rounded so"
    return [f"the networks ran in {plan.precision.value}: {numbers}, and float32 gives slightly other ones"]


def ceiling(information: Information | None) -> list[str]:
    """Returns that the information is as large as it can be told to be, if it is."""
    if information is None or not information.saturated:
        return []
    most = f"{information.ceiling:.2f} nats"
    near = f"mutual_information is near the most that {information.n:,} examples can show, {most}"
    return [f"{near}: it is at least what is said, and marginal_kl at most"]
