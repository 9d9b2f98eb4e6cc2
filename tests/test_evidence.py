"""The evidence and what is made of it, against closed forms: the linear-Gaussian oracle in float64, and quadrature."""

import math
from dataclasses import replace

import pytest
import torch
from oracle import Identity, linear_gaussian
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import lowerbound as lb
from lowerbound import heads, spec
from lowerbound.data import ArraySource, Support, generator
from lowerbound.distributions import DiagonalNormal
from lowerbound.distributions import FullNormal as FullNormalDistribution
from lowerbound.errors import UsageError
from lowerbound.evidence import (
    Annealing,
    Defensive,
    Refinement,
    Start,
    annealed_evidence,
    bidirectional,
    log_evidence,
    posterior_gap,
    quadrature_evidence,
    sweep,
)
from lowerbound.evidence.checks import within
from lowerbound.evidence.gap import free
from lowerbound.evidence.streams import LogSums, Moments, pooled, stratified_stderr
from lowerbound.flows import Flowed, inverse_autoregressive, real_nvp
from lowerbound.metrics import information, rate_per_dimension
from lowerbound.model import VAE
from lowerbound.nn import MLP, ConvDown, ConvUp, Tanh
from lowerbound.priors import StandardNormal

SHORT = Annealing(temperatures=20, chains=64, leapfrog=3)


class FullNormal(heads.Head):
    """q(z|x) with one full covariance for all x: a posterior from outside the package, without `widened` or `free`."""

    def __init__(self, in_shape, event_shape):
        super().__init__(in_shape, event_shape)
        self.factor = nn.Parameter(torch.eye(event_shape[0]))

    def forward(self, features, batch):
        (loc,) = self.parameters_of(features, batch)
        factor = self.factor.tril().expand(*batch, *self.factor.shape)
        return MultivariateNormal(loc, scale_tril=factor, validate_args=False)


def with_full_q(oracle, *, off: float):
    """The oracle's model with a full-covariance q: the true posterior, moved by `off` of its deviations and widened."""
    latent, posterior = oracle.weight.shape[1], oracle.posterior()
    head = FullNormal((oracle.x.shape[1],), (latent,)).double()
    gain = posterior.covariance_matrix[0] @ oracle.weight.T / oracle.noise**2
    with torch.no_grad():
        head.factor.copy_(posterior.scale_tril[0] * (1 + off))
        head.project.weight.copy_(gain)
        head.project.bias.copy_(-gain @ oracle.bias + off * posterior.stddev[0])
    encoder = heads.Conditional(Identity((oracle.x.shape[1],)), head)
    return replace(oracle, vae=VAE(encoder, oracle.vae.decoder, oracle.vae.prior).eval())


def narrowed(oracle, factor: float):
    with torch.no_grad():
        latent = oracle.weight.shape[1]
        oracle.vae.encoder.head.project.bias[latent:] -= math.log(factor)
    return oracle


def best_diagonal_gap(oracle) -> torch.Tensor:
    """KL of the best diagonal normal to the posterior, which has the precision's diagonal as its own precision."""
    precision = oracle.posterior().precision_matrix[0]
    return 0.5 * (precision.diagonal().log().sum() - precision.logdet())


@pytest.mark.verifies(lb.evidence.annealed_evidence, lb.evidence.log_evidence, against="linear-Gaussian oracle")
@pytest.mark.parametrize(
    ("measure", "allowed"),
    [
        # Errors beyond 3 of 100. With many draws the error is nearly normal, 0.27% lie beyond, and more than 2 do by
        # chance with probability P(Bin(100, 0.0027) > 2) = 0.003.
        pytest.param(lambda o: log_evidence(o.vae, o.x, 2000), 2, id="plain"),
        pytest.param(lambda o: log_evidence(o.vae, o.x, 2000, defensive=Defensive()), 2, id="defensive"),
        # With 64 chains, whose weights are skewed, allow that 1% lie beyond: P(Bin(100, 0.01) > 4) = 0.003.
        pytest.param(lambda o: annealed_evidence(o.vae, o.x, SHORT), 4, id="annealed-from-the-prior"),
        pytest.param(
            lambda o: annealed_evidence(o.vae, o.x, replace(SHORT, temperatures=5, start=Start.POSTERIOR)),
            4,
            id="annealed-from-q",
        ),
    ],
)
def test_log_px_is_within_three_of_its_own_errors_of_the_exact_value(measure, allowed):
    errors = []
    for seed in range(100):
        torch.manual_seed(seed)
        oracle = linear_gaussian(seed, examples=1)
        measured = measure(oracle)
        errors.append(((measured.log_px - oracle.log_px()) / measured.stderr).item())
    errors = torch.tensor(errors)
    assert (errors.abs() > 3).sum() <= allowed
    assert 0.4 < errors.abs().median() < 1.1, "the stated error is not the size of the error"


