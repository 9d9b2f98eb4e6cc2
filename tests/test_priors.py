"""Priors: densities that integrate to one and are sampled from, the mixture of the encoder's posteriors, and their
place in a VAE, its copies and its files."""

import copy
import itertools
import math

import pytest
import torch
from parts import EVENT, LATENT, POSTERIORS, PRIORS, build, scramble

import lowerbound as lb
from lowerbound import flows, heads, nn
from lowerbound.data import ArraySource, Support, generator
from lowerbound.distributions import Delta, DiagonalNormal, FullNormal, Mixture, analytic_kl
from lowerbound.errors import UsageError
from lowerbound.evidence import log_evidence
from lowerbound.model import VAE
from lowerbound.objectives import ELBO
from lowerbound.priors import FlowPrior, MixtureOfNormals, Prior, VampPrior
from lowerbound.training import Precision, Training, TrainState, train

GRID = [pair for pair in itertools.product(POSTERIORS, PRIORS) if pair[0] != "delta" and pair != ("iaf", "vamp")]


def binary(count: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(count, *EVENT, generator=generator(seed)) < 0.4).float()


# ---- densities


def learned(name: str, latent: int) -> Prior:
    return scramble(build(prior=name, latent=latent)).double().eval().prior


@pytest.mark.verifies(
    lb.priors.FlowPrior, lb.priors.MixtureOfNormals, lb.priors.StandardNormal, lb.priors.VampPrior, against="quadrature"
)
@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_priors_integrate_to_one_and_are_sampled_from(name):
    p = learned(name, 1)()
    assert (p.batch_shape, p.event_shape) == ((), (1,))
    line = torch.linspace(-400, 400, 200_001, dtype=torch.float64)
    density = p.log_prob(line[:, None]).exp()
    assert math.isclose(torch.trapezoid(density, line), 1, abs_tol=1e-6)
    mean = torch.trapezoid(line * density, line)
    spread = torch.trapezoid((line - mean).square() * density, line).sqrt()
    torch.manual_seed(0)
    z = p.sample(torch.Size([40_000]))
    assert (z.mean() - mean).abs() < 4.5 * spread / 200
    assert math.isclose(z.std(), spread, rel_tol=0.03)
    # The whole distribution, not only its moments: Kolmogorov's distance at 40,000 draws.
    cumulative = torch.cumulative_trapezoid(density, line)
    at = torch.searchsorted(line, z[:, 0].sort().values).clamp(1, len(cumulative)) - 1
    assert (cumulative[at] - torch.linspace(0, 1, len(z)).double()).abs().max() < 0.012
    torch.testing.assert_close(p.mean, mean[None], atol=1e-4, rtol=0)
    torch.testing.assert_close(p.stddev, spread[None], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_priors_over_the_plane_integrate_to_one(name):
    p = learned(name, 2)()
    torch.manual_seed(0)
    z = p.sample(torch.Size([5000]))
    low, high = z.min(0).values, z.max(0).values
    low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)
    sides = [torch.linspace(low[d], high[d], 500, dtype=torch.float64) for d in (0, 1)]
    density = p.log_prob(torch.cartesian_prod(*sides)).exp().reshape(500, 500)
    assert math.isclose(torch.trapezoid(torch.trapezoid(density, sides[1]), sides[0]), 1, abs_tol=2e-3)


def test_a_mixture_is_the_weighted_sum_of_its_parts():
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    weights = logits.softmax(0)
    draws = torch.randn(2, 3, 4, generator=generator(0), dtype=torch.float64)
    diagonal = DiagonalNormal(draws[0], draws[1])
    full = FullNormal(draws[0], torch.diag_embed(draws[1].exp()) + 0.3 * torch.ones(4, 4).tril(-1).double())
    for parts in (diagonal, full):
        p = Mixture(logits, parts)
        z = torch.randn(5, 2, 4, generator=generator(1), dtype=torch.float64)
        by_hand = sum(w * parts[torch.tensor(m)].log_prob(z).exp() for m, w in enumerate(weights)).log()
        torch.testing.assert_close(p.log_prob(z), by_hand)
        assert p.log_prob(z[0, 0]).shape == ()
        torch.manual_seed(0)
        drawn = p.sample((200_000,))
        torch.testing.assert_close(drawn.mean(0), p.mean, atol=0.03, rtol=0)
        torch.testing.assert_close(drawn.var(0), p.variance, rtol=0.03, atol=0)
        assert p.sample().shape == (4,)
        assert p.sample((2, 3)).shape == (2, 3, 4)


def test_a_mixture_of_one_is_that_one_and_stays_finite_far_away():
    part = DiagonalNormal(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, -10.0]]))
    p = Mixture(torch.zeros(1), part)
    for z in (torch.zeros(2), torch.full((2,), 1e6)):
        torch.testing.assert_close(p.log_prob(z), part.log_prob(z)[0])
        assert torch.isfinite(p.log_prob(z))


