"""Objectives, evidence and gradients against closed forms: the linear-Gaussian oracle, and quadrature."""

import math

import pytest
import torch
from oracle import linear_gaussian

import lowerbound as lb
from lowerbound.data import generator
from lowerbound.errors import UsageError
from lowerbound.evidence import log_evidence
from lowerbound.heads import Bernoulli, Conditional, DiagonalNormal
from lowerbound.model import VAE
from lowerbound.nn import MLP, Tanh
from lowerbound.objectives import ELBO
from lowerbound.priors import StandardNormal

SEEDS = range(10)


@pytest.mark.verifies(
    lb.VAE,
    lb.Trace,
    lb.heads.DiagonalNormal,
    lb.heads.Normal,
    lb.priors.StandardNormal,
    against="linear-Gaussian oracle",
)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_draws_weight_is_the_evidence_times_the_posterior_over_q(seed):
    """log w(z) = log p(x) + log p(z|x) - log q(z|x), for each z by itself: Bayes' theorem, to 1e-9."""
    oracle = linear_gaussian(seed)
    trace = oracle.vae.trace(oracle.x, num_samples=11)
    expected = oracle.log_px() + oracle.posterior().log_prob(trace.z) - oracle.q().log_prob(trace.z)
    torch.testing.assert_close(trace.log_w, expected, atol=1e-9, rtol=0)


@pytest.mark.verifies(lb.objectives.ELBO, against="linear-Gaussian oracle")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("closed_form", [True, False])
def test_the_elbo_is_the_evidence_minus_the_kl_to_the_posterior(seed, closed_form, monkeypatch):
    """KL(q(z|x) || p(z|x)) = evidence - ELBO, to 1e-9, with the expectation over q taken exactly."""
    oracle = linear_gaussian(seed, latent=1 + seed % 4)
    monkeypatch.setattr(type(oracle.vae), "trace", lambda vae, x, num_samples: oracle.quadrature_trace())
    terms = ELBO(closed_form=closed_form)(oracle.vae, oracle.x)
    torch.testing.assert_close(terms.elbo, oracle.exact_elbo(), atol=1e-9, rtol=0)
    torch.testing.assert_close(terms.loss, -oracle.exact_elbo(), atol=1e-9, rtol=0)
    assert (oracle.kl_to_posterior() > 0).all()
    assert (terms.kl > 0).all()


@pytest.mark.verifies(lb.evidence.log_evidence, against="linear-Gaussian oracle")
@pytest.mark.parametrize("seed", SEEDS)
def test_at_the_true_posterior_the_bound_is_tight_and_has_no_variance(seed):
    oracle = linear_gaussian(seed, exact_q=True)
    trace = oracle.vae.trace(oracle.x, num_samples=50)
    torch.testing.assert_close(trace.log_w, oracle.log_px().expand(50, -1), atol=1e-9, rtol=0)
    evidence = log_evidence(oracle.vae, oracle.x, num_samples=3)
    torch.testing.assert_close(evidence.log_px, oracle.log_px(), atol=1e-9, rtol=0)
    torch.testing.assert_close(evidence.ess, torch.full_like(evidence.ess, 3.0), atol=1e-9, rtol=0)


@pytest.mark.verifies(lb.evidence.log_evidence, against="linear-Gaussian oracle")
def test_importance_weighting_agrees_with_the_evidence_within_its_own_stated_error():
    errors = []
    for seed in range(100):
        torch.manual_seed(seed)
        oracle = linear_gaussian(seed, examples=1)
        evidence = log_evidence(oracle.vae, oracle.x, num_samples=2000)
        errors.append(((evidence.log_px - oracle.log_px()) / evidence.stderr).item())
    errors = torch.tensor(errors)
    # Standard normal, were the weights well behaved: of 100, 0.3 are expected beyond 3.
    assert (errors.abs() > 3).sum() <= 2
    assert errors.abs().median() < 1.0
    assert errors.abs().median() > 0.4, "the stated error is far too large"


def test_the_importance_weighted_bound_rises_with_the_number_of_draws_towards_the_evidence():
    oracle = linear_gaussian(3, examples=400)
    torch.manual_seed(0)
    means = [log_evidence(oracle.vae, oracle.x, num_samples=k).log_px.mean() for k in (1, 4, 16, 256)]
    assert means == sorted(means)
    assert abs(means[-1] - oracle.log_px().mean()) < 0.02
    assert abs(means[0] - oracle.exact_elbo().mean()) < 0.2


def test_the_evidence_does_not_depend_on_how_the_draws_are_cut_into_chunks():
    oracle = linear_gaussian(4)
    expected = oracle.log_px()
    for chunk in (1, 7 * 64, 10**6):
        torch.manual_seed(0)
        evidence = log_evidence(oracle.vae, oracle.x, num_samples=500, chunk=chunk)
        assert ((evidence.log_px - expected).abs() < 5 * evidence.stderr + 1e-9).all()
        assert (evidence.ess >= 1).all()
        assert (evidence.ess <= 500 + 1e-9).all()


