"""Densities: they integrate to one, their samples follow them, and nothing leaves the range of its arithmetic."""

import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Independent, Normal, kl_divergence

import lowerbound as lb
from lowerbound.distributions import Bernoulli, ContinuousBernoulli, Delta, DiagonalNormal, Mixture, analytic_kl
from lowerbound.heads.base import bounded

LOGITS = torch.tensor([-300.0, -20.0, -1.0, -0.05, -1e-6, 0.0, 1e-4, 0.2, 3.0, 50.0], dtype=torch.float64)


@pytest.mark.verifies(lb.heads.ContinuousBernoulli, against="quadrature")
def test_the_continuous_bernoulli_integrates_to_one():
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    density = ContinuousBernoulli(LOGITS, event_ndim=0).log_prob(x).exp()
    torch.testing.assert_close(torch.trapezoid(density, x, dim=0), torch.ones(len(LOGITS)).double(), atol=1e-5, rtol=0)


def test_the_continuous_bernoullis_mean_is_that_of_its_density_and_of_its_samples():
    p = ContinuousBernoulli(LOGITS, event_ndim=0)
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    by_density = torch.trapezoid(x * p.log_prob(x).exp(), x, dim=0)
    torch.testing.assert_close(p.mean, by_density, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    draws = p.rsample((100_000,))
    assert ((draws >= 0) & (draws <= 1)).all()
    error = (draws.mean(0) - p.mean) / (draws.std(0) / math.sqrt(len(draws)) + 1e-12)
    assert (error.abs() < 4.5).all()


@pytest.mark.verifies(lb.heads.ContinuousBernoulli, against="torch")
def test_the_continuous_bernoulli_agrees_with_torchs_where_that_one_does_not_clamp():
    logits = torch.tensor([-4.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    x = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    mine, theirs = ContinuousBernoulli(logits, 0), TorchContinuousBernoulli(logits=logits)
    torch.testing.assert_close(mine.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(mine.mean, theirs.mean)


def test_the_log_normaliser_has_no_seam_where_the_series_takes_over():
    logits = torch.linspace(0.0999, 0.1001, 21, dtype=torch.float64)
    values = ContinuousBernoulli.log_normaliser(logits)
    exact = torch.log(logits / torch.tanh(logits / 2))
    torch.testing.assert_close(values, exact, atol=1e-8, rtol=0)


@pytest.mark.verifies(lb.heads.Bernoulli, against="enumeration")
def test_bernoulli_probabilities_sum_to_one_and_equal_torchs():
    logits = torch.randn(4, 3, dtype=torch.float64)
    every_x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)[:, None]
    log_p = Bernoulli(logits).log_prob(every_x)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(log_p, Independent(TorchBernoulli(logits=logits), 1).log_prob(every_x))


def test_bernoulli_samples_follow_the_mean():
    torch.manual_seed(0)
    p = Bernoulli(torch.tensor([-2.0, 0.0, 4.0]))
    draws = p.sample((50_000,))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws.mean(0) - p.mean).abs().max() < 0.01


@pytest.mark.verifies(lb.heads.DiagonalNormal, against="torch")
def test_the_diagonal_normal_is_torchs_independent_normal():
    loc, log_scale = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    mine, theirs = DiagonalNormal(loc, log_scale), Independent(Normal(loc, log_scale.exp()), 1)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(mine.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(mine.entropy(), theirs.entropy())
    other = DiagonalNormal(loc.flip(0), log_scale.flip(1))
    torch.testing.assert_close(
        analytic_kl(mine, other), kl_divergence(theirs, Independent(Normal(other.loc, other.stddev), 1))
    )
    assert mine.expand((2, 3)).log_prob(x[:2]).shape == (2, 3)


@pytest.mark.parametrize("draws", [1, 3])
def test_gradients_of_draws_and_of_the_kl_are_those_of_the_textbooks_forms(draws):
    torch.manual_seed(0)
    loc, log_scale, p_loc, p_log_scale = (torch.randn(5, 4).double().requires_grad_() for _ in range(4))
    eps = torch.randn(draws, 5, 4).double()
    q, p = DiagonalNormal(loc, log_scale), DiagonalNormal(p_loc, p_log_scale)
    mine = (q.from_noise(eps).sin().sum((0, 2)) + analytic_kl(q, p)).sum()
    drawn = loc + log_scale.exp() * eps
    closed = kl_divergence(Normal(loc, log_scale.exp()), Normal(p_loc, p_log_scale.exp())).sum()
    parameters = (loc, log_scale, p_loc, p_log_scale)
    theirs = torch.autograd.grad(drawn.sin().sum() + closed, parameters)
    assert q.from_noise(eps).shape == (draws, 5, 4)
    for a, b in zip(torch.autograd.grad(mine, parameters), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_log_scales_are_cut_with_the_gradient_of_what_is_inside():
    raw = torch.tensor([-30.0, -9.9, 0.0, 9.9, 30.0], requires_grad=True)
    cut = bounded(raw)
    cut.sum().backward()
    assert torch.equal(cut, raw.clamp(-10, 10))
    assert raw.grad.tolist() == [0, 1, 1, 1, 0]
    assert bounded(torch.tensor(math.nan)).isnan()


def test_the_kl_of_a_distribution_to_itself_is_zero_and_to_any_other_positive():
    q = DiagonalNormal(torch.randn(100, 4), torch.randn(100, 4))
    p = DiagonalNormal(torch.randn(100, 4), torch.randn(100, 4))
    torch.testing.assert_close(analytic_kl(q, q), torch.zeros(100))
    assert (analytic_kl(q, p) > 0).all()


def test_rsample_is_differentiable_and_has_the_moments_it_should():
    loc = torch.tensor([1.0, -2.0], requires_grad=True)
    log_scale = torch.tensor([0.0, 1.0], requires_grad=True)
    torch.manual_seed(0)
    z = DiagonalNormal(loc, log_scale).rsample((200_000,))
    torch.testing.assert_close(z.mean(0), loc, atol=0.03, rtol=0)
    torch.testing.assert_close(z.std(0), log_scale.exp(), atol=0.03, rtol=0)
    by_loc, by_scale = torch.autograd.grad(z.square().mean(0).sum(), [loc, log_scale])
    # E[z²] = loc² + scale², so its derivatives are 2 loc and 2 scale².
    torch.testing.assert_close(by_loc, 2 * loc, atol=0.1, rtol=0)
    torch.testing.assert_close(by_scale, 2 * (2 * log_scale).exp(), atol=0.2, rtol=0)


@pytest.mark.verifies(lb.heads.Delta, against="definition")
def test_a_point_has_no_density_and_says_so():
    point = Delta(torch.ones(3, 2))
    assert torch.equal(point.rsample((4,)), torch.ones(4, 3, 2))
    assert analytic_kl(point, DiagonalNormal(torch.zeros(2), torch.zeros(2))) is None
    with pytest.raises(NotImplementedError, match="no density"):
        point.log_prob(torch.zeros(3, 2))


@pytest.mark.parametrize("family", [Bernoulli, ContinuousBernoulli])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite_with_their_gradients(family, dtype):
    logits = torch.tensor([-1e4, -100.0, -1e-8, 0.0, 1e-8, 100.0, 1e4], dtype=dtype, requires_grad=True)
    for x in (0.0, 0.5, 1.0):
        log_p = family(logits, 0).log_prob(torch.tensor(x, dtype=dtype))
        (gradient,) = torch.autograd.grad(log_p.sum(), [logits])
        assert torch.isfinite(log_p).all()
        assert torch.isfinite(gradient).all()


def test_a_mixtures_density_takes_memory_that_does_not_grow_with_the_values(monkeypatch):
    torch.manual_seed(0)
    components = DiagonalNormal(torch.randn(500, 32), torch.randn(500, 32))
    mixture, z, seen = Mixture(torch.randn(500), components), torch.randn(10, 200, 32), []
    whole = mixture.log_prob(z[:2, :3])
    density = components.log_prob
    monkeypatch.setattr(components, "log_prob", lambda value: seen.append(value.numel() * 500) or density(value))
    with torch.no_grad():
        found = mixture.log_prob(z)
        assert mixture.log_prob(z[0, 0]).shape == ()
        assert mixture.log_prob(z[:0]).shape == (0, 200)
    assert found.shape == (10, 200)
    assert torch.equal(found[:2, :3], whole)
    assert max(seen) <= 1 << 18