def test_a_defensive_proposal_rescues_a_q_that_is_three_times_too_narrow():
    oracle = narrowed(linear_gaussian(7, exact_q=True, examples=20), 3)
    torch.manual_seed(0)
    plain = log_evidence(oracle.vae, oracle.x, 2000)
    rescued = log_evidence(oracle.vae, oracle.x, 2000, defensive=Defensive(widen=3))
    assert (plain.khat > 0.7).double().mean() > 0.8
    assert (rescued.khat < 0.7).all()
    error = (rescued.log_px - oracle.log_px()) / rescued.stderr
    assert (error.abs() < 4).all()
    assert error.square().mean() < 2.5
    assert (plain.log_px - oracle.log_px()).abs().mean() > 3 * (rescued.log_px - oracle.log_px()).abs().mean()
    # The bound is that of q all the same.
    torch.testing.assert_close(rescued.rate, plain.rate)
    assert ((rescued.elbo - oracle.exact_elbo()).abs() < 4 * rescued.elbo_stderr).all()


def test_a_posterior_that_cannot_be_widened_is_defended_by_the_prior_alone():
    oracle = with_full_q(linear_gaussian(5, examples=40), off=-0.7)
    torch.manual_seed(0)
    half = Defensive(prior_weight=0.5)
    plain, defended = (log_evidence(oracle.vae, oracle.x, 20_000, defensive=d) for d in (None, half))
    errors = [(found.log_px - oracle.log_px()) / found.stderr for found in (plain, defended)]
    assert errors[0].square().mean() > 10, "nothing to defend against: q is fine by itself"
    assert errors[1].square().mean() < 2
    assert (defended.khat < plain.khat).double().mean() > 0.8


@pytest.mark.parametrize("num_samples", [1, 2, 5, 6, 10, 1001])
@pytest.mark.parametrize("widenable", [True, False])
def test_a_defensive_proposal_spends_every_draw_and_leaves_no_component_with_a_single_one(num_samples, widenable):
    counts = Defensive().counts(num_samples, widenable=widenable)
    assert sum(counts) == num_samples
    assert counts[0] > 0
    assert num_samples == 1 or 1 not in counts


def test_stratification_states_a_smaller_error_than_a_plain_sample_of_the_same_weights_would():
    low, high = torch.full((50, 1), -1.0), torch.full((50, 1), 1.0)
    strata = [LogSums(), LogSums()]
    for stratum, log_w in zip(strata, (low, high), strict=True):
        stratum.add(log_w + 0.01 * torch.randn(50, 1, generator=generator(0)))
    assert stratified_stderr(strata) < 0.01 < pooled(strata).stderr


def test_streams_remember_what_the_whole_would_have_given():
    values = 1e6 + torch.randn(1000, 3, generator=generator(1), dtype=torch.float64)
    moments, sums = Moments(), LogSums()
    for part in values.split([1, 400, 99, 500]):
        moments.add(part)
        sums.add(part)
    torch.testing.assert_close(moments.mean, values.mean(0), atol=1e-8, rtol=0)
    torch.testing.assert_close(moments.stderr, values.std(0) / math.sqrt(1000), atol=1e-8, rtol=0)
    weights = (values - 1e6).exp()
    torch.testing.assert_close(sums.log_mean, 1e6 + weights.mean(0).log(), atol=1e-8, rtol=0)
    torch.testing.assert_close(sums.ess, weights.sum(0).square() / weights.square().sum(0))
    relative = weights.std(0) / weights.mean(0) / math.sqrt(1000)
    torch.testing.assert_close(sums.stderr, relative, atol=1e-8, rtol=0)