def test_a_mixture_of_pictures_has_their_event():
    p = Mixture(torch.zeros(3), DiagonalNormal(torch.randn(3, 2, 4), torch.zeros(3, 2, 4), event_ndim=2))
    assert p.event_shape == p.mean.shape == p.stddev.shape == (2, 4)
    assert p.log_prob(p.sample((5,))).shape == (5,)


def test_where_there_is_no_closed_form_for_the_kl_there_is_none():
    diagonal = DiagonalNormal(torch.zeros(5, 2), torch.zeros(5, 2))
    full = FullNormal(torch.zeros(5, 2), torch.eye(2).expand(5, 2, 2))
    mixture = MixtureOfNormals(2, 1)()
    flowed = FlowPrior(2, flows.real_nvp(2, 1, 4))()
    for q in (diagonal, full, mixture, flowed, Delta(torch.zeros(5, 2))):
        for p in (mixture, flowed):
            assert analytic_kl(q, p) is None
    for p in (diagonal, full):
        assert analytic_kl(mixture, p) is None
        assert analytic_kl(p, diagonal).shape == (5,)


# ---- the mixture of posteriors


@pytest.mark.verifies(lb.priors.VampPrior, against="definition")
@pytest.mark.parametrize("posterior", ["diagonal", "full", "maf", "real-nvp"])
def test_the_vamp_prior_is_the_mixture_of_its_encoders_posteriors(posterior):
    vae = scramble(build(posterior, "vamp")).double().eval()
    u = vae.prior.inputs
    assert ((u >= 0) & (u <= 1)).all()
    z = torch.randn(7, 4, LATENT, generator=generator(2), dtype=torch.float64)
    each = torch.stack([vae.encoder(u[m : m + 1]).log_prob(z[..., None, :])[..., 0] for m in range(6)])
    torch.testing.assert_close(vae.prior().log_prob(z), each.logsumexp(0) - math.log(6))
    means = vae.encoder(u).mean
    torch.testing.assert_close(vae.prior().mean, means.mean(0))


def test_pseudo_inputs_start_at_examples_and_learn_from_there():
    vae, x = build(prior="vamp"), binary(6, seed=3)
    vae.prior.start_at(x)
    assert torch.equal(vae.prior.inputs, x)
    vae.prior().log_prob(torch.zeros(LATENT)).backward()
    assert (vae.prior.raw_inputs.grad != 0).any(), "values at 0 and 1 are not stuck"
    with pytest.raises(UsageError, match=r"6 pseudo-inputs.*\(5, 1, 2, 3\)"):
        vae.prior.start_at(binary(5))
    with torch.no_grad():
        vae.prior.raw_inputs.mul_(7).sub_(3)
    assert set(vae.prior.inputs.unique().tolist()) == {0.0, 1.0}
    unbounded = VampPrior(2, (4,), 3, unit_interval=False)
    assert torch.equal(unbounded.inputs, unbounded.raw_inputs)


def test_the_encoder_is_registered_once_and_learns_through_the_prior():
    vae = build(prior="vamp")
    assert {name for name, _ in vae.prior.named_parameters()} == {"raw_inputs"}
    assert list(vae.prior.state_dict()) == ["raw_inputs"]
    assert [k for k in vae.state_dict() if k.startswith("prior")] == ["prior.raw_inputs"]
    vae.prior().log_prob(torch.ones(LATENT)).backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.encoder.head.parameters())


def test_a_copys_prior_is_bound_to_the_copys_encoder():
    vae = build(prior="vamp")
    twin = copy.deepcopy(vae)
    assert twin.prior._encoder[0] is twin.encoder
    assert twin.prior._encoder[0] is not vae.encoder
    before = vae.prior().log_prob(torch.zeros(LATENT))
    scramble(twin)
    assert torch.equal(vae.prior().log_prob(torch.zeros(LATENT)), before)
    assert not torch.equal(twin.prior().log_prob(torch.zeros(LATENT)), before)


def test_moving_and_loading_a_model_keep_its_prior_bound():
    vae = build(prior="vamp").to(torch.float64)
    assert vae.prior().log_prob(torch.zeros(LATENT).double()).dtype == torch.float64
    other = scramble(build(prior="vamp"))
    vae = vae.float()
    vae.load_state_dict(other.state_dict(), assign=True)
    z = torch.randn(5, LATENT)
    assert torch.equal(vae.prior().log_prob(z), other.prior().log_prob(z))


def test_a_vamp_prior_refuses_an_encoder_that_it_cannot_work_with():
    def bound(head: heads.Head, prior: Prior) -> VAE:
        decoder = heads.Conditional(nn.MLP((LATENT,), (16,)), heads.Bernoulli((16,), EVENT))
        return VAE(heads.Conditional(nn.MLP(EVENT, (8,)), head), decoder, prior)

    vamp = VampPrior(LATENT, EVENT, 6)
    with pytest.raises(UsageError, match=r"takes 6 passes.*real_nvp"):
        bound(POSTERIORS["iaf"]((8,), (LATENT,)), vamp)
    with pytest.raises(UsageError, match="Delta posterior has no density"):
        bound(heads.Delta((8,), (LATENT,)), vamp)
    with pytest.raises(UsageError, match=r"\(16,\).*\(1, 2, 3\)"):
        bound(heads.DiagonalNormal((8,), (LATENT,)), VampPrior(LATENT, (16,), 6))
    with pytest.raises(UsageError, match="put it into a VAE"):
        VampPrior(LATENT, EVENT)()


