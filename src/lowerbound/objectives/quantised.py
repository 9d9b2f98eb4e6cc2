r"""What trains a model of discrete codes.

The bound on log p(x) of a quantising encoder is a plain sum (`lowerbound.heads.quantisers`),

$$-ELBO(x) = \underbrace{-\log p(x|z_q(x))}_{\text{distortion}} + \underbrace{(-\log p(z_q(x)))}_{\text{rate}}$$

but the choice of a code has no gradient. So the distortion reaches the encoder straight through the choice, the rate
teaches the prior alone, and a codebook has losses of its own (van den Oord, Vinyals and Kavukcuoglu, 2017, eq. 3):

$$L = -\log p(x|z_q) - \log p(z_q) + \tfrac1T \sum_t \|sg[r_t] - e_{k_t}\|^2
  + \beta\,\tfrac1T \sum_t \|r_t - sg[e_{k_t}]\|^2$$

with r what is quantised, e the codes' vectors and sg no gradient. As in the paper the squared distances are averaged
over the T positions.

A departure: the paper trains with a uniform prior, whose rate T log K is a constant, and fits the prior to the finished
codes in a second training. Here both happen at once. The prior learns codes that still move, and settles as they do;
nothing of it reaches the encoder, so the first stage is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowerbound.discrete import CodeMass
from lowerbound.errors import UsageError
from lowerbound.heads import Quantiser
from lowerbound.model import VAE
from lowerbound.objectives.base import Objective, Terms, kl_of, require_weights


@dataclass(frozen=True)
class Quantised(Objective):
    """The bound of a model of discrete codes, and what keeps encoder and codebook together (module docstring).

    `kl` is -log p(z) of the encoder's codes, which is KL(q(z|x) || p(z)) exactly, and `elbo` the bound itself, without
    draws or noise. While the model is in training mode and gradients are on, a call also lets the quantiser `learn`
    from the batch: a codebook that is a moving average moves.

    Attributes:
        commitment: β, the weight of what pulls the encoder to the codes it chose; the paper has 0.25. A `FiniteScalar`
            quantiser has neither a codebook nor such a pull, and β means nothing to it.

    Raises:
        UsageError: `commitment` is negative.

    Example:
        >>> Quantised(commitment=0.5).notes()[0][:58]
        'the encoder and the codes were trained on the distortion, '
    """

    commitment: float = 0.25

    def __post_init__(self) -> None:
        require_weights("a Quantised objective", commitment=self.commitment)

    def __call__(self, vae: VAE, x: Tensor, step: int | None = None) -> Terms:
        trace = vae.trace(x)
        q, quantiser = trace.q, vae.encoder.head
        assert isinstance(q, CodeMass)
        assert isinstance(quantiser, Quantiser)
        distortion, rate = -trace.log_px_z[0], kl_of(trace)
        pull = quantiser.codebook_loss(q) + self.commitment * quantiser.commitment_loss(q)
        if vae.training and torch.is_grad_enabled():
            quantiser.learn(q)
        return Terms(distortion + rate + pull, distortion, rate, -distortion - rate)

    def check(self, vae: VAE) -> None:
        if not vae.has_codes:
            raise UsageError(
                "The objective Quantised trains an encoder that gives discrete codes, and this one ends in a "
                f"{type(vae.encoder.head).__name__}: use the objective ELBO (Reconstruction or WAE for a Delta), or a "
                "VectorQuantised or FiniteScalar head with the prior AutoregressiveCodes."
            )

    def notes(self) -> list[str]:
        how = "the encoder and the codes were trained on the distortion, straight through the choice of a code"
        prior = "and the prior on the codes as they came"
        return [
            f"{how}, {prior}; nothing asked the encoder for codes of a low rate, so the bound was not maximised whole"
        ]