def test_the_bounds_own_error_is_the_size_of_its_error():
    oracle = linear_gaussian(2, examples=300)
    torch.manual_seed(0)
    evidence = log_evidence(oracle.vae, oracle.x, 500)
    # No two examples share a draw, so that these are 300 independent errors.
    error = (evidence.elbo - oracle.exact_elbo()) / evidence.elbo_stderr
    assert 0.8 < error.square().mean() < 1.3


@pytest.mark.verifies(lb.evidence.sweep, against="linear-Gaussian oracle")
def test_a_sweep_rises_from_the_elbo_to_the_evidence_and_knows_its_error():
    oracle = linear_gaussian(3, examples=60)
    torch.manual_seed(0)
    found = sweep(oracle.vae, oracle.x, ks=(1, 10, 100, 1000))
    rises, noise = found.log_px.diff(), torch.hypot(found.stderr_draws[1:], found.stderr_draws[:-1])
    assert (rises > -2 * noise).all()
    assert rises[0] > 10 * noise[0], "nothing to see: the model is too easy"
    assert (found.log_px[0] - oracle.exact_elbo().mean()).abs() < 4 * found.stderr_draws[0]
    assert (found.log_px[-1] - oracle.log_px().mean()).abs() < 4 * found.stderr_draws[-1]
    # The spread of log p(x) over examples has nothing to do with k; the noise of the draws is far below it.
    spread = oracle.log_px().std() / math.sqrt(60)
    torch.testing.assert_close(found.stderr_examples[-1], spread, rtol=0.05, atol=0)
    assert (found.stderr_draws < 0.2 * found.stderr_examples).all()
    assert found.n == 60


def test_a_sweeps_error_over_draws_is_what_repeating_it_shows():
    oracle = linear_gaussian(8, examples=4)
    torch.manual_seed(0)
    # 7 does not divide 50, and 50 leaves one group: every way of stating the error is there.
    found = [sweep(oracle.vae, oracle.x, ks=(1, 7, 20, 50), chunk=44) for _ in range(150)]
    shown = torch.stack([f.log_px for f in found]).std(0)
    stated = torch.stack([f.stderr_draws for f in found]).square().mean(0).sqrt()
    torch.testing.assert_close(stated, shown, rtol=0.3, atol=0)


def test_a_sweep_takes_batches_one_after_the_other():
    oracle = linear_gaussian(8, exact_q=True, examples=50)
    whole = sweep(oracle.vae, oracle.x, ks=(1, 4))
    parts = sweep(oracle.vae, iter(oracle.x.split([7, 40, 3])), ks=(1, 4))
    torch.testing.assert_close(whole.log_px, parts.log_px)
    torch.testing.assert_close(whole.log_px, oracle.log_px().mean().expand(2))
    assert parts.n == 50


