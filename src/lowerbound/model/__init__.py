"""Models: compositions of an encoder, a decoder and a prior, and the `Trace` that all else is written against."""

from lowerbound.model.conditional import ConditionalVAE
from lowerbound.model.trace import Trace
from lowerbound.model.vae import VAE

__all__ = ["VAE", "ConditionalVAE", "Trace"]
