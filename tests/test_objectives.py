"""Every objective against an exact answer: quadrature over the noise, brute force, or an identity."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracle import Identity, linear_gaussian
from torch.distributions import MultivariateNormal

import lowerbound as lb
from lowerbound import distributions, heads, nn, spec
from lowerbound.data import generator
from lowerbound.distributions import DiagonalNormal
from lowerbound.errors import UsageError
from lowerbound.evidence import log_evidence
from lowerbound.heads import Conditional, Head
from lowerbound.model import VAE, Trace
from lowerbound.objectives import (
    CIWAE,
    DIPVAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    WAE,
    BetaTC,
    Capacity,
    DIPKind,
    DoublyReparameterised,
    FreeBits,
    InfoVAE,
    InTurn,
    InverseMultiquadratic,
    MinibatchStratified,
    MinibatchWeighted,
    Reconstruction,
    Reparameterised,
    StickingTheLanding,
    mmd,
)
from lowerbound.priors import StandardNormal

PLAIN, STL, DREG = Reparameterised(), StickingTheLanding(), DoublyReparameterised()


class FullNormal(Head):
    """A posterior with a full covariance, as torch has it: none of the library's own distributions."""

    num_parameters = 2

    def forward(self, features, batch):
        loc, raw = self.parameters_of(features, batch)
        size = loc.shape[-1]
        lower = torch.tril(raw[..., None] * torch.ones(size, dtype=raw.dtype), -1)
        return MultivariateNormal(loc, scale_tril=lower + torch.diag_embed(raw.exp()), validate_args=False)


def full_covariance(seed: int = 0) -> tuple[VAE, torch.Tensor]:
    torch.manual_seed(seed)
    encoder = Conditional(nn.MLP((4,), (6,)), FullNormal((6,), (3,)))
    decoder = Conditional(nn.MLP((3,), (6,)), heads.Normal((6,), (4,), scale=0.7))
    return VAE(encoder, decoder, StandardNormal(3)).double(), torch.randn(5, 4, dtype=torch.float64)