def test_memory_grows_neither_with_the_draws_nor_with_the_examples():
    oracle = linear_gaussian(1, examples=600)
    vae, x, largest = oracle.vae, oracle.x, []
    vae.decoder.register_forward_pre_hook(lambda _, z: largest.append(z[0].numel() // 2))

    def peak(measure):
        largest.clear()
        measure()
        return max(largest)

    assert [peak(lambda k=k: log_evidence(vae, x[:10], k, chunk=200)) for k in (50, 5000)] == [200, 200]
    mixed = Defensive()
    assert [peak(lambda k=k: log_evidence(vae, x[:10], k, defensive=mixed, chunk=200)) for k in (50, 5000)] == [200] * 2
    assert [peak(lambda k=k: sweep(vae, x[:20], ks=(1, k), chunk=200)) for k in (50, 5000)] == [200, 200]
    assert [peak(lambda n=n: sweep(vae, x[:n], ks=(1, 20), chunk=200)) for n in (20, 600)] == [200, 200]
    annealing, search = Annealing(temperatures=2, chains=8), Refinement(steps=1, draws=8)
    assert peak(lambda: annealed_evidence(vae, x, annealing, chunk=200)) == 200
    assert peak(lambda: posterior_gap(vae, x, 20, refinement=search, chunk=200)) == 200
    assert peak(lambda: quadrature_evidence(vae, x[:10], points=21, chunk=200)) == 200


@pytest.mark.verifies(lb.evidence.bidirectional, against="linear-Gaussian oracle")
@pytest.mark.parametrize("start", Start)
def test_bidirectional_monte_carlo_holds_the_exact_value_and_narrows(start):
    oracle = linear_gaussian(0)
    sandwiches = []
    for temperatures in (4, 30):
        torch.manual_seed(0)
        annealing = Annealing(temperatures=temperatures, chains=4, leapfrog=4, start=start)
        sandwiches.append(bidirectional(oracle.vae, 60, annealing))
    for sandwich in sandwiches:
        exact = oracle.evidence().log_prob(sandwich.x).detach()
        for below in (exact - sandwich.lower, sandwich.upper - exact):
            assert below.mean() > -2 * below.std() / math.sqrt(60)
        assert sandwich.gap > -2 * sandwich.gap_stderr
        torch.testing.assert_close(sandwich.gap, (sandwich.upper - sandwich.lower).mean())
    coarse, fine = sandwiches
    assert coarse.gap > 2 * coarse.gap_stderr
    assert fine.gap < 0.6 * coarse.gap
    assert fine.gap + 3 * fine.gap_stderr < (1.0 if start is Start.POSTERIOR else 3.0)


def test_with_one_temperature_annealing_is_importance_weighting():
    oracle = linear_gaussian(4)
    single = Annealing(temperatures=1, chains=500, start=Start.POSTERIOR)
    torch.manual_seed(0)
    annealed = annealed_evidence(oracle.vae, oracle.x, single, chunk=10**6)
    torch.manual_seed(0)
    # The preliminary run draws first.
    oracle.vae.trace(oracle.x, Annealing().pilot_chains)
    expected = log_evidence(oracle.vae, oracle.x, 500, chunk=10**6)
    torch.testing.assert_close(annealed.log_px, expected.log_px)
    torch.testing.assert_close(annealed.stderr, expected.stderr)


def test_the_step_size_finds_the_acceptance_rate_asked_for():
    oracle = linear_gaussian(0, latent=4)
    torch.manual_seed(0)
    for wanted in (0.5, 0.8):
        annealed = annealed_evidence(oracle.vae, oracle.x, Annealing(100, chains=8, leapfrog=5, acceptance=wanted))
        assert (annealed.acceptance - wanted).abs().max() < 0.1


def test_annealing_asks_nothing_of_a_posterior_that_is_a_point():
    oracle = linear_gaussian(2)
    encoder = heads.Conditional(Identity((5,)), heads.Delta((5,), (2,))).double()
    vae = VAE(encoder, oracle.vae.decoder, oracle.vae.prior)
    torch.manual_seed(0)
    annealed = annealed_evidence(vae, oracle.x, SHORT)
    assert ((annealed.log_px - oracle.log_px()).abs() < 4 * annealed.stderr).all()
    torch.testing.assert_close(quadrature_evidence(vae, oracle.x, points=101).log_px, oracle.log_px())
    for measure in (
        lambda: log_evidence(vae, oracle.x, 10),
        lambda: sweep(vae, oracle.x),
        lambda: annealed_evidence(vae, oracle.x, Annealing(start=Start.POSTERIOR)),
        lambda: posterior_gap(vae, oracle.x),
    ):
        with pytest.raises(UsageError, match=r"no density.*annealed_evidence"):
            measure()


@pytest.mark.verifies(lb.evidence.quadrature_evidence, against="linear-Gaussian oracle")
@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("noise", [0.5, 0.01])
def test_quadrature_is_exact(latent, noise):
    """Also where the posterior is a thousandth of the prior's width, correlated, and not where q says."""
    for seed in range(5):
        oracle = linear_gaussian(seed, latent=latent, noise=noise)
        found = quadrature_evidence(oracle.vae, oracle.x, points=101)
        torch.testing.assert_close(found.log_px, oracle.log_px(), atol=1e-6, rtol=0)
        torch.testing.assert_close(found.mean, oracle.posterior().mean, atol=1e-6, rtol=0)
        assert (found.error < 1e-6).all()
        assert (found.border < 1e-6).all()


@pytest.mark.verifies(lb.evidence.quadrature_evidence, against="linear-Gaussian oracle")
@pytest.mark.parametrize("latent", [1, 2])
def test_the_posterior_on_the_grid_is_the_exact_one(latent):
    oracle = linear_gaussian(4, latent=latent)
    found = quadrature_evidence(oracle.vae, oracle.x, points=51)
    grids = [torch.cartesian_prod(*axes).reshape(-1, latent) for axes in found.axes]
    exact = oracle.posterior().log_prob(torch.stack(grids, 1)).T.reshape(found.log_posterior.shape)
    torch.testing.assert_close(found.log_posterior, exact, atol=1e-6, rtol=1e-6)


def test_quadrature_sees_both_modes_of_a_posterior():
    """p(x|z) = N(x; |z|...): a decoder that is even in z, so that the posterior has two modes and its mean is 0."""
    torch.manual_seed(0)
    network = MLP((1,), (8,), Tanh())
    decoder = heads.Conditional(network, heads.Normal((8,), (3,), scale=0.1)).double()
    with torch.no_grad():
        # Pairs of units tanh(a z + b) and tanh(-a z + b), summed with the same weight.
        network.layers[0].weight[4:] = -network.layers[0].weight[:4]
        network.layers[0].bias[4:] = network.layers[0].bias[:4]
        decoder.head.project.weight[:, 4:] = decoder.head.project.weight[:, :4]
    encoder = heads.Conditional(Identity((3,)), heads.DiagonalNormal((3,), (1,))).double()
    vae = VAE(encoder, decoder, StandardNormal(1).double())
    x = decoder(torch.tensor([[1.5], [0.8]], dtype=torch.float64)).mean.detach()
    found = quadrature_evidence(vae, x)
    torch.testing.assert_close(found.mean, torch.zeros(2, 1, dtype=torch.float64), atol=1e-6, rtol=0)
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None, None]
    joint = vae.prior().log_prob(grid) + vae.decoder(grid.expand(-1, 2, 1)).log_prob(x)
    torch.testing.assert_close(found.log_px, (joint.logsumexp(0) + math.log(24 / 20_000)).detach(), atol=1e-6, rtol=0)


def test_with_the_exact_posterior_there_is_no_gap():
    oracle = linear_gaussian(0, exact_q=True)
    torch.manual_seed(0)
    gap = posterior_gap(oracle.vae, oracle.x, 1000, refinement=Refinement(steps=100, draws=200))
    for part in (gap.approximation, gap.amortisation, gap.total):
        assert part.abs().max() < 1e-3
    torch.testing.assert_close(gap.log_px, oracle.log_px(), atol=1e-3, rtol=0)


@pytest.mark.verifies(lb.evidence.posterior_gap, against="linear-Gaussian oracle")
@pytest.mark.parametrize("seed", [0, 4, 5])
def test_the_gaps_parts_are_the_closed_forms(seed):
    """A diagonal family and a correlated posterior: the approximation gap is the best diagonal normal's KL."""
    oracle = linear_gaussian(seed, examples=30)
    torch.manual_seed(0)
    gap = posterior_gap(oracle.vae, oracle.x, 4000, refinement=Refinement(draws=100), chunk=3000)
    best = best_diagonal_gap(oracle)
    assert best > 0.002
    assert (gap.approximation.mean() - best).abs() < 0.01
    amortisation = oracle.kl_to_posterior() - best
    assert (gap.amortisation.mean() - amortisation.mean()).abs() < 0.01
    assert amortisation.mean() > 0.05
    # Each by itself, within its own error and the little that the optimiser leaves.
    for found, stderr, exact in (
        (gap.approximation, gap.approximation_stderr, best),
        (gap.amortisation, gap.amortisation_stderr, amortisation),
        (gap.total, gap.total_stderr, oracle.kl_to_posterior()),
    ):
        assert ((found - exact).abs() < 4 * stderr + 0.005).all()
    torch.testing.assert_close(gap.approximation + gap.amortisation, gap.total)
    torch.testing.assert_close(gap.log_px - gap.elbo, gap.total)


def test_the_best_of_the_family_is_never_worse_than_the_encoders_q():
    """A search that is sure to fail: one draw and giant steps."""
    oracle = linear_gaussian(6, exact_q=True, examples=20)
    torch.manual_seed(0)
    gap = posterior_gap(oracle.vae, oracle.x, 500, refinement=Refinement(steps=3, draws=1, lr=5.0))
    assert (gap.amortisation == 0).all()
    assert (gap.amortisation_stderr == 0).all()


@pytest.mark.verifies(lb.evidence.posterior_gap, against="linear-Gaussian oracle")
def test_a_full_covariance_family_has_no_approximation_gap():
    oracle = with_full_q(linear_gaussian(5, examples=10), off=0.4)
    torch.manual_seed(0)
    gap = posterior_gap(oracle.vae, oracle.x, 2000, refinement=Refinement(draws=100))
    assert (gap.approximation.abs() < 4 * gap.approximation_stderr + 0.01).all()
    q, posterior = oracle.vae.encoder(oracle.x), oracle.posterior()
    assert ((gap.total - kl_divergence(q, posterior)).abs() < 4 * gap.total_stderr + 0.01).all()
    assert (gap.amortisation > 0.1).all()


@pytest.mark.parametrize("kind", ["diagonal", "full", "torch", "flowed", "flowed-with-context"])
def test_a_freed_posterior_begins_as_itself_and_each_parameter_moves_it(kind):
    torch.manual_seed(0)
    loc, log_scale = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    tril = torch.randn(4, 3, 3).double().tril(-1) + torch.diag_embed(log_scale.exp())
    q = {
        "diagonal": lambda: DiagonalNormal(loc, log_scale),
        "full": lambda: FullNormalDistribution(loc, tril),
        "torch": lambda: MultivariateNormal(loc, scale_tril=tril),
        "flowed": lambda: Flowed(FullNormalDistribution(loc, tril), real_nvp(3).double().eval()),
        "flowed-with-context": lambda: Flowed(
            DiagonalNormal(loc, log_scale),
            scrambled(inverse_autoregressive(3, context_dim=2)),
            torch.randn(4, 2).double(),
        ),
    }[kind]()
    start, rebuild = free(q)
    z = loc + torch.randn(5, 4, 3).double()
    parameters = [parameter.requires_grad_() for parameter in start]
    again = rebuild(parameters).log_prob(z)
    torch.testing.assert_close(again, q.log_prob(z))
    for gradient in torch.autograd.grad(again[0].sum(), parameters):
        assert gradient.shape[0] == 4
        assert (gradient.flatten(1) != 0).any(1).all(), "a parameter of each example"


def scrambled(flow):
    """Away from every start at zero."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow.double().eval()


def test_log_px_from_elsewhere_moves_the_approximation_gap_alone():
    oracle = linear_gaussian(1, latent=4)
    torch.manual_seed(0)
    gap = posterior_gap(oracle.vae, oracle.x, 500, refinement=Refinement(steps=20))
    exact = gap.with_log_px(oracle.log_px(), torch.zeros(7, dtype=torch.float64))
    assert torch.equal(exact.amortisation, gap.amortisation)
    torch.testing.assert_close(exact.approximation + exact.amortisation, exact.total)
    assert ((exact.total - oracle.kl_to_posterior()).abs() < 4 * exact.total_stderr).all()
    torch.testing.assert_close(exact.total_stderr, gap.elbo_stderr)


def test_measuring_leaves_the_model_as_it_was():
    oracle = linear_gaussian(1)
    before = {name: value.clone() for name, value in oracle.vae.state_dict().items()}
    posterior_gap(oracle.vae, oracle.x, 10, refinement=Refinement(steps=2))
    annealed_evidence(oracle.vae, oracle.x, Annealing(temperatures=3))
    assert all(torch.equal(before[name], value) for name, value in oracle.vae.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in oracle.vae.parameters())


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_pictures_in_single_precision_stay_finite(scale):
    torch.manual_seed(0)
    down, up = ConvDown((1, 8, 8), (4, 6), 8), ConvUp((3,), (8, 8), (4, 6), 8)
    decoder = heads.Conditional(up, heads.Bernoulli(up.out_shape, (1, 8, 8)))
    vae = VAE(heads.Conditional(down, heads.DiagonalNormal((8,), (3,))), decoder, StandardNormal(3)).eval()
    with torch.no_grad():
        vae.encoder.head.project.weight.mul_(scale)
        vae.decoder.head.project.weight.mul_(scale)
    x = (torch.rand(5, 1, 8, 8, generator=generator(0)) < 0.4).float()
    annealing = Annealing(temperatures=5, chains=3, leapfrog=2)
    for start in Start:
        annealed = annealed_evidence(vae, x, replace(annealing, start=start))
        for value in (annealed.log_px, annealed.stderr, annealed.ess, annealed.acceptance):
            assert value.shape == (5,)
            assert value.isfinite().all()
    sandwich = bidirectional(vae, 4, annealing)
    assert sandwich.x.shape == (4, 1, 8, 8)
    assert sandwich.upper.isfinite().all()
    gap = posterior_gap(vae, x, 30, refinement=Refinement(steps=3, draws=4))
    for name, value in vars(gap).items():
        assert value.shape == (5,)
        assert value.isfinite().all(), name
    evidence = log_evidence(vae, x, 100, defensive=Defensive())
    assert evidence.log_px.isfinite().all()
    assert evidence.stderr.isfinite().all()


def gaussian_source(seed: int, count: int):
    """A source of draws from the oracle's own p(x), its model, and I_q and KL(q(z)||p(z)) in closed form."""
    oracle = linear_gaussian(seed, examples=count)
    gain, latent = oracle.vae.encoder.head.project.weight[:2].detach(), 2
    noise = torch.diag(oracle.vae.encoder(oracle.x).variance[0].detach())
    aggregate = gain @ oracle.evidence().covariance_matrix.detach() @ gain.T + noise
    information = 0.5 * (aggregate.logdet() - noise.logdet())
    offset = gain @ oracle.bias.detach() + oracle.vae.encoder.head.project.bias[:2].detach()
    prior = MultivariateNormal(torch.zeros(latent).double(), torch.eye(latent).double())
    marginal = kl_divergence(MultivariateNormal(offset, aggregate), prior)
    source = ArraySource(oracle.x.float(), support=Support.REAL)
    return oracle.vae.float(), source, information.item(), marginal.item()


@pytest.mark.verifies(lb.metrics.information, against="linear-Gaussian oracle")
def test_the_rate_splits_into_information_and_marginal_kl():
    for seed in (0, 1):
        vae, source, mutual, marginal = gaussian_source(seed, 6000)
        torch.manual_seed(0)
        found = information(vae, source, outer=3000)
        # 6,000 examples stand for the whole distribution: what is left of the bias is below 0.02 for 2 components.
        assert abs(found.mutual - mutual) < 3 * found.mutual_stderr + 0.02
        assert abs(found.marginal_kl - marginal) < 3 * found.marginal_kl_stderr + 0.02
        assert found.mutual_stderr < 0.05
        assert found.mutual + found.marginal_kl == pytest.approx(found.rate)
        assert mutual > 1
        assert not found.saturated


def test_the_information_is_at_most_the_logarithm_of_the_number_of_examples():
    vae, source, mutual, _ = gaussian_source(1, 12)
    found = information(vae, source, draws=50)
    assert found.mutual < min(mutual, math.log(12)) + 3 * found.mutual_stderr
    with torch.no_grad():
        vae.encoder.head.project.bias[2:] -= 6
    sharp = information(vae, source, draws=50)
    assert sharp.mutual == pytest.approx(math.log(12), abs=1e-3)
    assert sharp.saturated


def test_the_information_does_not_depend_on_how_the_matrix_is_cut():
    vae, source, _, _ = gaussian_source(2, 700)
    found = []
    for chunk in (1, 10**7):
        torch.manual_seed(0)
        found.append(information(vae, source, outer=100, draws=2, chunk=chunk))
    assert found[0].mutual == pytest.approx(found[1].mutual, abs=1e-5)
    assert (found[0].n, found[0].outer) == (700, 100)


@pytest.mark.verifies(lb.metrics.rate_per_dimension, against="torch")
def test_the_rates_of_the_components_add_up_to_the_rate():
    oracle = linear_gaussian(0, latent=3)
    q, p = oracle.vae.encoder(oracle.x), oracle.vae.prior()
    each = rate_per_dimension(q, p)
    assert each.shape == (7, 3)
    torch.testing.assert_close(each.sum(1), kl_divergence(q, p))
    with pytest.raises(UsageError, match=r"DiagonalNormal.*MultivariateNormal"):
        rate_per_dimension(oracle.posterior(), p)


@pytest.mark.parametrize("part", [Annealing(temperatures=7), Defensive(widen=3.0), Refinement(steps=2)])
def test_settings_are_built_again_from_their_description(part):
    assert spec.build(spec.describe(part)) == part


def test_what_cannot_be_measured_is_refused_with_what_can():
    oracle = linear_gaussian(0, latent=3)
    vae, x, none = oracle.vae, oracle.x, oracle.x[:0]
    foreign = with_full_q(oracle, off=0.1).vae
    foreign.encoder.head.forward = lambda features, _: torch.distributions.LowRankMultivariateNormal(
        features[:, :3], torch.zeros(len(features), 3, 1).double(), torch.ones(len(features), 3).double()
    )
    blind = linear_gaussian(0).vae
    nn.init.zeros_(blind.encoder.head.project.weight)
    nn.init.zeros_(blind.encoder.head.project.bias)
    refused = [
        (lambda: log_evidence(vae, x, 0), r"at least 1 draw.*num_samples=0.*1000"),
        (lambda: posterior_gap(vae, x, 1), r"at least 2 draws.*num_samples=1.*1000"),
        (lambda: sweep(vae, x, ks=(0, 10)), r"at least 1 each.*\(0, 10\)"),
        (lambda: sweep(vae, x, ks=()), r"at least 1 each"),
        (lambda: log_evidence(vae, x, 10, ks=(1, 20)), r"1 to 10 draws.*\(1, 20\)"),
        (lambda: log_evidence(vae, x, 10, ks=(0,)), r"1 to 10 draws"),
        (lambda: log_evidence(vae, x, 10, ks=(1,), defensive=Defensive()), r"groups of them that are alike"),
        (lambda: sweep(vae, iter(())), r"at least one example"),
        (lambda: sweep(vae, none), r"at least one example"),
        (lambda: log_evidence(vae, none), r"at least one example"),
        (lambda: annealed_evidence(vae, none), r"at least one example"),
        (lambda: quadrature_evidence(vae, none), r"at least one example"),
        (lambda: posterior_gap(vae, none), r"at least one example"),
        (lambda: bidirectional(vae, 0), r"at least 1 simulated example.*n=0"),
        (lambda: quadrature_evidence(vae, x), r"this model has 3.*log_evidence.*annealed_evidence"),
        (lambda: quadrature_evidence(blind, x, points=10), r"odd number of points.*points=10"),
        (lambda: quadrature_evidence(blind, x, reach=1e-6), r"border of the grid.*larger reach"),
        (lambda: posterior_gap(foreign, x), r"LowRank.*method free\(\)"),
        (lambda: Defensive(widen=1.0), r"factor above 1.*widen=1.0"),
        (lambda: Defensive(widened_weight=0.6, prior_weight=0.4), r"leave some for q"),
        (lambda: Annealing(temperatures=0), r"temperatures=0"),
        (lambda: Refinement(draws=0), r"draws=0"),
        (lambda: information(vae, ArraySource(x[:1].float(), support=Support.REAL)), r"at least 2 examples"),
    ]
    for measure, message in refused:
        with pytest.raises(UsageError, match=message):
            measure()


def of_pixels(*shape: int) -> VAE:
    down, up = MLP(shape, (4,)), MLP((2,), (4,))
    encoder = heads.Conditional(down, heads.DiagonalNormal((4,), (2,)))
    return VAE(encoder, heads.Conditional(up, heads.Bernoulli((4,), shape)), StandardNormal(2)).eval()


def test_large_pictures_go_through_the_decoder_fewer_at_a_time():
    assert within(2000, of_pixels(1, 28, 28)) == 2000
    vae, seen = of_pixels(3, 256, 256), []
    vae.decoder.network.register_forward_hook(lambda network, given, features: seen.append(len(features)))
    found = log_evidence(vae, torch.zeros(2, 3, 256, 256), 50)
    assert sum(seen) == 100
    # Each of a likelihood's arrays is then 8 MiB at most.
    assert max(seen) * 3 * 256 * 256 <= 2**21
    assert found.log_px.isfinite().all()
