"""The exact oracle: a linear-Gaussian VAE, whose p(x) and p(z|x) are normal distributions in closed form.

    p(z) = N(0, I),  p(x|z) = N(W z + b, s² I)   =>   p(x) = N(b, W Wᵀ + s² I),
    p(z|x) = N(M⁻¹ Wᵀ (x - b) / s², M⁻¹),  M = I + Wᵀ W / s²

It is built from the library's own parts, in float64, so whatever holds for it holds for the code that is shipped.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from lowerbound.data import generator
from lowerbound.heads import Conditional, DiagonalNormal, Normal
from lowerbound.model import VAE, Trace
from lowerbound.nn import Network
from lowerbound.priors import StandardNormal


class Identity(Network):
    """Features that are the input itself, so that a head's affine map is all there is."""

    def __init__(self, in_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.in_shape = self.out_shape = in_shape

    def forward(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class LinearGaussian:
    """A linear-Gaussian VAE and its exact distributions."""

    vae: VAE
    x: Tensor

    @property
    def weight(self) -> Tensor:
        return self.vae.decoder.head.project.weight

    @property
    def bias(self) -> Tensor:
        return self.vae.decoder.head.project.bias

    @property
    def noise(self) -> float:
        return self.vae.decoder.head.scale

    def evidence(self) -> MultivariateNormal:
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(len(self.bias), dtype=torch.float64)
        return MultivariateNormal(self.bias, covariance)

    def log_px(self) -> Tensor:
        return self.evidence().log_prob(self.x)

    def posterior(self) -> MultivariateNormal:
        latent = self.weight.shape[1]
        precision = torch.eye(latent, dtype=torch.float64) + self.weight.T @ self.weight / self.noise**2
        covariance = torch.linalg.inv(precision)
        loc = (self.x - self.bias) @ self.weight @ covariance / self.noise**2
        return MultivariateNormal(loc, covariance.expand(len(self.x), latent, latent))

    def q(self) -> MultivariateNormal:
        q = self.vae.encoder(self.x)
        return MultivariateNormal(q.mean, torch.diag_embed(q.variance))

    def kl_to_posterior(self) -> Tensor:
        return kl_divergence(self.q(), self.posterior())

    def exact_elbo(self) -> Tensor:
        return self.log_px() - self.kl_to_posterior()

    def quadrature_trace(self) -> Trace:
        """A trace at 2 D points whose plain average is exact for quadratic functions of z, as all log-densities are."""
        q = self.vae.encoder(self.x)
        latent = q.mean.shape[-1]
        nodes = math.sqrt(latent) * torch.cat([torch.eye(latent), -torch.eye(latent)]).double()
        z = q.mean + q.stddev * nodes[:, None, :]
        return Trace(z, self.vae.decoder(z).log_prob(self.x), q, self.vae.prior())


def linear_gaussian(
    seed: int, *, latent: int = 2, dims: int = 5, noise: float = 0.5, exact_q: bool = False, examples: int = 7
) -> LinearGaussian:
    """A random linear-Gaussian VAE and examples drawn from it.

    Args:
        seed: Draws everything.
        latent: Components of z.
        dims: Components of x.
        noise: The standard deviation s.
        exact_q: Make q(z|x) the true posterior (W gets orthogonal columns, so that the posterior is diagonal); else q
            is a random amortised normal somewhere near it.
        examples: How many x to draw.
    """
    draws = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    encoder = DiagonalNormal((dims,), (latent,))
    decoder = Normal((latent,), (dims,), scale=noise)
    vae = VAE(
        Conditional(Identity((dims,)), encoder), Conditional(Identity((latent,)), decoder), StandardNormal(latent)
    ).double()
    weight, bias = normal(dims, latent), normal(dims)
    if exact_q:
        weight = torch.linalg.qr(weight).Q * (0.5 + torch.rand(latent, generator=draws, dtype=torch.float64))
    precision = torch.eye(latent, dtype=torch.float64) + weight.T @ weight / noise**2
    gain = torch.linalg.inv(precision) @ weight.T / noise**2
    log_scale = -0.5 * torch.log(torch.diagonal(precision))
    offset = -gain @ bias
    if not exact_q:
        # Off by less than its own width, and too wide rather than too narrow: a fair proposal.
        gain = gain + 0.03 * normal(latent, dims)
        log_scale = log_scale + 0.2 + 0.2 * torch.rand(latent, generator=draws, dtype=torch.float64)
    with torch.no_grad():
        decoder.project.weight.copy_(weight)
        decoder.project.bias.copy_(bias)
        # Recomputed in float64: the head was made in float32.
        decoder.log_scale.fill_(math.log(noise))
        encoder.project.weight.copy_(torch.cat([gain, torch.zeros(latent, dims)]))
        encoder.project.bias.copy_(torch.cat([offset, log_scale]))
    x = normal(examples, latent) @ weight.T + bias + noise * normal(examples, dims)
    return LinearGaussian(vae.eval(), x)
