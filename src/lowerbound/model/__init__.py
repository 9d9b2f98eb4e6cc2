"""Models: compositions of an encoder, a decoder and a prior, and the `Trace` that all else is written against."""

from lowerbound.model.conditional import ConditionalVAE
from lowerbound.model.ladder import LadderTrace, LadderVAE, mlp_ladder
from lowerbound.model.topdown import LadderHead, LadderPrior, TopDown, TopDownPosterior, TopDownPrior
from lowerbound.model.trace import Trace
from lowerbound.model.vae import VAE

__all__ = [
    "VAE",
    "ConditionalVAE",
    "LadderHead",
    "LadderPrior",
    "LadderTrace",
    "LadderVAE",
    "TopDown",
    "TopDownPosterior",
    "TopDownPrior",
    "Trace",
    "mlp_ladder",
]