def gradients(vae, loss) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the encoder's and of the decoder's parameters, each as one vector."""
    vae.zero_grad()
    loss.backward()

    def of(part):
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in part.parameters()])

    return of(vae.encoder), of(vae.decoder)


def seeded(seed, objective, vae, x):
    torch.manual_seed(seed)
    return objective(vae, x)


def with_noise(monkeypatch, vae, noise):
    """Makes the model draw z with the given noise, `[K, B, D]`."""

    def trace(vae, x, num_samples):
        assert len(noise) == num_samples
        q = vae.encoder(x)
        z = q.mean + q.stddev * noise
        return Trace(z, vae.decoder(z).log_prob(x), q, vae.prior())

    monkeypatch.setattr(type(vae), "trace", trace)


def normal_grid(draws: int, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points `[draws, nodes^draws, 1]` and weights for the mean over independent standard normal draws."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.tensor(list(itertools.product(points, repeat=draws))).T[..., None]
    weight = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=draws))).prod(1)
    return grid, weight


# The multi-sample bounds: values.


@pytest.mark.parametrize("estimator", [PLAIN, STL, DREG])
@pytest.mark.parametrize("num_samples", [1, 5, 50])
def test_the_importance_weighted_bound_is_the_evidences_from_the_same_draws(num_samples, estimator):
    oracle = linear_gaussian(2)
    torch.manual_seed(0)
    evidence = log_evidence(oracle.vae, oracle.x, num_samples)
    terms = seeded(0, IWAE(num_samples, estimator), oracle.vae, oracle.x)
    torch.testing.assert_close(-terms.loss, evidence.log_px, atol=1e-10, rtol=0)
    torch.testing.assert_close(terms.distortion, evidence.distortion, atol=1e-10, rtol=0)
    torch.testing.assert_close(terms.elbo, -terms.distortion - terms.kl, atol=1e-10, rtol=0)
    assert (-terms.loss >= terms.elbo - 1e-12).all()


def test_with_one_draw_the_importance_weighted_bound_is_the_elbo_in_value_and_gradient():
    oracle = linear_gaussian(3)
    one, elbo = (seeded(1, o, oracle.vae, oracle.x) for o in (IWAE(1), ELBO(closed_form=False)))
    for name in ("loss", "distortion", "kl", "elbo"):
        torch.testing.assert_close(getattr(one, name), getattr(elbo, name), atol=1e-12, rtol=0)
    for mine, theirs in zip(*(gradients(oracle.vae, t.loss.sum()) for t in (one, elbo)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


@pytest.mark.verifies(lb.objectives.IWAE, against="linear-Gaussian oracle")
def test_the_bound_rises_with_the_number_of_draws_and_stays_below_the_evidence():
    oracle = linear_gaussian(3, examples=20_000)
    gaps = [seeded(0, IWAE(k), oracle.vae, oracle.x).loss + oracle.log_px() for k in (1, 2, 8, 64)]
    means = [gap.mean().item() for gap in gaps]
    errors = [gap.std().item() / math.sqrt(len(gap)) for gap in gaps]
    for (above, below), error in zip(itertools.pairwise(means), errors[1:], strict=True):
        assert above - below > 4 * error
    assert means[-1] > 4 * errors[-1], "on average the bound is below the evidence"
    assert abs(means[0] - oracle.kl_to_posterior().mean().item()) < 4 * errors[0]


@pytest.mark.parametrize("objective", [CIWAE(0.0, 6), CIWAE(0.0, 6, DREG), MIWAE(1, 6), MIWAE(1, 6, DREG), PIWAE(1, 6)])
def test_the_mixed_bounds_contain_the_importance_weighted_one(objective):
    oracle = linear_gaussian(4)
    mine = seeded(2, objective, oracle.vae, oracle.x)
    theirs = seeded(2, IWAE(6, objective.estimator), oracle.vae, oracle.x)
    torch.testing.assert_close(mine.loss, theirs.loss, atol=1e-12, rtol=0)
    for a, b in zip(*(gradients(oracle.vae, t.loss.sum()) for t in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("objective", [CIWAE(1.0, 6), MIWAE(6, 1)])
def test_the_mixed_bounds_contain_the_elbo(objective):
    oracle = linear_gaussian(4)
    mine = seeded(2, objective, oracle.vae, oracle.x)
    theirs = seeded(2, ELBO(closed_form=False, num_samples=6), oracle.vae, oracle.x)
    torch.testing.assert_close(mine.loss, theirs.loss, atol=1e-12, rtol=0)
    for a, b in zip(*(gradients(oracle.vae, t.loss.sum()) for t in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.verifies(lb.objectives.CIWAE, lb.objectives.MIWAE, lb.objectives.PIWAE, against="definition")
def test_a_mixed_bound_has_the_value_of_its_parts():
    oracle = linear_gaussian(4)
    log_w = seeded(2, lambda vae, x: vae.trace(x, 6), oracle.vae, oracle.x).log_w.detach()
    miwae = (torch.logsumexp(log_w.view(2, 3, -1), 1) - math.log(3)).mean(0)
    iwae = torch.logsumexp(log_w, 0) - math.log(6)
    for estimator in (PLAIN, STL, DREG):
        for objective, value in (
            (MIWAE(2, 3, estimator), miwae),
            (PIWAE(2, 3, estimator), iwae),
            (CIWAE(0.3, 6, estimator), 0.3 * log_w.mean(0) + 0.7 * iwae),
        ):
            loss = seeded(2, objective, oracle.vae, oracle.x).loss
            torch.testing.assert_close(-loss, value, atol=1e-10, rtol=0)


# The multi-sample bounds: gradients.


@pytest.mark.verifies(
    lb.objectives.CIWAE,
    lb.objectives.IWAE,
    lb.objectives.MIWAE,
    lb.objectives.DoublyReparameterised,
    lb.objectives.Reparameterised,
    lb.objectives.StickingTheLanding,
    against="quadrature",
)
@pytest.mark.parametrize(
    ("objective", "reference", "draws", "nodes"),
    [
        (IWAE(1, STL), IWAE(1), 1, 60),
        (IWAE(1, DREG), IWAE(1), 1, 60),
        (IWAE(2, DREG), IWAE(2), 2, 60),
        (IWAE(3, DREG), IWAE(3), 3, 40),
        (CIWAE(0.3, 2, DREG), CIWAE(0.3, 2), 2, 60),
        (MIWAE(2, 1, DREG), MIWAE(2, 1), 2, 60),
        (MIWAE(3, 1, STL), MIWAE(3, 1), 3, 40),
        (PIWAE(1, 3, DREG), IWAE(3), 3, 40),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_estimators_mean_is_the_exact_gradient_by_quadrature(
    seed, objective, reference, draws, nodes, monkeypatch
):
    """With one latent dimension the mean over the noise of all draws is an integral, taken on a grid."""
    oracle = linear_gaussian(seed, latent=1, dims=3, noise=1.0, examples=1)
    grid, weight = normal_grid(draws, nodes)
    x = oracle.x.expand(len(weight), -1)
    with_noise(monkeypatch, oracle.vae, grid)
    mine, exact = (gradients(oracle.vae, (weight * o(oracle.vae, x).loss).sum()) for o in (objective, reference))
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert b.abs().max() > 1e-2
    if draws == 1:
        closed = gradients(oracle.vae, -oracle.exact_elbo().sum())
        for a, b in zip(mine, closed, strict=True):
            torch.testing.assert_close(a, b, atol=1e-8, rtol=0)


@pytest.mark.parametrize("num_samples", [5, 20])
def test_each_estimators_mean_is_the_gradient_of_the_bound_for_many_draws(num_samples):
    """No grid reaches so many dimensions: against the plain estimator with four times the draws."""
    oracle = linear_gaussian(1, latent=2, dims=3, examples=1)
    x = oracle.x.expand(500, -1)

    def sampled(objective, seed, runs):
        torch.manual_seed(seed)
        found = [torch.cat(gradients(oracle.vae, objective(oracle.vae, x).loss.mean())) for _ in range(runs)]
        return torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(runs)

    exact, exact_error = sampled(IWAE(num_samples), 0, 400)
    for estimator in (PLAIN, DREG):
        mean, error = sampled(IWAE(num_samples, estimator), 1, 100)
        assert ((mean - exact).abs() < 4 * (error.square() + exact_error.square()).sqrt()).all()
    biased, error = sampled(IWAE(num_samples, STL), 1, 100)
    far = (biased - exact).abs() > 6 * (error.square() + exact_error.square()).sqrt()
    assert far.any(), "sticking the landing is known to be biased for more than one draw"


@pytest.mark.parametrize("objective", [IWAE(5, STL), IWAE(5, DREG)])
def test_the_estimators_differ_for_the_encoder_alone(objective):
    oracle = linear_gaussian(5)
    mine, plain = (
        gradients(oracle.vae, seeded(0, o, oracle.vae, oracle.x).loss.mean()) for o in (objective, IWAE(5, PLAIN))
    )
    torch.testing.assert_close(mine[1], plain[1], atol=1e-12, rtol=0)
    assert (mine[0] - plain[0]).abs().max() > 1e-3


SHARP = [
    IWAE(1, STL), IWAE(7, STL), IWAE(1, DREG), IWAE(5, DREG), IWAE(20, DREG), MIWAE(3, 4, DREG), PIWAE(3, 4, DREG),
    CIWAE(0.3, 5, DREG), CIWAE(0.3, 5, STL),
]  # fmt: skip


@pytest.mark.verifies(
    lb.objectives.DoublyReparameterised, lb.objectives.StickingTheLanding, against="linear-Gaussian oracle"
)
@pytest.mark.parametrize("objective", SHARP, ids=repr)
def test_at_the_true_posterior_the_encoders_gradient_vanishes_with_its_noise(objective):
    oracle = linear_gaussian(6, exact_q=True)
    encoder, decoder = gradients(oracle.vae, seeded(0, objective, oracle.vae, oracle.x).loss.sum())
    assert encoder.abs().max() < 1e-9
    assert decoder.abs().max() > 1e-2
    plain = type(objective)(**{**vars(objective), "estimator": PLAIN})
    noisy, _ = gradients(oracle.vae, seeded(0, plain, oracle.vae, oracle.x).loss.sum())
    assert noisy.abs().max() > 1e-2


def test_dreg_hears_the_encoders_gradient_where_the_plain_one_drowns():
    oracle = linear_gaussian(7, examples=1)

    def signal_to_noise(estimator):
        torch.manual_seed(0)
        objective = IWAE(64, estimator)
        found = [gradients(oracle.vae, objective(oracle.vae, oracle.x).loss.sum())[0] for _ in range(400)]
        found = torch.stack(found)
        return (found.mean(0).abs() / found.std(0)).median()

    assert signal_to_noise(DREG) > 2 * signal_to_noise(PLAIN)


@pytest.mark.verifies(lb.objectives.PIWAE, against="definition")
@pytest.mark.parametrize("estimator", [PLAIN, STL, DREG])
def test_the_partial_bound_teaches_the_decoder_by_one_bound_and_the_encoder_by_another(estimator):
    oracle = linear_gaussian(8)
    partial, tight, loose = (
        gradients(oracle.vae, seeded(3, o, oracle.vae, oracle.x).loss.mean())
        for o in (PIWAE(4, 3, estimator), IWAE(12, estimator), MIWAE(4, 3, estimator))
    )
    torch.testing.assert_close(partial[0], loose[0], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(partial[1], tight[1], atol=1e-10, rtol=1e-10)
    assert (tight[0] - loose[0]).abs().max() > 1e-3
    assert (tight[1] - loose[1]).abs().max() > 1e-3


@pytest.mark.parametrize("estimator", [PLAIN, DREG])
def test_the_partial_bound_survives_weights_that_vanish_in_float32(estimator):
    """Log-weights that differ by thousands: all but one group has weight zero for the decoder, none for the encoder."""
    oracle = linear_gaussian(8, noise=0.02)
    with torch.no_grad():
        oracle.vae.encoder.head.project.bias[2:] += 3
    vae, x = oracle.vae.float(), oracle.x.float()
    log_w = seeded(3, lambda vae, x: vae.trace(x, 12), vae, x).log_w
    assert (log_w.max(0).values - log_w.min(0).values > 1000).all()
    partial, loose = (
        gradients(vae, seeded(3, o, vae, x).loss.mean()) for o in (PIWAE(4, 3, estimator), MIWAE(4, 3, estimator))
    )
    torch.testing.assert_close(partial[0], loose[0], rtol=1e-3, atol=1e-3 * loose[0].abs().max().item())
    assert torch.isfinite(partial[1]).all()


@pytest.mark.verifies(lb.Trace, against="autograd")
@pytest.mark.parametrize("model", ["diagonal", "full"])
def test_the_two_halves_of_the_density_of_q_have_the_two_halves_of_its_gradient(model):
    oracle = linear_gaussian(9)
    vae, x = (oracle.vae, oracle.x) if model == "diagonal" else full_covariance()
    trace = vae.trace(x, 4)
    coefficients = torch.randn(4, len(x), dtype=torch.float64)
    parameters = list(vae.encoder.parameters())

    def gradient(log_q):
        found = torch.autograd.grad((coefficients * log_q).sum(), parameters, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]

    path, score = trace.log_qz_split()
    torch.testing.assert_close(path, trace.log_qz)
    torch.testing.assert_close(score, trace.log_qz)
    if model == "diagonal":
        stopped = DiagonalNormal(trace.q.loc.detach(), trace.q.log_scale.detach())
    else:
        stopped = MultivariateNormal(trace.q.loc.detach(), scale_tril=trace.q.scale_tril.detach())
    expected = gradient(stopped.log_prob(trace.z)), gradient(trace.q.log_prob(trace.z.detach()))
    for found, true in zip((gradient(path), gradient(score)), expected, strict=True):
        for mine, theirs in zip(found, true, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)
            assert theirs.abs().max() > 1e-6


@pytest.mark.parametrize("objective", [IWAE(4, DREG), PIWAE(2, 2), CIWAE(0.5, 4, DREG), WAE(), InfoVAE(0.5, 3.0)])
def test_a_posterior_of_torchs_own_will_do(objective):
    vae, x = full_covariance()
    objective.check(vae)
    encoder, decoder = gradients(vae, objective(vae, x).loss.mean())
    assert encoder.abs().max() > 1e-3
    assert decoder.abs().max() > 1e-3


def test_a_frozen_encoder_leaves_the_decoder_to_learn():
    oracle = linear_gaussian(0)
    oracle.vae.encoder.requires_grad_(False)
    for objective in (IWAE(4, DREG), PIWAE(2, 2), CIWAE(0.5, 4, DREG)):
        oracle.vae.zero_grad()
        objective(oracle.vae, oracle.x).loss.mean().backward()
        assert oracle.weight.grad.abs().max() > 1e-3


# The rate held: free bits and capacity.


@pytest.mark.parametrize("groups", [None, 1, 2])
def test_without_free_bits_the_loss_is_the_negative_elbo(groups):
    oracle = linear_gaussian(1, latent=4, dims=6)
    mine = seeded(0, FreeBits(0.0, groups, num_samples=3), oracle.vae, oracle.x)
    theirs = seeded(0, ELBO(num_samples=3), oracle.vae, oracle.x)
    torch.testing.assert_close(mine.loss, theirs.loss, atol=1e-12, rtol=0)
    for a, b in zip(*(gradients(oracle.vae, t.loss.mean()) for t in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.verifies(lb.objectives.FreeBits, against="closed form")
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_free_bits_charge_each_groups_mean_kl_from_the_threshold_on(groups):
    oracle = linear_gaussian(1, latent=4, dims=6)
    mean, log_scale = oracle.vae.encoder(oracle.x).mean, oracle.vae.encoder(oracle.x).log_scale
    kl = 0.5 * (mean**2 + torch.exp(2 * log_scale) - 1) - log_scale
    grouped = {None: kl, 1: kl.sum(1, keepdim=True), 2: kl.view(-1, 2, 2).sum(2)}[groups].mean(0)
    nats = grouped.sort().values[: len(grouped) // 2 + 1].mean().item()
    for threshold in (nats, 1e3):
        terms = seeded(0, FreeBits(threshold, groups), oracle.vae, oracle.x)
        expected = sum(max(threshold, value) for value in grouped.tolist())
        assert math.isclose((terms.loss - terms.distortion).mean().item(), expected, rel_tol=1e-12)
        plain = seeded(0, ELBO(), oracle.vae, oracle.x)
        torch.testing.assert_close(terms.elbo, plain.elbo, atol=1e-12, rtol=0)
        torch.testing.assert_close(terms.kl, plain.kl, atol=1e-12, rtol=0)


def test_below_the_threshold_a_component_has_no_gradient_of_its_kl():
    oracle = linear_gaussian(1, latent=4, dims=6)
    q = oracle.vae.encoder(oracle.x)
    kl = (0.5 * (q.mean**2 + torch.exp(2 * q.log_scale) - 1) - q.log_scale).mean(0).tolist()
    ordered = sorted(kl)
    terms = FreeBits((ordered[1] + ordered[2]) / 2)(oracle.vae, oracle.x)
    encoder, decoder = gradients(oracle.vae, (terms.loss - terms.distortion).mean())
    weight = encoder[: 8 * 6].view(8, 6)
    for component, value in enumerate(kl):
        free = value < (ordered[1] + ordered[2]) / 2
        assert (weight[component].abs().max() < 1e-12) == free
        assert (weight[4 + component].abs().max() < 1e-12) == free
    assert decoder.abs().max() == 0


@pytest.mark.verifies(lb.objectives.Capacity, against="definition")
@pytest.mark.parametrize("excess", [-30.0, -0.1, 0.1, 1.0])
def test_capacity_charges_the_distance_of_the_mean_kl_from_what_is_asked(excess):
    oracle = linear_gaussian(2)
    kl = ELBO()(oracle.vae, oracle.x).kl
    asked = kl.mean().item() - excess
    assert abs(excess) >= 1 or kl.min() < asked < kl.max(), "examples on both sides of what is asked"
    objective = Capacity(gamma=7.0, capacity=2 * asked, warmup=100)
    terms, plain = seeded(0, objective_at(objective, 50), oracle.vae, oracle.x), seeded(0, ELBO(), oracle.vae, oracle.x)
    charged = 7.0 * abs(plain.kl.mean().item() - asked)
    assert math.isclose((terms.loss - terms.distortion).mean().item(), charged, rel_tol=1e-12)
    torch.testing.assert_close(terms.elbo, plain.elbo)
    sign = 1 if plain.kl.mean() > asked else -1
    mine = gradients(oracle.vae, (terms.loss - terms.distortion).mean())[0]
    torch.testing.assert_close(mine, gradients(oracle.vae, 7.0 * sign * plain.kl.mean())[0])


def objective_at(objective, step):
    return lambda vae, x: objective(vae, x, step)


def test_free_bits_for_a_component_are_refused_where_no_component_has_a_kl():
    vae, x = full_covariance()
    for objective in (FreeBits(0.1), FreeBits(0.1, groups=3)):
        with pytest.raises(UsageError, match=r"MultivariateNormal.*FreeBits\(groups=1\)"):
            objective.check(vae)
        with pytest.raises(UsageError, match=r"FreeBits\(groups=1\)"):
            objective(vae, x)
    FreeBits(0.1, groups=1).check(vae)
    assert torch.isfinite(FreeBits(0.1, groups=1)(vae, x).loss).all()
    with pytest.raises(UsageError, match="3 equal groups"):
        FreeBits(0.1, groups=3).check(linear_gaussian(0, latent=4).vae)


# The rate taken apart: total correlation.


def exact_mixture(q, z):
    """log q(z) and the sum over components of log q(z_d), for the mixture over the whole data, by NumPy."""
    loc, scale, z = (t.detach().numpy() for t in (q.loc, q.stddev, z))
    each = -0.5 * ((z[:, None] - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    joint = np.log(np.exp(each.sum(2)).mean(1))
    product = np.log(np.exp(each).mean(1)).sum(1)
    return torch.tensor(joint), torch.tensor(product)


@pytest.mark.verifies(lb.objectives.BetaTC, lb.objectives.MinibatchStratified, against="enumeration")
def test_the_decomposition_is_that_of_the_exact_aggregate_on_the_whole_data():
    oracle = linear_gaussian(3, latent=3, examples=40)
    trace = oracle.vae.trace(oracle.x)
    parts = BetaTC(40, aggregate=MinibatchStratified()).decompose(trace)
    joint, product = exact_mixture(trace.q, trace.z[0])
    torch.testing.assert_close(parts.mutual_information, trace.log_qz[0] - joint, atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.total_correlation, joint - product, atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.dimension_wise_kl, product - trace.log_pz[0], atol=1e-10, rtol=0)


def test_on_average_the_three_parts_are_non_negative_and_make_up_the_kl():
    oracle = linear_gaussian(3, latent=3, examples=30)
    objective = BetaTC(30, aggregate=MinibatchStratified())
    torch.manual_seed(0)
    parts = [objective.decompose(oracle.vae.trace(oracle.x)) for _ in range(2000)]
    means = torch.stack([torch.stack(list(p)).mean(1) for p in parts]).detach()
    assert (means.mean(0) > 0).all()
    total = means.sum(1)
    kl = oracle.vae.trace(oracle.x).kl.mean()
    assert (total.mean() - kl).abs() < 4 * total.std() / math.sqrt(len(total))


@pytest.mark.parametrize("aggregate", [MinibatchWeighted(), MinibatchStratified()])
def test_with_equal_weights_beta_tc_is_the_sampled_elbo(aggregate):
    oracle = linear_gaussian(4)
    mine = seeded(0, BetaTC(1000, 1.0, 1.0, 1.0, aggregate), oracle.vae, oracle.x)
    theirs = seeded(0, ELBO(closed_form=False), oracle.vae, oracle.x)
    torch.testing.assert_close(mine.loss, theirs.loss, atol=1e-10, rtol=0)
    torch.testing.assert_close(mine.elbo, seeded(0, ELBO(), oracle.vae, oracle.x).elbo, atol=1e-10, rtol=0)


@pytest.mark.verifies(lb.objectives.MinibatchStratified, lb.objectives.MinibatchWeighted, against="definition")
def test_minibatch_weights_are_those_of_the_definitions():
    oracle = linear_gaussian(5, examples=6)
    trace = oracle.vae.trace(oracle.x)
    density = torch.stack([trace.q.expand((6,)).log_prob(z) for z in trace.z[0]]).exp()  # [z, q]
    weighted = density.mean(1) / 50
    stratified = torch.stack([density[i, i] / 50 + 49 / 50 * (density[i].sum() - density[i, i]) / 5 for i in range(6)])
    for aggregate, aggregated in ((MinibatchWeighted(), weighted), (MinibatchStratified(), stratified)):
        parts = BetaTC(50, aggregate=aggregate).decompose(trace)
        torch.testing.assert_close(parts.mutual_information, trace.log_qz[0] - aggregated.log())


@pytest.mark.verifies(lb.objectives.MinibatchStratified, against="enumeration")
def test_stratified_sampling_is_unbiased_over_all_batches():
    oracle = linear_gaussian(6, examples=7)
    q = oracle.vae.encoder(oracle.x)
    z = q.rsample()
    estimates = []
    for others in itertools.combinations(range(1, 7), 3):
        batch = [0, *others]
        part = Trace(z[None, batch], torch.zeros(1, 4), DiagonalNormal(q.loc[batch], q.log_scale[batch]), None)
        weights = MinibatchStratified().log_weights(4, 7, z)
        log_density = part.q.log_prob_each(part.z[0, :1, None]).sum(-1)
        estimates.append((log_density + weights[0]).logsumexp(1).exp())
    joint, _ = exact_mixture(q, z)
    torch.testing.assert_close(torch.stack(estimates).mean(), joint[0].exp(), atol=1e-12, rtol=1e-10)


@pytest.mark.verifies(lb.objectives.BetaTC, against="closed form")
def test_total_correlation_is_zero_for_independent_codes_and_not_for_dependent_ones():
    first = torch.randn(300, 1, generator=generator(0), dtype=torch.float64)
    second = torch.randn(300, 1, generator=generator(1), dtype=torch.float64)
    found = []
    for loc in (torch.cat([first, second], 1), torch.cat([first, first], 1)):
        q = DiagonalNormal(loc, torch.full_like(loc, math.log(0.5)))
        torch.manual_seed(0)
        prior = DiagonalNormal(torch.zeros(2).double(), torch.zeros(2).double())
        trace = Trace(q.rsample((1,)), torch.zeros(1, 300), q, prior)
        found.append(BetaTC(300, aggregate=MinibatchStratified()).decompose(trace).total_correlation.mean())
    # Of a normal with variances 1.25 and covariance 1: -log(1 - 0.8²) / 2.
    assert found[0].abs() < 0.12
    assert (found[1] - 0.51).abs() < 0.12


# The rate taken apart: covariances.


@pytest.mark.verifies(lb.objectives.DIPVAE, against="definition")
@pytest.mark.parametrize("kind", DIPKind)
def test_the_dip_penalty_is_numpys(kind):
    oracle = linear_gaussian(7, latent=3, examples=9)
    q = oracle.vae.encoder(oracle.x)
    mean, variance = q.mean.detach().numpy(), q.variance.detach().numpy()
    covariance = np.cov(mean.T, bias=True)
    if kind is DIPKind.CODES:
        covariance = covariance + np.diag(variance.mean(0))
    expected = 0.0
    for i, j in itertools.product(range(3), repeat=2):
        expected += 2.0 * (covariance[i, i] - 1) ** 2 if i == j else 5.0 * covariance[i, j] ** 2
    terms = seeded(0, DIPVAE(kind, 5.0, 2.0), oracle.vae, oracle.x)
    plain = seeded(0, ELBO(), oracle.vae, oracle.x)
    torch.testing.assert_close(
        terms.loss - plain.loss, torch.full((9,), expected, dtype=torch.float64), atol=1e-10, rtol=1e-10
    )
    torch.testing.assert_close(terms.elbo, plain.elbo)


def test_the_dip_penalty_of_full_covariances_is_that_of_their_draws():
    vae, x = full_covariance()
    q = vae.encoder(x)
    torch.manual_seed(0)
    z = q.sample((200_000,)).flatten(0, 1)
    covariance = torch.cov(z.T, correction=0)
    off = (covariance - torch.diag(covariance.diagonal())).square().sum()
    expected = 5 * off + 2 * (covariance.diagonal() - 1).square().sum()
    torch.testing.assert_close(DIPVAE(DIPKind.CODES, 5.0, 2.0).penalty(q), expected, atol=0.05, rtol=0.01)


def test_the_dip_penalty_of_the_packages_full_normal_is_that_of_torchs():
    draws = torch.randn(2, 5, 3, 3, generator=generator(0), dtype=torch.float64)
    loc, tril = draws[0, ..., 0], draws[1].tril(-1) + torch.diag_embed(draws[1].diagonal(dim1=1, dim2=2).exp())
    for kind in DIPKind:
        penalty = DIPVAE(kind, 5.0, 2.0).penalty
        torch.testing.assert_close(
            penalty(distributions.FullNormal(loc, tril)), penalty(MultivariateNormal(loc, scale_tril=tril))
        )


# Reconstruction.


@pytest.mark.verifies(lb.objectives.Reconstruction, against="closed form")
def test_to_reconstruct_linearly_is_to_minimise_the_squared_error():
    oracle = linear_gaussian(2, noise=0.5)
    encoder = Conditional(Identity((5,)), heads.Delta((5,), (2,))).double()
    vae = VAE(encoder, oracle.vae.decoder, oracle.vae.prior)
    terms = Reconstruction()(vae, oracle.x)
    error = oracle.x - encoder.head.project(oracle.x) @ oracle.weight.T - oracle.bias
    expected = error.square().sum(1) / (2 * 0.25) + 5 * (math.log(0.5) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(terms.loss, expected)
    for mine, true in zip(gradients(vae, terms.loss.sum()), gradients(vae, expected.sum()), strict=True):
        torch.testing.assert_close(mine, true)
        assert true.abs().max() > 1


# Discrepancies.


@pytest.mark.verifies(lb.objectives.InverseMultiquadratic, lb.objectives.mmd, against="definition")
def test_the_discrepancy_is_a_double_loop():
    a = torch.randn(5, 3, generator=generator(0), dtype=torch.float64)
    b = torch.randn(4, 3, generator=generator(1), dtype=torch.float64) + 1

    def k(u, v):
        distance = float(((u - v) ** 2).sum())
        return sum(2 * 3 * 1.5 * s / (2 * 3 * 1.5 * s + distance) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    def pairs(u):
        return sum(k(u[i], u[j]) for i in range(len(u)) for j in range(len(u)) if i != j) / (len(u) * (len(u) - 1))

    expected = pairs(a) + pairs(b) - 2 * sum(k(u, v) for u in a for v in b) / 20
    assert math.isclose(mmd(a, b, InverseMultiquadratic(1.5)).item(), expected, rel_tol=1e-12)


@pytest.mark.verifies(lb.objectives.mmd, against="known truth")
def test_the_discrepancy_is_zero_on_average_for_equal_distributions_and_positive_for_others():
    kernel = InverseMultiquadratic()
    draws = generator(0)

    def estimates(shift, scale):
        def one():
            a, b = torch.randn(2, 20, 2, generator=draws, dtype=torch.float64)
            return mmd(shift + scale * a, b, kernel)

        return torch.stack([one() for _ in range(1000)])

    equal = estimates(0.0, 1.0)
    assert equal.mean().abs() < 4 * equal.std() / math.sqrt(len(equal))
    assert (equal < 0).any(), "an unbiased estimate of zero is sometimes negative"
    for other in (estimates(0.5, 1.0), estimates(0.0, 0.5)):
        assert other.mean() > 10 * other.std() / math.sqrt(len(other))


@pytest.mark.verifies(lb.objectives.InfoVAE, against="definition")
@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 1.0), (0.3, 5.0), (1.0, 2.0)])
def test_info_vae_weighs_the_kl_and_the_discrepancy(alpha, lambda_):
    oracle = linear_gaussian(8)
    kernel = InverseMultiquadratic(scales=(1.0,))
    terms = seeded(0, InfoVAE(alpha, lambda_, kernel), oracle.vae, oracle.x)
    torch.manual_seed(0)
    z, prior = oracle.vae.trace(oracle.x).z[0], oracle.vae.prior().rsample((len(oracle.x),))
    penalty = (alpha + lambda_ - 1) * mmd(z, prior, kernel)
    torch.testing.assert_close(terms.loss, terms.distortion + (1 - alpha) * terms.kl + penalty)
    torch.testing.assert_close(terms.elbo, -terms.distortion - terms.kl)


def test_info_vae_contains_the_elbo():
    oracle = linear_gaussian(8)
    mine, theirs = (seeded(0, o, oracle.vae, oracle.x) for o in (InfoVAE(0.0, 1.0), ELBO()))
    torch.testing.assert_close(mine.loss, theirs.loss)


@pytest.mark.verifies(lb.objectives.WAE, against="definition")
@pytest.mark.parametrize("head", [heads.Delta, heads.DiagonalNormal])
def test_a_wae_reconstructs_and_pays_for_the_discrepancy(head):
    torch.manual_seed(0)
    encoder = Conditional(nn.MLP((4,), (6,)), head((6,), (2,)))
    vae = VAE(encoder, Conditional(nn.MLP((2,), (6,)), heads.Normal((6,), (4,), scale=1.0)), StandardNormal(2)).double()
    x = torch.randn(10, 4, dtype=torch.float64)
    terms = seeded(0, WAE(7.0), vae, x)
    torch.manual_seed(0)
    trace = vae.trace(x)
    prior = vae.prior().rsample((10,))
    penalty = mmd(trace.z[0], prior, InverseMultiquadratic())
    torch.testing.assert_close(terms.loss, -trace.log_px_z[0] + 7.0 * penalty)
    assert (terms.kl is None) == (head is heads.Delta)
    still = gradients(vae, penalty)[0]
    assert still.abs().max() > 1e-4, "the discrepancy moves the encoder"


# What means nothing is refused.


def test_what_needs_independent_components_is_refused_without_them():
    vae, x = full_covariance()
    with pytest.raises(UsageError, match=r"total correlation.*MultivariateNormal"):
        BetaTC(100).check(vae)
    with pytest.raises(UsageError, match="total correlation"):
        BetaTC(100)(vae, x)
    DIPVAE().check(vae)


@pytest.mark.parametrize(
    "make",
    [
        lambda: IWAE(0),
        lambda: MIWAE(0, 5),
        lambda: MIWAE(5, 0),
        lambda: PIWAE(0, 5),
        lambda: CIWAE(1.5),
        lambda: CIWAE(-0.1),
        lambda: CIWAE(math.nan),
        lambda: FreeBits(-1),
        lambda: FreeBits(1, groups=0),
        lambda: Capacity(gamma=-1),
        lambda: Capacity(capacity=math.inf),
        lambda: BetaTC(0),
        lambda: BetaTC(10, beta=-1),
        lambda: DIPVAE(lambda_od=math.nan),
        lambda: InfoVAE(alpha=2),
        lambda: InfoVAE(alpha=0, lambda_=0.5),
        lambda: WAE(-1),
        lambda: InverseMultiquadratic(0.0),
        lambda: InverseMultiquadratic(scales=()),
    ],
)
def test_settings_that_cannot_be_are_refused(make):
    with pytest.raises(UsageError, match="got"):
        make()


@pytest.mark.verifies(lb.objectives.InTurn, against="definition")
def test_one_objective_after_another_is_each_in_its_turn():
    vae, x = full_covariance()
    first, then = ELBO(beta=4, warmup=2), ELBO(beta=0.5, warmup=4)
    both = InTurn(first, then, after=3)
    for step, one, its_own in (
        (0, first, 0),
        (1, first, 1),
        (2, first, 2),
        (3, then, 0),
        (5, then, 2),
        (None, then, None),
    ):
        found = seeded(1, objective_at(both, step), vae, x)
        torch.testing.assert_close(found.loss, seeded(1, objective_at(one, its_own), vae, x).loss, rtol=0, atol=0)
    assert both.notes() == [f"the first 3 updates minimised {first}", *then.notes()]
    assert spec.build(spec.describe(both)) == both
    with pytest.raises(UsageError, match="after=-1"):
        InTurn(first, then, after=-1)


def test_what_refuses_a_model_does_so_in_its_turn_as_well():
    delta = VAE(
        Conditional(nn.MLP((4,), (6,)), heads.Delta((6,), (3,))),
        Conditional(nn.MLP((3,), (6,)), heads.Normal((6,), (4,))),
        StandardNormal(3),
    )
    for objective in (InTurn(ELBO(), Reconstruction(), 5), InTurn(Reconstruction(), ELBO(), 5)):
        with pytest.raises(UsageError, match="no density"):
            objective.check(delta)
