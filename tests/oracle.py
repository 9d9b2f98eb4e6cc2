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
from lowerbound.model import VAE, ConditionalVAE, Trace
from lowerbound.nn import Network
from lowerbound.priors import NormalPerClass, StandardNormal


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


class Outer(Network):
    """Features (v, 1) ⊗ c of a value v beside c, so that a head's affine map of v is another one for each class."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.size, self.classes = size, classes
        self.in_shape, self.out_shape = (size + classes,), ((size + 1) * classes,)

    def forward(self, x: Tensor) -> Tensor:
        value, c = x.split([self.size, self.classes], -1)
        padded = torch.cat([value, torch.ones_like(value[:, :1])], -1)
        return (padded[:, :, None] * c[:, None, :] / math.sqrt(self.size)).flatten(1)


@dataclass(frozen=True)
class ConditionalGaussian:
    """A linear-Gaussian model of its own for each class, as one conditional VAE, and its exact distributions.

    p(z|c) = N(m_c, S_c),  p(x|z, c) = N(W_c z + b_c, s² I)   =>   p(x|c) = N(b_c + W_c m_c, W_c S_c W_cᵀ + s² I)
    """

    vae: ConditionalVAE
    x: Tensor
    label: Tensor
    weight: Tensor
    bias: Tensor
    noise: float

    @property
    def index(self) -> Tensor:
        return (self.label[:, None] == torch.tensor(self.vae.classes)).double().argmax(1)

    def log_px_given(self) -> Tensor:
        """log p(x|c) for every class, `[B, C]`."""
        p, each = self.vae.prior(), []
        for c, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            spread = weight * p.stddev[c]
            covariance = spread @ spread.T + self.noise**2 * torch.eye(len(bias), dtype=torch.float64)
            each.append(MultivariateNormal(bias + weight @ p.mean[c], covariance).log_prob(self.x))
        return torch.stack(each, 1)

    def log_px(self) -> Tensor:
        """log p(x|c) of each example's own class, `[B]`."""
        return self.log_px_given().gather(1, self.index[:, None])[:, 0]

    def posterior(self) -> MultivariateNormal:
        p, weight = self.vae.prior(), self.weight[self.index]
        inverse = 1 / p.variance[self.index]
        precision = torch.diag_embed(inverse) + weight.mT @ weight / self.noise**2
        seen = torch.einsum("bxz,bx->bz", weight, self.x - self.bias[self.index]) / self.noise**2
        loc = torch.linalg.solve(precision, seen + inverse * p.mean[self.index])
        return MultivariateNormal(loc, precision_matrix=precision)

    def q(self) -> MultivariateNormal:
        q = self.vae.given(self.label).encoder(self.x)
        return MultivariateNormal(q.mean, torch.diag_embed(q.variance))


def conditional_gaussian(
    seed: int, *, latent: int = 2, dims: int = 5, noise: float = 0.5, exact_q: bool = False, examples: int = 7
) -> ConditionalGaussian:
    """A random model of three classes, 3, 7 and 12, and examples drawn from it; see `linear_gaussian`."""
    draws, classes = generator(seed), (3, 7, 12)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    count = len(classes)
    encoder = DiagonalNormal(((dims + 1) * count,), (latent,))
    decoder = Normal(((latent + 1) * count,), (dims,), scale=noise)
    prior = NormalPerClass(latent, count)
    vae = ConditionalVAE(
        Conditional(Outer(dims, count), encoder), Conditional(Outer(latent, count), decoder), prior, classes
    ).double()
    weight, bias = (
        torch.linalg.qr(normal(count, dims, latent)).Q * (1 + normal(count, 1, latent) / 4),
        normal(count, dims),
    )
    with torch.no_grad():
        prior.loc.copy_(normal(count, latent))
        prior.raw_log_scale.copy_(0.4 * normal(count, latent))
        decoder.log_scale.fill_(math.log(noise))
        decoder.project.weight.copy_(torch.cat([weight, bias[..., None]], -1).permute(1, 2, 0).flatten(1))
        p = prior()
        # Columns of W_c are orthogonal, so the true posterior has independent components.
        variance = 1 / (1 / p.variance + weight.square().sum(1) / noise**2)
        gain = variance[..., None] * weight.mT / noise**2
        offset = variance * p.mean / p.variance - (gain @ bias[..., None])[..., 0]
        log_scale = 0.5 * variance.log()
        if not exact_q:
            gain, log_scale = gain + 0.03 * normal(*gain.shape), log_scale + 0.2
        loc = torch.cat([gain, offset[..., None]], -1)
        flat = torch.cat([torch.zeros_like(gain), log_scale[..., None]], -1)
        encoder.project.weight.copy_(torch.cat([loc, flat], 1).permute(1, 2, 0).flatten(1))
        encoder.project.bias.zero_()
        decoder.project.bias.zero_()
        index = torch.randint(count, (examples,), generator=draws)
        z = p.mean[index] + p.stddev[index] * normal(examples, latent)
        x = torch.einsum("bxz,bz->bx", weight[index], z) + bias[index] + noise * normal(examples, dims)
    return ConditionalGaussian(vae.eval(), x, torch.tensor(classes)[index], weight, bias, noise)
