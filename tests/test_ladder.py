"""The ladder VAE: against a VAE where it has one layer, closed forms where all is linear, and a grid elsewhere."""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call, succeed
from oracle import Identity
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import lowerbound as lb
from lowerbound import heads, metrics, nn, spec, tasks
from lowerbound.checkpoint import build_model
from lowerbound.data import generator
from lowerbound.errors import UsageError
from lowerbound.evidence import (
    Annealing,
    Defensive,
    Refinement,
    annealed_evidence,
    log_evidence,
    posterior_gap,
    quadrature_evidence,
    sweep,
)
from lowerbound.heads import Bernoulli, Conditional, DiagonalNormal, Normal
from lowerbound.model import VAE, LadderHead, LadderPrior, LadderVAE, TopDownPosterior, mlp_ladder
from lowerbound.objectives import (
    DIPVAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    WAE,
    BetaTC,
    Capacity,
    DoublyReparameterised,
    FreeBits,
    InfoVAE,
    Reparameterised,
    StickingTheLanding,
)
from lowerbound.priors import StandardNormal
from lowerbound.training import Precision, TrainState, autocast

NOISE = 0.7
DIMS = 4
PLAIN, STL, DREG = Reparameterised(), StickingTheLanding(), DoublyReparameterised()
OBJECTIVES = {
    "elbo": ELBO(),
    "elbo-sampled": ELBO(closed_form=False, num_samples=3),
    "iwae": IWAE(3),
    "iwae-stl": IWAE(1, STL),
    "iwae-dreg": IWAE(3, DREG),
    "piwae-dreg": PIWAE(2, 2, DREG),
    "free-bits": FreeBits(0.01),
    "free-bits-layers": FreeBits(0.01, groups=(3, 2, 2), num_samples=2),
    "capacity": Capacity(10, 5),
    "info": InfoVAE(),
    "wae": WAE(),
}