def test_priors_that_cannot_be_are_refused():
    for make in (
        lambda: MixtureOfNormals(0),
        lambda: MixtureOfNormals(2, 0),
        lambda: VampPrior(2, (4,), 0),
        lambda: VampPrior(2, (0,)),
    ):
        with pytest.raises(UsageError, match="at least 1"):
            make()
    with pytest.raises(UsageError, match="over 3"):
        FlowPrior(2, flows.real_nvp(3))
    with pytest.raises(UsageError, match="context of width 4"):
        FlowPrior(2, flows.real_nvp(2, context_dim=4))


# ---- in a VAE (what every combination keeps is in test_grid.py)


@pytest.mark.verifies(
    lb.heads.DiagonalNormal, lb.heads.FlowedNormal, lb.heads.FullNormal, lb.evidence.log_evidence, against="quadrature"
)
@pytest.mark.parametrize(("posterior", "prior"), GRID)
@torch.no_grad()
def test_the_bound_holds_against_quadrature(posterior, prior):
    """The evidence by a grid over one latent dimension: importance weighting agrees within its own stated error."""
    vae = scramble(build(posterior, prior, latent=1), 0.1).double().eval()
    # Wider than it begins, and so a fair proposal.
    bias = vae.encoder.head.factor.bias if posterior == "full" else vae.encoder.head.project.bias
    bias[-1] += 0.8
    x = binary(6).double()
    line = torch.linspace(-30, 30, 6001, dtype=torch.float64)[:, None, None]
    joint = vae.prior().log_prob(line) + vae.decoder(line.expand(-1, 6, 1)).log_prob(x)
    exact = joint.logsumexp(0) + math.log(60 / 6000)
    torch.manual_seed(0)
    evidence = log_evidence(vae, x, num_samples=4000)
    assert ((evidence.log_px - exact).abs() < 5 * evidence.stderr + 1e-3).all()
    assert (evidence.elbo < exact + 0.05).all()


def test_a_training_goes_on_exactly_from_its_saved_state():
    """A normalisation that was begun by the first batch is not begun again by the first batch after a resume."""
    source = ArraySource(binary(40), support=Support.BINARY, scale=1.0)
    training = Training(epochs=2, batch_size=10, precision=Precision.FP32)
    through = build("real-nvp", "real-nvp")
    for _ in train(through, source, ELBO(), training, device=torch.device("cpu")):
        pass
    first, second = build("real-nvp", "real-nvp"), scramble(build("real-nvp", "real-nvp"))
    for step in train(first, source, ELBO(), training, device=torch.device("cpu")):
        if step.step == 3:
            break
    saved = {k: v.clone() for k, v in step.state.tensors().items()}
    state = TrainState(second, training, torch.device("cpu"))
    state.restore(saved, step.state.scalars())
    for _ in train(second, source, ELBO(), training, state=state):
        pass
    for name, value in through.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def two_moons(count: int, seed: int) -> torch.Tensor:
    draws = generator(seed)
    angle = math.pi * torch.rand(count, generator=draws)
    upper = (torch.rand(count, generator=draws) < 0.5).float()
    x = torch.stack([angle.cos() + 1 - upper, (2 * upper - 1) * angle.sin() + 0.5 * (1 - upper)], -1)
    return x + 0.08 * torch.randn(count, 2, generator=draws)


@pytest.mark.parametrize("flow", [flows.real_nvp(2, 6, 32), flows.masked_autoregressive(2, 4, 32)], ids=["nvp", "maf"])
def test_a_flow_prior_learns_two_moons(flow):
    torch.manual_seed(0)
    seen, unseen = two_moons(1000, 0), two_moons(1000, 1)
    best_normal = torch.distributions.MultivariateNormal(seen.mean(0), seen.T.cov()).log_prob(unseen).mean()
    prior = FlowPrior(2, copy.deepcopy(flow))
    optimiser = torch.optim.Adam(prior.parameters(), 5e-3)
    for step in range(300):
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1 - step / 300)
        optimiser.zero_grad()
        (-prior().log_prob(seen).mean()).backward()
        optimiser.step()
    prior.eval()
    assert prior().log_prob(unseen).mean() > best_normal + 0.5
    # Draws are of the learned density: their own mean log-density is what the data's is, but for what was not learned.
    z = prior().sample(torch.Size([1000]))
    assert abs(prior().log_prob(z.clone()).mean() - prior().log_prob(unseen).mean()) < 0.3