def test_a_decoder_that_ignores_z_has_the_evidence_of_its_own_likelihood():
    oracle = linear_gaussian(5)
    with torch.no_grad():
        oracle.weight.zero_()
        oracle.vae.encoder.head.project.weight.zero_()
        oracle.vae.encoder.head.project.bias.zero_()
    alone = oracle.vae.decoder(torch.zeros(1, 2, dtype=torch.float64)).log_prob(oracle.x)
    evidence = log_evidence(oracle.vae, oracle.x, num_samples=1)
    torch.testing.assert_close(evidence.log_px, alone, atol=1e-12, rtol=0)
    torch.testing.assert_close(evidence.rate, torch.zeros_like(alone), atol=1e-12, rtol=0)


@pytest.mark.verifies(lb.objectives.ELBO, against="linear-Gaussian oracle")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("closed_form", [True, False])
def test_the_reparameterised_gradient_is_the_exact_one(seed, closed_form, monkeypatch):
    """With exact quadrature over the noise, the gradient through the draws is the closed form's, to 1e-9."""
    oracle = linear_gaussian(seed, latent=1 + seed % 3)
    parameters = list(oracle.vae.parameters())
    exact = torch.autograd.grad(oracle.exact_elbo().sum(), parameters, allow_unused=True)
    monkeypatch.setattr(type(oracle.vae), "trace", lambda vae, x, num_samples: oracle.quadrature_trace())
    estimated = torch.autograd.grad(ELBO(closed_form=closed_form)(oracle.vae, oracle.x).elbo.sum(), parameters)
    for mine, true in zip(estimated, exact, strict=True):
        torch.testing.assert_close(mine, true, atol=1e-8, rtol=1e-9)


def test_the_reparameterised_gradient_is_unbiased_as_it_is_drawn():
    """The estimator as training uses it, rsample and all: its mean is within its own error of the exact gradient."""
    oracle = linear_gaussian(1, examples=2)
    bias = oracle.vae.encoder.head.project.bias
    (exact,) = torch.autograd.grad(oracle.exact_elbo().sum(), [bias])
    torch.manual_seed(0)
    draws = torch.stack([torch.autograd.grad(ELBO()(oracle.vae, oracle.x).elbo.sum(), [bias])[0] for _ in range(2000)])
    error = (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(len(draws)))
    assert (error.abs() < 4).all()


@pytest.mark.verifies(lb.evidence.log_evidence, against="quadrature")
def test_evidence_agrees_with_quadrature_where_no_closed_form_exists():
    """A nonlinear decoder with one latent dimension, its integral taken on a fine grid."""
    torch.manual_seed(0)
    encoder = Conditional(MLP((6,), (16,), Tanh()), DiagonalNormal((16,), (1,)))
    decoder = Conditional(MLP((1,), (16,), Tanh()), Bernoulli((16,), (6,)))
    vae = VAE(encoder, decoder, StandardNormal(1)).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4)
    x = (torch.rand(20, 6, generator=generator(1)) < 0.5).double()
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None, None]
    joint = vae.prior().log_prob(grid) + vae.decoder(grid.expand(-1, len(x), 1)).log_prob(x)
    exact = joint.logsumexp(0) + math.log(24 / 4000)
    evidence = log_evidence(vae, x, num_samples=20_000)
    assert ((evidence.log_px - exact).abs() < 4 * evidence.stderr + 1e-4).all()
    assert (evidence.elbo < exact + 1e-3).all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_beta_weighs_the_kl_in_the_loss_and_nowhere_else(beta):
    oracle = linear_gaussian(6)
    torch.manual_seed(0)
    weighted = ELBO(beta=beta)(oracle.vae, oracle.x)
    torch.manual_seed(0)
    plain = ELBO()(oracle.vae, oracle.x)
    torch.testing.assert_close(weighted.elbo, plain.elbo)
    torch.testing.assert_close(weighted.loss, plain.distortion + beta * plain.kl)


def test_k_hat_tells_good_proposals_from_bad_ones():
    good, bad = linear_gaussian(7, exact_q=True, examples=20), linear_gaussian(7, exact_q=True, examples=20)
    with torch.no_grad():
        # Three times too narrow: the weights have no variance any more (it is infinite below a factor of sqrt(1/2)).
        bad.vae.encoder.head.project.bias[2:] -= math.log(3)
        good.vae.encoder.head.project.bias[2:] += math.log(1.5)
    torch.manual_seed(0)
    assert (log_evidence(good.vae, good.x, num_samples=1000).khat < 0.5).all()
    assert (log_evidence(bad.vae, bad.x, num_samples=1000).khat > 0.7).double().mean() > 0.8


@pytest.mark.verifies(lb.evidence.pareto_shape, against="known truth")
@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.2])
def test_the_pareto_fit_finds_the_shape_that_made_the_data(shape):
    from lowerbound.evidence import pareto_shape

    uniform = torch.rand(4000, 8, generator=generator(0), dtype=torch.float64)
    assert (pareto_shape(((1 - uniform) ** -shape - 1) / shape) - shape).abs().max() < 0.12


def test_no_draws_are_refused():
    oracle = linear_gaussian(0)
    with pytest.raises(UsageError, match="at least 1 draw"):
        log_evidence(oracle.vae, oracle.x, num_samples=0)