def set_affine(head, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        head.project.weight.copy_(weight)
        head.project.bias.copy_(bias)


@dataclass(frozen=True)
class LinearLadder:
    """A ladder in which everything is linear with normal noise, and its exact distributions.

    They are worked out from the model's own weights, differentiably. Scales hang on nothing but their biases.
    """

    vae: LadderVAE
    x: Tensor

    def _maps(self):
        """For each layer from the top: where it is, and p's and q's affine maps of what they are shown."""
        prior, head = self.vae.prior, self.vae.encoder.head
        for index in reversed(range(len(prior.latent_dims))):
            size, part = prior.latent_dims[index], prior.slices[index]
            above = sum(prior.latent_dims[index + 1 :])
            q = head.posteriors[index].head.project
            if above:
                p = prior.conditionals[index].head.project
                slope, offset, log_scale = p.weight[:size], p.bias[:size], p.bias[size:]
            else:
                slope = torch.zeros(size, 0, dtype=torch.float64)
                offset = log_scale = torch.zeros(size, dtype=torch.float64)
            yield part, above, (slope, offset, log_scale), (q.weight[:size], q.bias[:size], q.bias[size:])

    def _joint(self, of_q: bool) -> MultivariateNormal:
        total = self.vae.latent_shape[0]
        loc = torch.zeros(len(self.x), 0, dtype=torch.float64)
        covariance = torch.zeros(0, 0, dtype=torch.float64)
        for _, above, (slope, offset, log_scale), (weight, bias, growth) in self._maps():
            mean = loc @ slope.T + offset
            if of_q:
                scale = log_scale.exp()
                mean = mean + scale * (loc @ weight[:, :above].T + self.x @ weight[:, above:].T + bias)
                slope = slope + scale[:, None] * weight[:, :above]
                log_scale = log_scale + growth
            cross = slope @ covariance
            own = cross @ slope.T + torch.diag((2 * log_scale).exp())
            covariance = torch.cat([torch.cat([own, cross], 1), torch.cat([cross.T, covariance], 1)])
            loc = torch.cat([mean, loc], 1)
        assert loc.shape[1] == total
        return MultivariateNormal(loc, covariance)

    def p(self) -> MultivariateNormal:
        return self._joint(of_q=False)

    def q(self) -> MultivariateNormal:
        return self._joint(of_q=True)

    def _decoder(self) -> tuple[Tensor, Tensor]:
        project = self.vae.decoder.head.project
        return project.weight, project.bias

    def log_px(self) -> Tensor:
        weight, bias = self._decoder()
        p = self.p()
        covariance = weight @ p.covariance_matrix[0] @ weight.T + NOISE**2 * torch.eye(DIMS, dtype=torch.float64)
        return MultivariateNormal(p.loc @ weight.T + bias, covariance).log_prob(self.x)

    def posterior(self) -> MultivariateNormal:
        weight, bias = self._decoder()
        p = self.p()
        covariance = torch.linalg.inv(torch.linalg.inv(p.covariance_matrix[0]) + weight.T @ weight / NOISE**2)
        loc = p.loc + (self.x - p.loc @ weight.T - bias) @ weight @ covariance / NOISE**2
        return MultivariateNormal(loc, covariance.expand(len(loc), *covariance.shape))

    def exact_elbo(self) -> Tensor:
        return self.log_px() - kl_divergence(self.q(), self.posterior())


def linear_ladder(seed: int, latent_dims: tuple[int, ...], *, exact_q: bool = False, examples: int = 5) -> LinearLadder:
    """A random linear ladder; its q is the true posterior (layers of one component) or somewhere near it."""
    draws = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    total = sum(latent_dims)
    aboves = [sum(latent_dims[layer + 1 :]) for layer in range(len(latent_dims))]
    prior = LadderPrior(
        StandardNormal(latent_dims[-1]),
        tuple(
            Conditional(Identity((above,)), DiagonalNormal((above,), (size,)))
            for size, above in zip(latent_dims[:-1], aboves[:-1], strict=True)
        ),
    )
    bottom_up = nn.BottomUp(tuple(Identity((DIMS,)) for _ in latent_dims))
    head = LadderHead(
        bottom_up.feature_dims,
        tuple(
            Conditional(Identity((above + DIMS,)), DiagonalNormal((above + DIMS,), (size,)))
            for size, above in zip(latent_dims, aboves, strict=True)
        ),
    )
    decoder = Conditional(Identity((total,)), Normal((total,), (DIMS,), scale=NOISE))
    vae = LadderVAE(Conditional(bottom_up, head), decoder, prior).double().eval()
    decoder.head.log_scale.fill_(math.log(NOISE))
    set_affine(decoder.head, normal(DIMS, total), normal(DIMS))
    for conditional, size, above in zip(prior.conditionals, latent_dims[:-1], aboves[:-1], strict=True):
        slope = torch.cat([normal(size, above), torch.zeros(size, above)])
        set_affine(conditional.head, slope, torch.cat([normal(size), 0.3 * normal(size) - 0.5]))
    ladder = LinearLadder(vae, torch.zeros(examples, DIMS, dtype=torch.float64))
    z = ladder.p().sample()
    x = vae.decoder(z).sample((1,))[0]
    ladder = LinearLadder(vae, x)
    zero, units = (LinearLadder(vae, inputs.double()).posterior() for inputs in (torch.zeros(1, DIMS), torch.eye(DIMS)))
    gain, covariance = (units.loc - zero.loc).T, zero.covariance_matrix[0]  # the posterior's mean is affine in x
    for part, above, (slope, offset, log_scale), _ in ladder._maps():
        own, rest = part, slice(total - above, total)
        size = part.stop - part.start
        lean = covariance[own, rest] @ torch.linalg.inv(covariance[rest, rest])
        spread = (covariance[own, own] - lean @ covariance[rest, own]).diagonal().log() / 2
        by_x = gain[own] - lean @ gain[rest]
        constant = zero.loc[0, own] - lean @ zero.loc[0, rest]
        if not exact_q:
            by_x, lean = by_x + 0.03 * normal(size, DIMS), lean + 0.03 * normal(size, above)
            spread = spread + 0.2
        scale = log_scale.exp()
        weight = torch.cat([lean - slope, by_x], 1) / scale[:, None]
        with torch.no_grad():
            index = prior.slices.index(part)
            bias = torch.cat([(constant - offset) / scale, spread - log_scale])
            set_affine(head.posteriors[index].head, torch.cat([weight, torch.zeros_like(weight)]), bias)
    return ladder


def with_exact_noise(monkeypatch, total: int) -> int:
    """Has q draw 2 D points whose plain average is exact for cubic functions of the noise; returns how many."""
    nodes = math.sqrt(total) * torch.cat([torch.eye(total), -torch.eye(total)]).double()

    def noise(q, sample_shape):
        assert sample_shape == (2 * total,)
        return nodes[:, None].expand(-1, *q.batch_shape, -1)

    monkeypatch.setattr(TopDownPosterior, "noise", noise)
    return 2 * total


def nonlinear(latent_dims: tuple[int, ...] = (1, 1), seed: int = 0, likelihood=Bernoulli) -> tuple[LadderVAE, Tensor]:
    """A ladder of MLPs in float64 whose weights are large enough for every layer to matter, and examples."""
    torch.manual_seed(seed)
    vae = mlp_ladder((6,), latent_dims, likelihood, width=16, state_dim=8, activation=nn.Tanh()).double().eval()
    with torch.no_grad():
        for conditional in (*vae.prior.conditionals, *vae.encoder.head.posteriors):
            conditional.head.project.weight.mul_(8)
    return vae, (torch.rand(4, 6, generator=generator(1)) < 0.5).double()


def small(latent_dims: tuple[int, ...] = (3, 2, 2), likelihood=Bernoulli) -> tuple[LadderVAE, Tensor]:
    torch.manual_seed(0)
    return mlp_ladder((1, 3, 4), latent_dims, likelihood, width=12, state_dim=8), torch.rand(
        5, 1, 3, 4, generator=generator(0)
    ).round()


# One layer: an ordinary VAE.


@pytest.fixture
def twins() -> tuple[VAE, LadderVAE, Tensor]:
    """A VAE, and a ladder of one layer with the same weights."""
    torch.manual_seed(0)
    down, up = nn.MLP((6,), (8,)), nn.MLP((2,), (8,))
    posterior = DiagonalNormal((8,), (2,))
    decoder = Conditional(up, Bernoulli((8,), (6,)))
    plain = VAE(Conditional(down, posterior), decoder, StandardNormal(2))
    head = LadderHead((8,), (Conditional(Identity((8,)), posterior),))
    ladder = LadderVAE(Conditional(nn.BottomUp((down,)), head), decoder, LadderPrior(StandardNormal(2)))
    return plain, ladder, torch.rand(5, 6, generator=generator(0)).round()


@pytest.mark.verifies(lb.model.LadderVAE, against="definition")
@pytest.mark.parametrize("num_samples", [1, 4])
def test_a_ladder_of_one_layer_is_a_vae(twins, num_samples):
    traces = []
    for vae in twins[:2]:
        torch.manual_seed(1)
        traces.append(vae.trace(twins[2], num_samples))
    plain, ladder = traces
    for name in ("z", "log_px_z", "log_pz", "log_qz", "kl", "kl_each", "kl_draws"):
        assert torch.equal(getattr(plain, name), getattr(ladder, name)), name
    assert torch.equal(ladder.rate_per_layer, ladder.kl[:, None])
    for name in ("mean", "stddev"):
        assert torch.equal(getattr(plain.q, name), getattr(ladder.q, name))


@pytest.mark.parametrize("objective", [ELBO(), IWAE(5, DREG), FreeBits(0.1), PIWAE(2, 2)], ids=repr)
def test_a_ladder_of_one_layer_is_trained_as_a_vae_is(twins, objective):
    found = []
    for vae in twins[:2]:
        torch.manual_seed(1)
        vae.zero_grad()
        terms = objective(vae, twins[2])
        terms.loss.mean().backward()
        found.append((terms.loss, [p.grad.clone() for p in vae.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


# All linear: closed forms.

SHAPES = [(1, 1), (1, 1, 1), (2, 1, 3), (3, 2)]


@pytest.mark.verifies(lb.model.LadderVAE, lb.model.LadderHead, lb.model.LadderPrior, against="linear-Gaussian oracle")
@pytest.mark.parametrize("latent_dims", SHAPES)
def test_every_draws_weight_is_the_evidence_times_the_posterior_over_q(latent_dims):
    """Bayes' theorem for each z by itself, and log p and log q by their own closed forms."""
    ladder = linear_ladder(1, latent_dims)
    trace = ladder.vae.trace(ladder.x, num_samples=11)
    torch.testing.assert_close(trace.log_pz, ladder.p().log_prob(trace.z), atol=1e-9, rtol=0)
    torch.testing.assert_close(trace.log_qz, ladder.q().log_prob(trace.z), atol=1e-9, rtol=0)
    expected = ladder.log_px() + ladder.posterior().log_prob(trace.z) - ladder.q().log_prob(trace.z)
    torch.testing.assert_close(trace.log_w, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("latent_dims", [(1, 1), (1, 1, 1), (1, 1, 1, 1)])
def test_a_ladder_can_be_the_true_posterior_and_the_bound_is_then_the_evidence(latent_dims, monkeypatch):
    ladder = linear_ladder(2, latent_dims, exact_q=True)
    trace = ladder.vae.trace(ladder.x, num_samples=20)
    torch.testing.assert_close(trace.log_w, ladder.log_px().expand(20, -1), atol=1e-9, rtol=0)
    evidence = log_evidence(ladder.vae, ladder.x, num_samples=3)
    torch.testing.assert_close(evidence.log_px, ladder.log_px(), atol=1e-9, rtol=0)
    draws = with_exact_noise(monkeypatch, len(latent_dims))
    for closed_form in (True, False):
        terms = ELBO(num_samples=draws, closed_form=closed_form)(ladder.vae, ladder.x)
        torch.testing.assert_close(terms.elbo, ladder.log_px(), atol=1e-9, rtol=0)


@pytest.mark.verifies(
    lb.model.LadderTrace, lb.model.TopDownPosterior, lb.model.TopDownPrior, against="linear-Gaussian oracle"
)
@pytest.mark.parametrize("latent_dims", SHAPES)
def test_the_mean_over_draws_of_the_conditional_kls_is_the_kl(latent_dims, monkeypatch):
    ladder = linear_ladder(3, latent_dims)
    draws = with_exact_noise(monkeypatch, sum(latent_dims))
    trace = ladder.vae.trace(ladder.x, draws)
    exact = kl_divergence(ladder.q(), ladder.p())
    torch.testing.assert_close(trace.kl, exact, atol=1e-9, rtol=0)
    torch.testing.assert_close(trace.kl_draws.mean(0), exact, atol=1e-9, rtol=0)
    torch.testing.assert_close((trace.log_qz - trace.log_pz).mean(0), exact, atol=1e-9, rtol=0)
    # A layer's rate is what its layers and those above have, less what those above have alone (the chain rule).
    tails = []
    for part in ladder.vae.prior.slices:
        of_layers = (
            MultivariateNormal(d.loc[:, part.start :], d.covariance_matrix[..., part.start :, part.start :])
            for d in (ladder.q(), ladder.p())
        )
        tails.append(kl_divergence(*of_layers))
    expected = torch.stack([a - b for a, b in zip(tails, [*tails[1:], torch.zeros_like(exact)], strict=True)], 1)
    torch.testing.assert_close(trace.rate_per_layer, expected, atol=1e-9, rtol=0)
    summed = [each.sum(1) for each in trace.kl_each.split(latent_dims, 1)]
    torch.testing.assert_close(torch.stack(summed, 1), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("latent_dims", SHAPES)
def test_mean_and_standard_deviation_are_what_they_are_said_to_be(latent_dims):
    """The mean is exact where all is linear; the deviations are conditional on the layers above."""
    ladder = linear_ladder(4, latent_dims)
    for mine, exact in ((ladder.vae.encoder(ladder.x), ladder.q()), (ladder.vae.prior(), ladder.p())):
        torch.testing.assert_close(mine.mean.expand_as(exact.loc), exact.loc, atol=1e-9, rtol=0)
        covariance = exact.covariance_matrix[0]
        for layer, part in enumerate(ladder.vae.prior.slices):
            rest = slice(part.stop, sum(latent_dims))
            lean = covariance[part, rest] @ torch.linalg.inv(covariance[rest, rest])
            conditional = (covariance[part, part] - lean @ covariance[rest, part]).diagonal().sqrt()
            found = mine.stddev[..., part]
            torch.testing.assert_close(found, conditional.expand_as(found), atol=1e-9, rtol=0, msg=str(layer))


@pytest.mark.parametrize("latent_dims", SHAPES)
@pytest.mark.parametrize("objective", ["closed", "sampled", PLAIN, STL, DREG], ids=str)
def test_every_gradient_of_the_bound_is_the_exact_one(latent_dims, objective, monkeypatch):
    """With the mean over the noise taken exactly. Weights of scales are left out: the closed form has none."""
    ladder = linear_ladder(5, latent_dims)
    draws = with_exact_noise(monkeypatch, sum(latent_dims))
    if isinstance(objective, str):
        objective = ELBO(num_samples=draws, closed_form=objective == "closed")
    else:
        objective = MIWAE(draws, 1, objective)
    parameters = dict(ladder.vae.named_parameters())
    exact = torch.autograd.grad(-ladder.exact_elbo().sum(), list(parameters.values()))
    estimated = torch.autograd.grad(objective(ladder.vae, ladder.x).loss.sum(), list(parameters.values()))
    for name, mine, true in zip(parameters, estimated, exact, strict=True):
        rows = slice(None) if name.endswith("bias") or name.startswith("decoder") else slice(len(true) // 2)
        torch.testing.assert_close(mine[rows], true[rows], atol=1e-8, rtol=1e-8, msg=name)


@pytest.mark.parametrize("objective", [IWAE(3, DREG), PIWAE(2, 3, DREG), PIWAE(2, 3)], ids=repr)
def test_estimators_of_the_multi_sample_gradient_agree_in_expectation(objective):
    """DReG against the plain gradient of the same bound: for the encoder of IWAE and PIWAE, and for all of IWAE."""
    ladder = linear_ladder(6, (1, 1), examples=1)
    plain = IWAE(3) if isinstance(objective, IWAE) else MIWAE(2, 3)
    parts = ladder.vae if isinstance(objective, IWAE) else ladder.vae.encoder
    x = ladder.x.expand(2000, -1)

    def gradient(of) -> Tensor:
        loss = of(ladder.vae, x).loss.mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parts.parameters()))])

    torch.manual_seed(0)
    ladder.vae.encoder.head.posteriors[0].head.project.bias.data[0] += 0.5  # a q that is clearly off
    differences = torch.stack([gradient(objective) - gradient(plain) for _ in range(60)])
    error = differences.mean(0) / (differences.std(0) / math.sqrt(len(differences)) + 1e-12)
    assert (error.abs() < 4.5).all()
    assert gradient(plain).abs().max() > 20 * (differences.std(0) / math.sqrt(60)).max()


@pytest.mark.parametrize("latent_dims", [(1, 1), (2, 1, 3)])
def test_evidence_is_within_its_stated_errors(latent_dims):
    ladder = linear_ladder(7, latent_dims, examples=300)
    torch.manual_seed(0)
    evidence = log_evidence(ladder.vae, ladder.x, num_samples=400)
    for found, error, exact in (
        (evidence.log_px, evidence.stderr, ladder.log_px()),
        (evidence.elbo, evidence.elbo_stderr, ladder.exact_elbo()),
    ):
        scores = (found - exact) / error
        # Half of a standard normal lies within 0.67; the weights' tail makes log p(x)'s scores a little wider than one.
        assert 0.57 < scores.abs().median() < 0.79
        assert abs(scores.mean()) < 0.25
    exact = kl_divergence(ladder.q(), ladder.p())
    torch.testing.assert_close(evidence.rate.mean(), exact.mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(-evidence.distortion - evidence.rate, evidence.elbo)


def test_other_estimators_of_the_evidence_agree():
    ladder = linear_ladder(8, (1, 1), examples=6)
    exact = ladder.log_px()
    torch.manual_seed(0)
    defended = log_evidence(ladder.vae, ladder.x, 3000, defensive=Defensive())
    assert ((defended.log_px - exact).abs() < 4.5 * defended.stderr).all()
    annealed = annealed_evidence(ladder.vae, ladder.x, Annealing(temperatures=100, chains=32))
    assert ((annealed.log_px - exact).abs() < 5 * annealed.stderr + 0.01).all()
    grid = quadrature_evidence(ladder.vae, ladder.x)
    torch.testing.assert_close(grid.log_px, exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(grid.mean, ladder.posterior().loc, atol=1e-5, rtol=0)
    assert abs(sweep(ladder.vae, ladder.x, (1, 2000)).log_px[1] - exact.mean()) < 0.02


def test_the_posterior_gap_finds_the_true_posterior_and_puts_the_blame_on_the_encoder():
    """q moved away from the true posterior by a shift and a stretch: all of the gap is amortisation."""
    ladder = linear_ladder(9, (1, 1), exact_q=True, examples=4)
    with torch.no_grad():
        for posterior in ladder.vae.encoder.head.posteriors:
            posterior.head.project.bias.add_(0.3)
    gap = posterior_gap(ladder.vae, ladder.x, 2000, refinement=Refinement(steps=150, draws=16))
    expected = ladder.log_px() - ladder.exact_elbo()
    assert (expected > 0.05).all()
    assert ((gap.total - expected).abs() < 5 * gap.total_stderr + 1e-3).all()
    assert (gap.approximation.abs() < 0.1 * expected).all()


@pytest.mark.verifies(lb.metrics.rate_per_layer, lb.metrics.information, against="linear-Gaussian oracle")
def test_information_has_the_exact_rate():
    ladder = linear_ladder(10, (1, 1), examples=60)
    exact = kl_divergence(ladder.q(), ladder.p()).mean().item()
    source = lb.ArraySource(ladder.x.float(), support=lb.Support.REAL, scale=1.0)
    ladder.vae.float()
    torch.manual_seed(0)
    found = metrics.information(ladder.vae, source, draws=50)
    assert abs(found.rate - exact) < 0.1
    assert 0 < found.mutual <= math.log(60)
    rate, stderr = metrics.rate_per_layer(ladder.vae, source, draws=50)
    assert abs(rate.sum().item() - exact) < 0.1
    assert rate.shape == stderr.shape == (2,)


# Nonlinear: a grid.


def grid_of_two(low: float = -12, high: float = 12, points: int = 401) -> tuple[Tensor, float]:
    axis = torch.linspace(low, high, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), ((high - low) / (points - 1)) ** 2


@pytest.mark.verifies(lb.model.TopDownPosterior, lb.model.TopDownPrior, against="quadrature")
def test_densities_integrate_to_one():
    vae, x = nonlinear()
    z, cell = grid_of_two()
    q = vae.encoder(x)
    for distribution in (q, q.widened(1.3), q.free()[1]([torch.full((4, 2), v).double() for v in (0.4, -0.3)])):
        mass = distribution.log_prob(z[:, None]).exp().sum(0) * cell
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        vae.prior().log_prob(z).exp().sum() * cell, torch.tensor(1.0).double(), atol=1e-6, rtol=0
    )


@pytest.mark.verifies(lb.model.LadderVAE, against="quadrature")
def test_evidence_agrees_with_a_grid():
    vae, x = nonlinear()
    z, cell = grid_of_two()
    with torch.no_grad():
        log_joint = vae.decoder(z[:, None].expand(-1, 4, -1)).log_prob(x) + vae.prior().log_prob(z)[:, None]
        exact = log_joint.logsumexp(0) + math.log(cell)
        weight = vae.encoder(x).log_prob(z[:, None])
        elbo = ((log_joint - weight) * weight.exp()).sum(0) * cell
    torch.manual_seed(0)
    evidence = log_evidence(vae, x, num_samples=20_000)
    assert ((evidence.log_px - exact).abs() < 4 * evidence.stderr + 1e-4).all()
    assert ((evidence.elbo - elbo).abs() < 4 * evidence.elbo_stderr + 1e-4).all()
    assert (exact - elbo > 1e-3).all(), "there is no gap to be seen"
    torch.testing.assert_close(quadrature_evidence(vae, x).log_px, exact, atol=1e-5, rtol=0)


def test_samples_have_the_density_that_is_said():
    vae, x = nonlinear()
    torch.manual_seed(0)
    z, cell = grid_of_two()
    for distribution, index in ((vae.prior(), ()), (vae.encoder(x), (0,))):
        draws = distribution.sample((200_000,))[(slice(None), *index)]
        density = distribution.log_prob(z[:, None] if index else z).exp()
        density = density[:, 0] if index else density
        for d in (0, 1):
            for power in (1, 2):
                exact = (density * z[:, d] ** power).sum() * cell
                values = draws[:, d] ** power
                assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("latent_dims", [(2,), (3, 2), (3, 2, 1), (2, 2, 2, 2)])
def test_densities_agree_with_the_trace_and_broadcast(latent_dims):
    vae, x = nonlinear(latent_dims)
    q, p = vae.encoder(x), vae.prior()
    for graph in (True, False):
        with torch.set_grad_enabled(graph):
            trace = vae.trace(x, 3)
            torch.testing.assert_close(trace.log_qz, q.log_prob(trace.z), atol=1e-10, rtol=0)
            torch.testing.assert_close(trace.log_pz, p.log_prob(trace.z), atol=1e-10, rtol=0)
    every = q.log_prob(trace.z.unsqueeze(2))
    assert every.shape == (3, 4, 4)
    torch.testing.assert_close(every.diagonal(dim1=1, dim2=2), trace.log_qz, atol=1e-10, rtol=0)
    some = torch.tensor([2, 0])
    torch.testing.assert_close(q[some].log_prob(trace.z[:, some]), trace.log_qz[:, some], atol=1e-10, rtol=0)
    torch.testing.assert_close(q.expand((3, 4)).log_prob(trace.z), trace.log_qz, atol=1e-10, rtol=0)
    assert p.sample((7,)).shape == (7, sum(latent_dims))
    assert p.sample((7, 2)).shape == (7, 2, sum(latent_dims))
    assert q.mean.shape == q.stddev.shape == (4, sum(latent_dims))


def test_upper_layers_do_not_hang_on_lower_ones():
    vae, x = nonlinear((2, 2, 1))
    q = vae.encoder(x)
    eps = q.noise((3,)).requires_grad_()
    z = q.from_noise(eps)
    for part in vae.prior.slices:
        (slope,) = torch.autograd.grad(z[..., part].sum(), eps, retain_graph=True)
        assert (slope[..., : part.start] == 0).all()
        assert (slope[..., part.start :].flatten(0, 1).abs().amax(0) > 0).all()


def test_a_widened_posterior_is_wider_by_that_and_no_shift_is_none():
    vae, x = nonlinear((2, 1))
    q = vae.encoder(x)
    torch.testing.assert_close(q.widened(2.0).widened(1.5).stddev, 3 * q.stddev)
    torch.testing.assert_close(q.widened(2.0).mean, q.mean)
    start, rebuild = q.free()
    same, moved = rebuild(start), rebuild([start[0] + 0.5, start[1]])
    z = q.sample((3,))
    assert torch.equal(same.log_prob(z), q.log_prob(z))
    torch.testing.assert_close(moved.mean[:, 2:], (q.mean + 0.5 * q.stddev)[:, 2:])


# Training.


@pytest.mark.parametrize(
    ("objective", "downwards"), [(ELBO(), 1), (FreeBits(0.1, groups=(3, 2, 2)), 1), (IWAE(3), 2)], ids=repr
)
def test_an_update_goes_down_once_and_a_weight_asks_p_once_more(objective, downwards):
    vae, x = small()
    counts: dict[str, int] = {}
    for name, module in vae.named_modules():
        if isinstance(module, nn.ResidualMLP):
            module.register_forward_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))
    objective(vae, x)
    assert len(counts) == 3 + 3 + 2 + 1
    for name, count in counts.items():
        assert count == (downwards if name.startswith("prior") else 1), name


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_gradients_reach_every_parameter_and_terms_are_what_they_are_called(objective):
    vae, x = small()
    objective.check(vae)
    torch.manual_seed(3)
    terms = objective(vae, x, step=5)
    assert terms.loss.shape == terms.kl.shape == (5,)
    torch.testing.assert_close(terms.elbo, -terms.distortion - terms.kl)
    draws = getattr(objective, "num_samples", 1) * (objective.groups if isinstance(objective, PIWAE) else 1)
    torch.manual_seed(3)
    torch.testing.assert_close(terms.rate_per_layer, vae.trace(x, draws).rate_per_layer.detach(), atol=0, rtol=0)
    assert terms.rate_per_layer.shape == (5, 3)
    terms.loss.mean().backward()
    assert not [name for name, p in vae.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not [name for name, p in vae.named_parameters() if (p.grad == 0).all()]
    torch.manual_seed(3)
    trained = objective(vae, x)
    torch.manual_seed(3)
    with torch.no_grad():
        torch.testing.assert_close(objective(vae, x).loss, trained.loss)


@pytest.mark.parametrize("objective", [BetaTC(100), DIPVAE()], ids=repr)
def test_objectives_that_mean_nothing_for_a_ladder_say_what_works(objective):
    with pytest.raises(UsageError, match=r"TopDownPosterior has not\. Use"):
        objective.check(small()[0])


def test_free_bits_hold_the_rate_of_each_layer():
    vae, x = small((3, 2, 2))
    nats = 0.007
    torch.manual_seed(1)
    rates = vae.trace(x, 4).rate_per_layer.mean(0)
    assert (rates > nats).any()
    assert (rates < nats).any()
    torch.manual_seed(1)
    terms = FreeBits(nats, groups=vae.latent_dims, num_samples=4)(vae, x)
    torch.testing.assert_close((terms.loss - terms.distortion).mean(), rates.clamp_min(nats).sum())
    with pytest.raises(UsageError, match=r"\(3, 2\) components are 5 together, but z has 7"):
        FreeBits(nats, groups=(3, 2)).check(vae)


def test_a_ladder_begins_with_hardly_any_rate():
    vae, x = small((16, 8, 4))
    rate = vae.trace(x, 50).rate_per_layer.mean(0)
    assert (rate > 0).all()
    assert (rate / torch.tensor(vae.latent_dims) < 0.02).all()


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("likelihood", [Bernoulli, Normal])
def test_extreme_weights_and_inputs_stay_finite_in_every_precision(likelihood, precision, objective):
    vae, x = small(likelihood=likelihood)
    with torch.no_grad():
        for conditional in (*vae.prior.conditionals, *vae.encoder.head.posteriors):
            conditional.head.project.weight.mul_(1e6)
        vae.decoder.head.project.weight.mul_(10)
    with autocast(precision, torch.device("cpu")):
        terms = objective(vae, x if likelihood is Bernoulli else 1e4 * x)
    terms.loss.mean().backward()
    assert torch.isfinite(terms.loss).all()
    assert terms.loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


def test_a_training_lowers_the_bound_and_uses_both_layers():
    data = lb.open_data("digits").binarised(lb.Binarise.DYNAMIC)
    torch.manual_seed(0)
    vae = mlp_ladder(data.event_shape, (8, 4), Bernoulli, width=64, state_dim=32)
    vae.likelihood.start_at(lb.data.mean(data.train))
    history = lb.fit(vae, data, ELBO(warmup=100), lb.Training(epochs=8, batch_size=64, lr=5e-3))
    # 27.7 nats is what independent pixels cost.
    assert history[-1]["valid_elbo"] > -25.5
    rate, _ = metrics.rate_per_layer(vae, data.valid)
    assert (rate > 0.3).all()


def test_a_training_goes_on_exactly_where_it_was_saved():
    data = lb.open_data("digits").binarised(lb.Binarise.DYNAMIC)

    def begun() -> TrainState:
        torch.manual_seed(0)
        vae = mlp_ladder(data.event_shape, (3, 2), Bernoulli, width=16, state_dim=8)
        return TrainState(vae, lb.Training(epochs=1, batch_size=128, average=0.9), torch.device("cpu"))

    def steps(state: TrainState, until: int) -> TrainState:
        for step in lb.train(state.vae, data.train, ELBO(warmup=4), state.training, state=state):
            if step.step == until:
                break
        return state

    whole, first = steps(begun(), 6), steps(begun(), 3)
    second = begun()
    second.restore({k: v.clone() for k, v in first.tensors().items()}, first.scalars())
    resumed = steps(second, 6).kept_weights()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.kept_weights().items())


# Parts, files and commands.


@pytest.mark.parametrize("latent_dims", [(2,), (3, 2, 1)])
def test_a_ladder_is_built_again_from_its_description_and_weights(latent_dims, tmp_path):
    vae, x = small(latent_dims)
    tree = json.loads(json.dumps(spec.describe(vae)))
    again = build_model({"model": tree}, {k: v.clone() for k, v in vae.state_dict().items()}, tmp_path)
    assert spec.describe(again) == tree
    with torch.device("meta"):
        assert spec.describe(spec.build(tree)) == tree
    found = []
    for model in (vae.eval(), again, copy.deepcopy(again)):
        torch.manual_seed(1)
        trace = model.trace(x, 2)
        found.append((trace.z, trace.log_w, trace.kl))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_copys_posterior_goes_down_with_the_copys_prior():
    vae, x = small()
    copied = copy.deepcopy(vae)
    with torch.no_grad():
        vae.prior.conditionals[0].head.project.bias.add_(100)
    assert copied.encoder(x).mean.abs().max() < 50 < vae.encoder(x).mean.abs().max()


def test_each_weight_is_counted_once():
    vae, _ = small()
    names = [name for name, _ in vae.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(p) for p in vae.parameters()})


def test_a_ladder_prior_goes_with_an_encoder_that_knows_nothing_of_it():
    """A mean-field q under a hierarchical p: the KL is taken from the draws, and the evidence agrees with a grid."""
    torch.manual_seed(0)
    ladder, x = nonlinear()
    encoder = Conditional(nn.MLP((6,), (8,)), DiagonalNormal((8,), (2,)))
    vae = VAE(encoder, ladder.decoder, ladder.prior).double().eval()
    assert vae.trace(x).kl is None
    evidence = log_evidence(vae, x, 5000)
    exact = quadrature_evidence(ladder, x).log_px
    assert ((evidence.log_px - exact).abs() < 4 * evidence.stderr).all()


def test_parts_that_do_not_fit_are_refused():
    def normal(takes: int, size: int) -> Conditional:
        return Conditional(Identity((takes,)), DiagonalNormal((takes,), (size,)))

    decoder = Conditional(nn.MLP((3,), (4,)), Bernoulli((4,), (6,)))
    prior = LadderPrior(StandardNormal(1), (normal(1, 2),))
    plain = Conditional(nn.MLP((6,), (4,)), DiagonalNormal((4,), (3,)))
    bottom_up = nn.BottomUp((nn.MLP((6,), (5,)), nn.MLP((5,), (4,))))
    assert LadderVAE(Conditional(bottom_up, LadderHead((5, 4), (normal(6, 2), normal(4, 1)))), decoder, prior)
    with pytest.raises(UsageError, match="there are 1 components of z, but"):
        LadderPrior(StandardNormal(1), (normal(2, 2),))
    with pytest.raises(UsageError, match="Delta over"):
        LadderPrior(StandardNormal(1), (Conditional(Identity((1,)), heads.Delta((1,), (1,))),))
    with pytest.raises(UsageError, match="2 posteriors and features of sizes"):
        LadderHead((5,), (normal(6, 2), normal(4, 1)))
    with pytest.raises(UsageError, match=r"shown the 1 features of the prior's state and 5 of x, but .* \(5,\)"):
        LadderVAE(Conditional(bottom_up, LadderHead((5, 4), (normal(5, 2), normal(4, 1)))), decoder, prior)
    with pytest.raises(UsageError, match=r"\(1, 2\) components of z and the prior's \(2, 1\)"):
        LadderVAE(Conditional(bottom_up, LadderHead((5, 4), (normal(6, 1), normal(4, 2)))), decoder, prior)
    with pytest.raises(UsageError, match="Other parts go into a VAE"):
        LadderVAE(plain, decoder, prior)
    with pytest.raises(UsageError, match="has none yet"):
        LadderHead((4,), (normal(4, 1),))(torch.zeros(1, 4), torch.Size([1]))
    with pytest.raises(UsageError, match="must take what the one before it gives"):
        nn.BottomUp((nn.MLP((6,), (5,)), nn.MLP((4,), (4,))))
    with pytest.raises(UsageError, match="latent_dims"):
        mlp_ladder((6,), (), Bernoulli)
    with pytest.raises(UsageError, match="rate of each layer"):
        metrics.rate_per_layer(VAE(plain, decoder, StandardNormal(3)), lb.ArraySource(torch.zeros(3, 6)))


def test_tasks_work_on_a_ladder():
    vae, x = small()
    source = lb.ArraySource(x, support=lb.Support.BINARY, scale=1.0)
    assert tasks.sample(vae, 3).shape == (3, 1, 3, 4)
    assert tasks.reconstruct(vae, x, draw=True).shape == x.shape
    codes = tasks.encode(vae, source, draw=True)
    assert codes["loc"].shape == codes["scale"].shape == codes["z"].shape == (5, 7)
    torch.testing.assert_close(tasks.interpolate(vae, x[0], x[1], 3)[[0, 2]], tasks.reconstruct(vae, x[:2]))
    assert torch.equal(tasks.sample(vae, 3, seed=1), tasks.sample(vae, 3, seed=1))


@pytest.mark.parametrize("latent_dims", [(1, 1), (3, 2), (2, 2, 1)])
def test_a_reconstruction_is_decoded_from_the_posterior_of_every_layer(latent_dims):
    ladder = linear_ladder(4, latent_dims, examples=50)
    vae, q = ladder.vae, ladder.q()
    weight, bias = ladder._decoder()
    made = tasks.reconstruct(vae, ladder.x)
    torch.testing.assert_close(made, q.loc @ weight.T + bias)
    # The same top, and below it what p expects.
    lower = sum(latent_dims[:-1])
    p, top = ladder.p(), q.loc[:, lower:]
    cross, own = p.covariance_matrix[0, :lower, lower:], p.covariance_matrix[0, lower:, lower:]
    expected = torch.cat([p.loc[:, :lower] + (top - p.loc[:, lower:]) @ torch.linalg.solve(own, cross.T), top], 1)
    with torch.no_grad():
        by_p, by_q = (-vae.decoder(z).log_prob(ladder.x).mean() for z in (expected, q.loc))
    assert by_q < by_p - 0.5
    drawn = torch.stack([tasks.reconstruct(vae, ladder.x, seed=seed, draw=True) for seed in range(400)])
    assert ((drawn.mean(0) - made) / drawn.std(0) * 20).abs().max() < 5


@pytest.mark.parametrize("latent_dims", SHAPES)
def test_a_line_between_two_examples_of_a_linear_ladder_is_straight_in_all_layers(latent_dims):
    ladder = linear_ladder(4, latent_dims)
    weight, bias = ladder._decoder()
    z = torch.lerp(ladder.q().loc[:1], ladder.q().loc[1:2], torch.linspace(0, 1, 5, dtype=torch.float64)[:, None])
    made = tasks.interpolate(ladder.vae, ladder.x[0], ladder.x[1], 5)
    torch.testing.assert_close(made, z @ weight.T + bias)


def test_on_a_line_between_two_examples_every_layer_is_as_p_expects_it():
    """Where nothing is linear: below a line in the top layer, each layer keeps its distance from p's mean."""
    vae, x = nonlinear((2, 1))
    with torch.no_grad():
        ends, p = vae.encoder(x[:2]).mean, vae.prior()
        torch.testing.assert_close(p.from_noise(p.to_noise(ends)), ends)
        z = vae.prior.between(ends[:1], ends[1:], torch.linspace(0, 1, 5).double()[:, None])
        torch.testing.assert_close(z[[0, 4]], ends)
        torch.testing.assert_close(z[:, 2], torch.lerp(ends[0, 2], ends[1, 2], torch.linspace(0, 1, 5).double()))
        _, below = vae.prior.layer(0, z[:, 2:])
        standard = (z[:, :2] - below.mean) / below.stddev
        torch.testing.assert_close(standard[2], (standard[0] + standard[4]) / 2)
        assert (z[2] - ends.mean(0)).abs().max() > 0.01, "a straight line in z would be another"
    torch.testing.assert_close(tasks.interpolate(vae, x[0], x[1], 5), vae.decoder(z).mean.detach())


def test_the_view_of_a_conditional_model_leaves_the_line_to_its_prior():
    prior = nonlinear((2, 1))[0].prior
    conditional = lb.model.ConditionalVAE(
        Conditional(nn.MLP((6 + 2,), (4,)), DiagonalNormal((4,), (3,))),
        Conditional(nn.MLP((3 + 2,), (4,)), Bernoulli((4,), (6,))),
        prior,
        classes=(3, 5),
    )
    start, end, weight = torch.zeros(1, 3).double(), torch.ones(1, 3).double(), torch.full((1, 1), 0.5).double()
    line = conditional.given(5).prior.between(start, end, weight)
    assert torch.equal(line, prior.between(start, end, weight))
    assert not torch.equal(line, (start + end) / 2)


def source_of(ladder: LinearLadder) -> lb.ArraySource:
    source = lb.ArraySource(ladder.x, support=lb.Support.REAL)
    source.decode = lambda raw: raw
    return source


def test_a_layer_whose_q_is_p_has_no_active_units_although_its_mean_follows_the_layers_above():
    ladder = linear_ladder(3, (2, 1), examples=200)
    head = ladder.vae.encoder.head
    assert lb.evaluate(ladder.vae, source_of(ladder), num_samples=2, gap=0).active_units == 3
    lower = head.posteriors[0].head
    set_affine(lower, torch.zeros_like(lower.project.weight), torch.zeros_like(lower.project.bias))
    found = lb.evaluate(ladder.vae, source_of(ladder), num_samples=50, gap=0)
    assert (ladder.q().loc.var(0) > 0.01).all(), "by the mean of z all three would count"
    assert found.active_units == 1
    assert found.rate_per_layer[0] == 0
    assert sum(found.rate_per_layer) == pytest.approx(found.rate)
    top = ladder.q()
    exact = 0.5 * (top.variance[:, 2] + top.loc[:, 2].square() - 1 - top.variance[:, 2].log())
    assert found.rate_per_layer[1] == pytest.approx(exact.mean().item())
    assert any("follows the layers above as p does" in note for note in found.notes)


@pytest.mark.parametrize("latent_dims", [(1, 1), (3, 2), (2, 2, 1)])
def test_encode_gives_the_mean_and_standard_deviation_of_z_itself(latent_dims):
    """All is affine in the noise, so that the estimates are exact; the descent's own spread is not that of z."""
    ladder = linear_ladder(4, latent_dims, examples=6)
    codes = tasks.encode(ladder.vae, source_of(ladder))
    torch.testing.assert_close(codes["loc"], ladder.q().loc)
    torch.testing.assert_close(codes["scale"], ladder.q().stddev)
    assert (ladder.vae.encoder(ladder.x).stddev - ladder.q().stddev).abs().max() > 0.01


def test_the_moments_of_a_ladder_that_is_not_linear_are_those_of_its_draws():
    vae, x = nonlinear((2, 2))
    with torch.no_grad():
        q = vae.encoder(x)
        loc, scale = q.moments()
        torch.manual_seed(0)
        z = q.sample((40_000,))
    assert ((loc - z.mean(0)).abs() < 0.1 * scale).all()
    torch.testing.assert_close(scale, z.std(0), rtol=0.15, atol=0)


def test_the_rates_of_layers_are_a_function_of_their_seed():
    vae, x = small()
    source = lb.ArraySource(x, support=lb.Support.BINARY, scale=1.0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    once = metrics.rate_per_layer(vae, source, seed=1)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(metrics.rate_per_layer(vae, source, seed=1)[0], once)
    assert not torch.equal(metrics.rate_per_layer(vae, source, seed=2)[0], once)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "ladder"
    options = ["--epochs", 1, "--width", 16, "--state-dim", 8, "--latent-dims", 4, 3, 2, "--device", "cpu"]
    succeed(call("train", "ladder", "--data", "digits", "--out", path, *options))
    return path


def test_the_commands_work_on_a_ladder(trained, tmp_path):
    saved = json.loads((trained / "run.json").read_text())
    assert saved["settings"]["latent_dims"] == [4, 3, 2]
    assert lb.load(trained).latent_dims == (4, 3, 2)
    judged = succeed(call("evaluate", trained, "--json", "--limit", 20, "--samples", 20)).json
    assert judged["latent_dim"] == 9
    assert sum(judged["rate_per_layer"]) == pytest.approx(judged["rate"])
    assert len(judged["rate_per_layer"]) == 3
    assert "the lowest first" in succeed(call("evaluate", trained, "--limit", 20, "--samples", 5)).words
    assert judged["rate"] > 0
    for line in map(json.loads, (trained / "metrics.jsonl").read_text().splitlines()):
        for of in ("", "valid_") if "valid_rate" in line else ("",):
            assert sum(line[f"{of}rate_{layer}"] for layer in (1, 2, 3)) == pytest.approx(line[f"{of}rate"], rel=1e-5)
    assert "valid_rate_3" in line
    assert "rate_4" not in line
    assert judged["log_px"] > judged["elbo"]
    succeed(call("sample", trained, "--n", 4, "--out", tmp_path / "samples.png"))
    succeed(call("reconstruct", trained, "--n", 4, "--out", tmp_path / "reconstructions.png"))
    succeed(call("interpolate", trained, "--out", tmp_path / "line.npz", "--steps", 3))
    succeed(call("encode", trained, "--out", tmp_path / "codes.npz"))
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["loc"].shape[1] == 9


def test_layers_can_stand_in_a_file_of_settings_and_a_finished_run_is_resumed_as_it_is(tmp_path):
    (tmp_path / "settings.toml").write_text("latent-dims = [3, 2]\nwidth = 16\nstate-dim = 8\nfree-nats = 0.5\n")
    command = ["train", "ladder", "--data", "digits", "--out", tmp_path / "run", "--epochs", 1, "--device", "cpu"]
    command += ["--config", tmp_path / "settings.toml"]
    succeed(call(*command))
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    succeed(call(*command, "--resume"))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert lb.load(tmp_path / "run").latent_dims == (3, 2)
    notes = succeed(call("evaluate", tmp_path / "run", "--json", "--limit", 5, "--samples", 2)).json["notes"]
    assert any("0.5 nats free (free bits) in each of 2 group(s)" in note for note in notes)
