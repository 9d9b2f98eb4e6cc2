"""What the scripts behind docs/theory.md compute, against the linear-Gaussian oracle, where all of it is known."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from oracle import Identity, linear_gaussian
from torch.distributions import kl_divergence

import lowerbound as lb

sys.path.append(str(Path(__file__).parent.parent / "docs"))

import gap
import gradients
import posterior


def encoder_gradient(oracle):
    """The exact gradient of mean(-ELBO) with respect to the encoder."""
    losses = -oracle.exact_elbo()
    parts = torch.autograd.grad(losses.mean(), list(oracle.vae.encoder.parameters()))
    return torch.cat([part.flatten() for part in parts])


def test_every_estimator_is_of_the_exact_gradient():
    oracle = linear_gaussian(0, latent=2, dims=3, examples=4)
    exact = encoder_gradient(oracle)
    draws = 400
    for name, estimates in gradients.estimators(oracle.vae, oracle.x, draws):
        noise = gradients.Noise.of(estimates)
        off = (estimates.mean(0) - exact).square().sum().item()
        assert off < 4 * noise.variance / draws, name
        length, left = exact.norm().item(), noise.variance / draws
        assert abs(noise.signal - length**2) < 4 * length * left**0.5 + 4 * left, name


def test_the_noise_of_an_estimator_is_its_exact_variance():
    oracle = linear_gaussian(1, latent=1, dims=2, examples=1)
    with torch.no_grad():
        # A narrow q, over which log p(x|z) is nearly straight: else the tails of the estimates ask for too many draws.
        oracle.vae.encoder.head.project.bias[1] -= 2
    nodes, weights = (torch.from_numpy(part) for part in hermegauss(30))
    weights = weights / weights.sum()
    q = oracle.vae.encoder(oracle.x)
    # One latent component and one example: an estimate is a polynomial in one eps, and 30 nodes integrate it exactly.
    rewards = oracle.vae.decoder(q.from_noise(nodes[:, None, None])).log_prob(oracle.x).detach()
    mean_reward = weights @ rewards
    exact = {}
    for name, baseline in zip(list(gradients.LOOKS)[:3], (0, mean_reward, mean_reward), strict=True):
        values = [
            gradients.score_function(oracle.vae, oracle.x, eps.reshape(1, 1), reward - baseline)
            for eps, reward in zip(nodes, rewards, strict=True)
        ]
        exact[name] = torch.stack(values)
    values = [gradients.reparameterised(oracle.vae, oracle.x, eps.reshape(1, 1)) for eps in nodes]
    exact[gradients.REPARAMETERISED] = torch.stack(values)
    for name, estimates in gradients.estimators(oracle.vae, oracle.x, 8000):
        noise, mean = gradients.Noise.of(estimates), weights @ exact[name]
        variance = (weights @ (exact[name] - mean).square()).sum().item()
        assert abs(noise.variance - variance) < 4 * noise.stderr, name
        assert noise.stderr < 0.1 * variance, name


def test_the_plane_and_the_bound_give_the_exact_kl():
    oracle = linear_gaussian(2, latent=2, dims=4, examples=3)
    exact = posterior.Exact.of(oracle.vae, oracle.x)
    torch.testing.assert_close(exact.log_px, oracle.log_px(), atol=1e-4, rtol=0)
    # A normal distribution is highest at its mean; the grid has it to within a step.
    steps = (exact.ends[..., 1] - exact.ends[..., 0]) / 74
    assert ((exact.mode - oracle.posterior().mean).abs() < steps).all()
    torch.manual_seed(0)
    elbo, stderr = posterior.bound(oracle.vae, oracle.x, 2000)
    assert ((elbo - oracle.exact_elbo()).abs() < 4 * stderr).all()
    with torch.no_grad():
        planes = [posterior.Plane.of(oracle.vae, x[None], end) for x, end in zip(oracle.x, exact.ends, strict=True)]
    kls = torch.tensor([plane.kl for plane in planes], dtype=torch.float64)
    torch.testing.assert_close(kls, oracle.kl_to_posterior().detach(), atol=1e-6, rtol=0)
    for mass in posterior.MASSES:
        # Of a normal distribution in the plane, a mass m lies within the squared radius -2 log(1 - m).
        peak = oracle.q().log_prob(oracle.q().mean)[0].item()
        level = planes[0].level(planes[0].log_q, mass)
        assert level - peak == pytest.approx(math.log(1 - mass), abs=0.05)


def with_full_covariance(oracle):
    """The oracle's model with a full-covariance posterior, not trained."""
    encoder = lb.heads.Conditional(Identity((4,)), lb.heads.FullNormal((4,), (2,)).double())
    return replace(oracle, vae=lb.VAE(encoder, oracle.vae.decoder, oracle.vae.prior).eval())


def test_a_diagonal_leaves_what_it_must_and_a_full_covariance_nothing():
    oracle = linear_gaussian(5, latent=2, dims=4, examples=3)
    precision = oracle.posterior().precision_matrix[0]
    least = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert least > 0.8, "nothing to see: the posterior is all but diagonal"
    for subject, left in ((oracle, least), (with_full_covariance(oracle), 0.0)):
        torch.manual_seed(0)
        found = gap.measured(subject.vae, subject.x, posterior.Exact.of(subject.vae, subject.x), 20_000, split=True)
        torch.testing.assert_close(found.approximation, torch.full((3,), left).double(), atol=0.03, rtol=0)


def test_the_gap_of_a_full_covariance_is_all_amortisation():
    oracle = with_full_covariance(linear_gaussian(3, latent=2, dims=4, examples=3))
    torch.manual_seed(0)
    found = lb.evidence.posterior_gap(oracle.vae, oracle.x, 4000)
    q = oracle.vae.encoder(oracle.x)
    exact = kl_divergence(torch.distributions.MultivariateNormal(q.loc, scale_tril=q.scale_tril), oracle.posterior())
    assert (found.approximation < 0.05).all()
    assert (found.amortisation - exact < 4 * found.elbo_stderr + 0.02).all()
    assert (exact > 1).all(), "nothing to see: the encoder is too good"


@pytest.mark.parametrize("family", list(gap.FAMILIES))
def test_a_refitted_encoder_leaves_the_decoder_as_it_was(family):
    torch.manual_seed(0)
    data = lb.open_data("digits").binarised(lb.Binarise.DYNAMIC)
    base = lb.recipes.mlp(data, latent_dim=2, width=16).vae
    before = {name: value.clone() for name, value in base.state_dict().items()}
    vae = gap.refitted(base, data, family, epochs=1)
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    assert vae.decoder is base.decoder
    x = data.test.examples(torch.arange(50)).x
    fresh = posterior.bound(base, x, 50)[0].mean()
    assert posterior.bound(vae, x, 50)[0].mean() > fresh


@pytest.mark.parametrize("script", [posterior, gap, gradients], ids=lambda s: s.__name__)
def test_each_script_says_what_it_does(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.__name__, "--help"])
    with pytest.raises(SystemExit) as left:
        script.main()
    assert left.value.code == 0
    assert "--data" in capsys.readouterr().out
